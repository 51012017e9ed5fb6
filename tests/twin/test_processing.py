"""Weights that TransformerLens folds and centres: banks read what it makes of them, and the source keeps its own."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.corpus.run_sweep import SweepSettings
from allheads_labs import zoo

KINDS = ["GPT2LMHeadModel", "LlamaForCausalLM", "OPTForCausalLM", "MixtralForCausalLM", "Gemma2ForCausalLM"]


@pytest.mark.parametrize("options", [{}, {"no_processing": True}], ids=["processed", "names only"])
@pytest.mark.parametrize("name", KINDS)
def test_a_processed_twin_is_verified_against_its_source_either_way(name, options):
    sample = zoo.build(name)
    twin = ah.convert(sample.bridge)
    twin.enable_compatibility_mode(disable_warnings=True, **options)
    report = ah.verify(sample.bridge, twin, sample.inputs)
    assert report.passed, report.failures
    if not options:
        with torch.no_grad():
            twin.blocks[0].ln2.weight[3] += 0.01
        assert not ah.verify(sample.bridge, twin, sample.inputs).passed


@pytest.mark.parametrize("name", KINDS)
def test_the_source_keeps_its_weights(name):
    """Experts are folded in place, in memory that a twin shares."""
    sample = zoo.build(name)
    before = {key: tensor.clone() for key, tensor in sample.bridge.original_model.state_dict().items()}
    twin = ah.convert(sample.bridge)
    twin.enable_compatibility_mode(disable_warnings=True)
    after = sample.bridge.original_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(twin.blocks[1].ln2.weight, sample.bridge.blocks[1].ln2.weight)


def test_processed_on_one_side_only_is_refused(tiny, tokens):
    source = tiny("gpt2")
    twin = ah.convert(source)
    source.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ah.AllHeadsError, match="processed alike"):
        ah.verify(source, twin, tokens)
    twin.enable_compatibility_mode(disable_warnings=True)
    assert ah.verify(source, twin, tokens).passed


def test_edited_heads_are_not_processed(tiny, tokens):
    twin = ah.convert(tiny("gpt2"))
    with twin.banks[1].edit() as heads:
        heads.W_O[0] *= 2.0
    before = twin(tokens)
    with pytest.raises(ah.AllHeadsError, match="edited heads in L1"):
        twin.enable_compatibility_mode()
    assert not twin.compatibility_mode
    twin.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert torch.equal(twin(tokens), before)


@pytest.mark.parametrize("options", [{}, {"no_processing": True}], ids=["processed", "names only"])
def test_what_reads_a_twin_reads_it_in_compatibility_mode(tiny, tokens, options):
    source = tiny("llama", dtype=torch.float64)
    twin, processed = ah.convert(source), ah.convert(source)
    processed.enable_compatibility_mode(disable_warnings=True, **options)
    ids = tokens[:1]
    target = torch.zeros(twin.cfg.d_vocab_out, dtype=torch.float64)
    target[3], target[5] = 1.0, -1.0  # centring the unembedding moves all logits together
    found, again = (ah.attribute(model, ids, target) for model in (twin, processed))
    # TransformerLens processes weights in float32.
    rounding = 1e-6 if not options else 1e-12
    assert again.target_value == pytest.approx(found.target_value, abs=rounding)
    assert again.total == pytest.approx(again.target_value, abs=1e-12)
    assert again.graph(budget=10).nodes
    for head in ("L1.N3", "L0.A1"):
        out = []
        for model in (twin, processed):
            with ah.ablate(model, [head]):
                out.append(model(ids).log_softmax(-1))
        assert (out[0] - twin(ids).log_softmax(-1)).abs().max() > 1e-4
        assert (out[0] - out[1]).abs().max() < rounding
    mine, theirs = (ah.corpus.sweep(model, ids, SweepSettings(context=17)) for model in (twin, processed))
    assert torch.equal(mine.statistics.open, theirs.statistics.open)
    assert torch.allclose(mine.statistics.squares, theirs.statistics.squares, rtol=1e-5)


@pytest.mark.parametrize("wrong", ["blocks.1.mlp.hook_patern", "blocks.0.mlp.hook_pst"])
def test_a_name_that_is_no_hook_point_comes_with_names_that_are_like_it(tiny, tokens, wrong):
    twin = ah.convert(tiny("gpt2"))
    calls = [
        lambda: twin.run_with_cache(tokens, names_filter=wrong),
        lambda: twin.run_with_cache(tokens, names_filter=[wrong]),
        lambda: twin.run_with_hooks(tokens, fwd_hooks=[(wrong, lambda value, hook: value)]),
    ]
    right = {"blocks.1.mlp.hook_patern": "blocks.1.mlp.hook_pattern", "blocks.0.mlp.hook_pst": "blocks.0.mlp.hook_post"}
    for call in calls:
        with pytest.raises(KeyError) as caught:
            call()
        assert f"Names like {wrong}: {right[wrong]}," in caught.value.__notes__[0]


def test_processing_again_changes_nothing(tiny, tokens):
    source = tiny("gpt2")
    twin = ah.convert(source)
    twin.enable_compatibility_mode(disable_warnings=True, center_unembed=False)
    options, before = twin.processing, twin(tokens)
    twin.enable_compatibility_mode(disable_warnings=True)
    assert twin.processing == options
    assert torch.equal(twin(tokens), before)
    assert ah.verify(source, twin, tokens).passed


def test_hooks_of_the_source_do_not_see_the_conversion(tiny, tokens):
    source = tiny("llama")
    source.add_hook("blocks.1.hook_resid_pre", lambda value, hook: 0 * value)
    twin = ah.convert(source)
    source.reset_hooks()
    assert ah.verify(source, twin, tokens).passed
