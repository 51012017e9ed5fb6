"""verify passes for twins, and fails, naming the layer, for anything else."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch

import allheads as ah
from allheads.heads.bank import HeadBank
from allheads.verification.logits import logit_gap
from allheads.verification.report import Thresholds
from allheads.verification.samples import sample_texts

KINDS = ["gpt2", "opt", "llama"]
EDITS = ["W_Q", "W_K", "W_V", "W_O", "b_Q", "b_V", "bias_keys", "bias_offsets", "swap", "drop", "nan"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_within_its_certified_bound(tiny, tokens, kind, tolerance, dtype):
    source = tiny(kind, dtype=dtype)
    twin = ah.convert(source, tolerance=tolerance)
    report = ah.verify(source, twin, tokens)
    assert report.passed, report.failures
    for layer in report.layers:
        assert layer.error <= layer.bound
        # A ReLU's error is gone at any distance from its kink; the others ripple everywhere.
        assert layer.error > 0 or kind == "opt"
        assert layer.violations == 0
    assert report.domain_violations == 0


@pytest.mark.parametrize("kind", KINDS)
def test_preactivations_span_the_interesting_range(tiny, tokens, kind):
    source = tiny(kind)
    twin = ah.convert(source)
    names = [f"blocks.{layer}.mlp.hook_pre" for layer in range(len(source.blocks))]
    _, cache = twin.run_with_cache(tokens, names_filter=names)
    for name in names:
        assert cache[name].min() < -6
        assert cache[name].max() > 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_literal_attention_passes_too(tiny, tokens, kind):
    source = tiny(kind)
    report = ah.verify(source, ah.convert(source), tokens, evaluation="attention", pattern_dtype=torch.float64)
    assert report.passed, report.failures
    assert (report.evaluation, report.pattern_dtype) == ("attention", "float64")


@pytest.mark.parametrize(("kind", "wrong"), [("gpt2", "gelu"), ("gpt2", "relu"), ("opt", "gelu"), ("opt", "silu")])
def test_a_twin_with_the_wrong_activation_fails(tiny, tokens, kind, wrong):
    source = tiny(kind)
    twin = ah.convert(source)
    for bank in twin.banks:
        bank.gates = ah.gates.approximate(wrong)
    report = ah.verify(source, twin, tokens)
    assert not report.passed
    assert all(not layer.passed for layer in report.layers)


def _busiest(bank: HeadBank, x: torch.Tensor) -> list[int]:
    """The two neurons that vary most: one that is always shut, or open, could be changed without any effect."""
    seen = []
    handle = bank.hooks.hook_post.add_hook(lambda post, hook: seen.append(post))
    bank(x)
    handle.hook.remove()
    return seen[0].flatten(0, 1).std(0).topk(2).indices.tolist()


def _tamper(bank: HeadBank, heads_to_change: list[int], what: str, amount: float) -> None:
    head, other = heads_to_change
    with bank.edit() as heads:
        if what == "swap":
            heads.W_O[[head, other]] = heads.W_O[[other, head]]
        elif what == "drop":
            heads.W_O[head] = 0.0
        elif what != "nan":
            getattr(heads, what)[head].view(-1)[0] += amount
    if what == "nan":
        bank.edited.W_V.data[head, 2] = float("nan")  # an edit would refuse it


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_entry_fails_and_names_the_layer(tiny, tokens, kind, what):
    source = tiny(kind)
    layer = random.Random(f"{kind}{what}").randrange(len(source.blocks))
    inputs = f"blocks.{layer}.mlp.hook_in"
    x = source.run_with_cache(tokens, names_filter=inputs)[1][inputs]
    honest = ah.verify(source, ah.convert(source), tokens)
    threshold = honest.layers[layer].bound
    amount = 1e-6
    while True:
        twin = ah.convert(source)
        with torch.no_grad():
            before, busiest = twin.banks[layer](x), _busiest(twin.banks[layer], x)
            _tamper(twin.banks[layer], busiest, what, amount)
            moved = float((twin.banks[layer](x) - before).abs().max())
        if not moved < 10 * threshold:
            break
        amount *= -10
        assert abs(amount) < 1e9, f"{what} has no effect"
    report = ah.verify(source, twin, tokens)
    assert not report.passed
    assert [p.layer for p in report.layers if not p.passed and p.layer <= layer] == [layer]
    assert any(failure.startswith(f"L{layer}:") for failure in report.failures)
    json.dumps(report.to_dict(), allow_nan=False)


def test_an_edit_that_changes_nothing_still_passes(tiny, tokens):
    source = tiny("llama")
    twin = ah.convert(source)
    with twin.banks[1].edit():
        pass
    assert ah.verify(source, twin, tokens).passed


def test_the_report(tiny, tokens):
    source = tiny("gpt2")
    report = ah.verify(source, ah.convert(source), [tokens[0], tokens[1:]])
    assert (report.texts, report.tokens) == (2, tokens.numel())
    figures = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert figures["passed"] is True
    assert len(figures["layers"]) == 2
    assert "the same" in str(report)
    assert 0 <= report.mean_kl <= report.max_kl
    assert report.noise_floor is not None
    assert abs(report.loss_source - source(tokens, return_type="loss").item()) < 1e-5


def test_the_report_as_text_shows_nothing_beside_it_in_a_notebook(tiny, tokens, monkeypatch):
    shown = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *given: shown.append(given))
    source = tiny("gpt2")
    assert "the same" in str(ah.verify(source, ah.convert(source), tokens))
    assert not shown


def test_single_tokens_have_no_loss(tiny):
    source = tiny("gpt2")
    report = ah.verify(source, ah.convert(source), torch.tensor([5]))
    assert report.passed
    assert report.to_dict()["loss_source"] is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one text"),
        ("  ", "text, got the empty string"),
        (torch.zeros(0, dtype=torch.long), "at least one token"),
        (torch.zeros(65, dtype=torch.long), "at most n_ctx = 64 tokens, got 65"),
        (torch.tensor([95, 96]), "token ids from 0 to 95, got ids from 95 to 96"),
        (torch.tensor([-1]), "ids from -1"),
        (torch.zeros(3), "a string or integer ids"),
        (3, "texts or token ids, got int"),
        ("words", "token ids, got text"),
    ],
)
def test_bad_texts(tiny, texts, message):
    source = tiny("gpt2")
    twin = ah.convert(source)
    with pytest.raises(ah.AllHeadsError, match=message):
        ah.verify(source, twin, texts)


def test_pairs_that_do_not_belong_together(tiny, tokens):
    source = tiny("gpt2")
    with pytest.raises(ah.AllHeadsError, match="an attention-only twin"):
        ah.verify(source, source, tokens)
    with pytest.raises(ah.AllHeadsError, match="architecture"):
        ah.verify(source, ah.convert(tiny("opt")), tokens)
    with pytest.raises(ah.AllHeadsError, match="n_layers"):
        ah.verify(source, ah.convert(tiny("gpt2", n_layer=3)), tokens)
    with pytest.raises(ah.AllHeadsError, match="other ones"):
        ah.verify(source, ah.convert(tiny("gpt2", seed=1)), tokens)


def test_the_sample_texts_are_long_enough(smollm):
    texts = sample_texts()
    assert len(set(texts)) == 4
    assert all(smollm.to_tokens(text).shape[1] >= 128 for text in texts)


def test_a_masked_token_cannot_buy_a_wider_bound(tiny, tokens):
    """An offset of -inf, or one so low that it says nothing, makes heads wrong and no bound infinite."""
    source = tiny("llama")
    for offset in (-torch.inf, -1e30):
        twin = ah.convert(source)
        with twin.banks[1].edit() as heads:
            heads.bias_offsets[:40, 0] = offset
        proof = ah.verify(source, twin, tokens).layers[1]
        assert not proof.passed
        assert proof.tightness > 10


def test_a_wrong_closed_form_fails(tiny, tokens):
    source = tiny("gpt2")
    twin = ah.convert(source)
    for bank in twin.banks:
        bank.gates = replace(bank.gates, activation=ah.gates.approximate("quick_gelu").activation)
    report = ah.verify(source, twin, tokens)
    assert not any(layer.passed for layer in report.layers)


def test_a_bank_that_is_gone_around_is_refused(tiny, tokens):
    source = tiny("gpt2")
    twin = ah.convert(source)
    vars(twin.blocks[0].mlp)["forward"] = source.blocks[0].mlp.original_component.forward
    with pytest.raises(ah.AllHeadsError, match="one that goes around L0"):
        ah.verify(source, twin, tokens)


def test_nothing_but_heads_counts_as_proof(tiny, tokens):
    source = tiny("gpt2")
    twin = ah.convert(source)
    with pytest.raises(ah.AllHeadsError, match="slots or attention"):
        ah.verify(source, twin, tokens, evaluation="closed")
    with pytest.raises(ah.AllHeadsError, match="patterns in float32 or float64"):
        ah.verify(source, twin, tokens, pattern_dtype=torch.bfloat16)


def test_a_dead_output_coordinate_is_no_failure(tiny, tokens):
    source = tiny("gpt2")
    with torch.no_grad():
        projection = source.blocks[0].mlp.out
        projection.weight[:, 3] = 0.0
        projection.bias[3] = 0.0
    assert ah.verify(source, ah.convert(source), tokens).passed


def test_infinite_logits_on_both_sides_are_equal():
    logits = torch.tensor([[[0.0, -torch.inf, 1.0]]])
    gap = logit_gap(logits, logits)
    assert (gap.largest, gap.kl.tolist()) == (0.0, [0.0])
    assert logit_gap(logits, torch.zeros(1, 1, 3)).largest == float("inf")


def test_other_thresholds_are_held_against_the_same_figures(tiny, tokens):
    source = tiny("gpt2")
    report = ah.verify(source, ah.convert(source), tokens)
    strict = report.against(Thresholds(max_logit_error=0.0, mean_kl=-1.0))
    assert report.passed and not strict.passed
    assert [failure.split()[0] for failure in strict.failures][-2:] == ["mean_kl", "mean_kl_closed"]
    assert strict.max_logit_error == report.max_logit_error
    assert [row[:3] for row in strict.rows()] == [row[:3] for row in report.rows()]
    assert [row[3] for row in strict.rows()][:2] == ["0.0e+00", "-1.0e+00"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_thresholds_stay_meaningful_in_half_precision(dtype):
    limits = Thresholds.default(dtype, 1e-6)
    assert limits.max_logit_error <= 0.5
    assert limits.mean_kl <= 1e-3
