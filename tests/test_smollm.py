"""The real thing: SmolLM2-135M and its twin, to the numbers the README states."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.verification.samples import sample_texts


@pytest.fixture(scope="module")
def report(smollm, smollm_twin):
    return ah.verify(smollm, smollm_twin, sample_texts())


def test_the_twin_is_the_model(report):
    assert report.passed, report.failures
    assert report.texts == 4
    assert report.tokens >= 4 * 128
    assert report.max_logit_error <= 5e-4
    assert report.max_logit_error_closed <= 1e-4
    assert report.mean_kl <= 1e-8
    assert report.top1_agreement == 1.0
    assert report.domain_violations == 0
    assert all(layer.by_theorem for layer in report.layers)
    assert all(layer.error <= layer.bound for layer in report.layers)


def test_with_patterns_in_float64(smollm, smollm_twin):
    report = ah.verify(smollm, smollm_twin, sample_texts()[:1], pattern_dtype=torch.float64)
    assert report.max_logit_error <= 1e-4
    assert report.mean_kl <= 1e-8


def test_all_neurons_are_heads(smollm_twin):
    assert sum(bank.d_mlp for bank in smollm_twin.banks) == 46_080
    assert all(bank.gates.heads == 2 for bank in smollm_twin.banks)


def test_converting_leaves_the_source_bit_identical(smollm, smollm_twin):
    tokens = smollm.to_tokens("Converting a model must not touch it.")
    with torch.no_grad():
        before = smollm(tokens)
        ah.convert(smollm)
        assert torch.equal(smollm(tokens), before)


def test_weights_are_shared(smollm, smollm_twin):
    own = {p.untyped_storage().data_ptr() for p in smollm.original_model.parameters()}
    extra = sum(
        p.untyped_storage().nbytes()
        for p in smollm_twin.original_model.parameters()
        if p.untyped_storage().data_ptr() not in own
    )
    total = sum(p.untyped_storage().nbytes() for p in smollm.original_model.parameters())
    assert extra <= 0.05 * total


def test_patterns_on_self_fit_in_memory(smollm, smollm_twin):
    """At 512 tokens: at most 0.4 GB for all neuron heads, and 1.5 times the source's cache for everything."""
    tokens = torch.arange(512)[None] + 1000

    def gigabytes(cache):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.values()}
        return sum(storages.values()) / 1e9

    with torch.no_grad():
        _, mine = smollm.run_with_cache(tokens, return_cache_object=False)
        source = gigabytes(mine)
        del mine
        _, theirs = smollm_twin.run_with_cache(tokens, return_cache_object=False)
    patterns = {name: t for name, t in theirs.items() if name.endswith("hook_pattern_self")}
    assert len(patterns) == 30
    assert gigabytes(patterns) <= 0.4
    assert gigabytes(theirs) <= 1.5 * source


def test_text_goes_through_like_in_the_source(smollm, smollm_twin):
    prompt = "The capital of France is"
    settings = {"max_new_tokens": 5, "do_sample": False, "verbose": False}
    assert smollm_twin.generate(prompt, **settings) == smollm.generate(prompt, **settings)
    assert torch.equal(smollm_twin.to_tokens(prompt), smollm.to_tokens(prompt))
