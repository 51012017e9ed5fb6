"""A family of each kind: everything is read, or refused in a sentence; the command goes through all of them."""

from __future__ import annotations

import pytest

import allheads as ah
from allheads_labs.zoo import reading
from allheads_labs.zoo.coverage import Row, as_markdown

#: Families, and what is refused there.
KINDS = {
    "LlamaForCausalLM": {},
    "MixtralForCausalLM": {},
    "T5ForConditionalGeneration": {},
    "LlavaForConditionalGeneration": {"circuit of a neuron": "a part that stands beside a stream"},
    "ViTModel": {
        "circuit of a head": "a stream that begins with embeddings of tokens",
        "circuit of a neuron": "a stream that begins with embeddings of tokens",
        "head_scores": "a model that reads text, got one that reads pixel_values",
        "sweep": "a model that reads text, got one that reads pixel_values",
    },
}
#: Figures that are errors, and what they may be in float64.
EXACT = {
    "attribute": 1e-12,
    "frozen": 1e-12,
    "graph": 1e-10,
    "pattern of a head": 1e-12,
    "pattern of a neuron": 1e-12,
    # Norms of some families work in float32.
    "circuit of a head": 1e-6,
    "circuit of a neuron": 1e-6,
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_read(name):
    found = reading.read(name)
    assert found.refusals.keys() == KINDS[name].keys()
    assert all(KINDS[name][capability] in sentence for capability, sentence in found.refusals.items())
    assert found.figures.keys() | found.refusals.keys() == reading.CAPABILITIES.keys()
    for capability, figure in found.figures.items():
        if capability in EXACT:
            assert figure <= EXACT[capability], capability
        else:
            assert figure > 0, capability


def test_a_traceback_is_not_a_refusal(monkeypatch):
    def broken(subject):
        raise RuntimeError("a fault")

    def refused(subject):
        raise ah.AllHeadsError("a part that is read", "another", "Name another.")

    monkeypatch.setattr(reading, "CAPABILITIES", {"attribute": refused})
    assert reading.read("GPT2LMHeadModel").refusals == {
        "attribute": "Expected a part that is read, got another. Name another."
    }
    monkeypatch.setattr(reading, "CAPABILITIES", {"attribute": broken})
    with pytest.raises(RuntimeError, match="a fault"):
        reading.read("GPT2LMHeadModel")


def test_no_cell_is_left_out():
    figures = dict.fromkeys(reading.CAPABILITIES, 3e-16)
    refusal = figures.popitem()[0]
    found = reading.Reading("SomeModel", figures, {refusal: "Expected this, got that. Do so."})
    text = as_markdown([Row("SomeModel", "converted", reading=found)])
    (line,) = [line for line in text.splitlines() if line.startswith("| SomeModel") and "3e-16" in line]
    assert line.count("3e-16") == len(reading.CAPABILITIES) - 1
    assert "[1]" in line
    assert "\n1. Expected this, got that. Do so.\n" in text
