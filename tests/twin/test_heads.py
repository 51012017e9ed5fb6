"""One grammar of labels, and every head of a twin under its label."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import allheads as ah


@given(
    tower=st.sampled_from(["", "E", "D", "V"]),
    layer=st.integers(0, 200),
    expert=st.sampled_from(["", ".S", ".M7"]),
    index=st.integers(0, 10**6),
    kind=st.sampled_from("AXN"),
    part=st.integers(0, 9),
)
def test_labels_round_trip(tower, layer, expert, index, kind, part):
    stem = f"{tower}L{layer}{expert if kind == 'N' else ''}"
    label = ah.Label(stem, kind, index, part if kind == "N" else None)
    assert ah.Label.parse(str(label)) == label
    assert label.layer == layer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "L3",
        "3.A5",
        "L3.A5.0",
        "L3.B5",
        "L3.S.A5",
        "L3.X5.0",
        "XL3.A5",
        "L3.M.N5",
        "L3.N812.",
        "L-1.A0",
        "L3.N812.0 ",
        "l3.a5",
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(ah.AllHeadsError, match="a label such as"):
        ah.Label.parse(text)


def test_all_heads_of_a_twin(tiny, tokens):
    source = tiny("llama")
    twin = ah.convert(source)
    listed = list(twin.heads())
    parts = twin.banks[0].gates.heads
    assert len(listed) == 3 * (4 + parts * 64)
    assert len({str(head) for head in listed}) == len(listed)
    for head in listed[:: len(listed) // 25]:
        assert str(twin.head(str(head))) == str(head)
        assert head.W_Q.shape == head.W_K.shape == head.W_V.shape
        assert f"{head.hook_prefix}hook_pattern" in twin.hook_dict
    assert [str(one) for one in twin.neuron("L1.N7")] == [f"L1.N7.{part}" for part in range(parts)]


def test_a_heads_weights_are_the_models(tiny, tokens):
    source = tiny("llama")
    twin = ah.convert(source)
    assert torch.equal(twin.head("L2.A3").W_Q, source.blocks[2].attn.W_Q[3])
    # Four query heads share two key heads.
    assert torch.equal(twin.head("L2.A3").W_K, source.blocks[2].attn.W_K[1])
    assert torch.equal(twin.head("L2.N9.1").W_Q[:, 0], source.blocks[2].mlp.W_gate[:, 9])
    assert torch.equal(twin.head("L2.N9.1").W_O[0], source.blocks[2].mlp.W_out[9])


def test_one_head_and_one_neuron_are_told_apart(tiny):
    twin = ah.convert(tiny("llama"))
    with pytest.raises(ah.AllHeadsError, match=r"one head, such as L1\.N7\.0, got L1\.N7"):
        twin.head("L1.N7")
    for label in ("L1.A0", "L1.N7.0"):
        with pytest.raises(ah.AllHeadsError, match=f"a whole neuron, such as L3.N812, got {label}"):
            twin.neuron(label)


@pytest.mark.parametrize("label", ["L9.A0", "L0.A4", "L0.N64", "L0.N0.7"])
def test_labels_outside_the_twin_are_refused(tiny, label):
    with pytest.raises(ah.AllHeadsError, match=label.replace(".", r"\.")):
        ah.convert(tiny("llama")).index.heads(label)


def test_only_twins_have_neuron_heads(tiny):
    with pytest.raises(ah.AllHeadsError, match="an attention-only twin"):
        ah.ablate(tiny("llama"), ["L0.N0"])
