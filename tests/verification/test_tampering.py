"""What a text does not show is compared by value: nothing that differs from the source passes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import allheads as ah
from allheads.gates.approximation import DEFAULT_TOLERANCE
from allheads.heads.bank import HeadBank
from allheads.models.compat import network_module
from allheads.verification.layers import prove_layer
from allheads_labs import zoo

ONE_TOKEN = torch.tensor([[7]])


@pytest.fixture(scope="module")
def honest(tiny, tokens):
    """What an honest twin of each kind gets."""
    kinds = ("gpt2", "opt", "llama")
    return {kind: ah.verify(tiny(kind), ah.convert(tiny(kind)), tokens) for kind in kinds}


def _pair(tiny, kind, **options):
    source = tiny(kind, **options)
    return source, ah.convert(source)


def _replaced(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer with memory of its own, to write to; of a bank, what its MLP keeps for it."""
    if isinstance(module, HeadBank):
        view = module.views[name]
        _replaced(view.owner, view.name)
        return view.read().detach()
    kept = module._parameters if name in module._parameters else module._buffers
    new = kept[name].detach().clone()
    kept[name] = nn.Parameter(new) if isinstance(kept[name], nn.Parameter) else new
    return kept[name].detach()


def _failures(source, twin, ids) -> str:
    report = ah.verify(source, twin, ids)
    assert not report.passed
    return "\n".join(report.failures)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_bank_cannot_widen_its_own_bound(tiny, tokens, honest, kind):
    source, twin = _pair(tiny, kind)
    gates = twin.banks[1].gates
    twin.banks[1].gates = replace(gates, delta=tuple(1.00018 * d for d in gates.delta), max_error=1e9, domain=math.inf)
    report = ah.verify(source, twin, tokens)
    assert any(f.startswith("L1: its gates have no certificate") for f in report.failures)
    assert report.layers[0].bound == honest[kind].layers[0].bound
    assert not report.layers[1].passed


@pytest.mark.parametrize("claim", [{"max_error": 1e9}, {"max_error": 0.0}, {"domain": math.inf}, {"domain": 1.0}])
def test_what_gates_say_of_themselves_is_not_believed(tiny, tokens, honest, claim):
    source, twin = _pair(tiny, "llama")
    twin.banks[2].gates = replace(twin.banks[2].gates, **claim)
    report = ah.verify(source, twin, tokens)
    assert [p.bound for p in report.layers] == [p.bound for p in honest["llama"].layers]
    assert [p.domain for p in report.layers] == [p.domain for p in honest["llama"].layers]
    assert any(f.startswith("L2: its gates claim") for f in report.failures)


@pytest.mark.parametrize("tolerance", [1.0, 1e-3])
def test_thresholds_come_from_the_certificates(tiny, tokens, honest, tolerance):
    source, twin = _pair(tiny, "gpt2")
    twin.tolerance = tolerance
    report = ah.verify(source, twin, tokens)
    assert report.thresholds == honest["gpt2"].thresholds
    assert report.tolerance == max(bank.gates.max_error for bank in twin.banks) <= DEFAULT_TOLERANCE


def test_gates_that_are_coarser_than_the_twin_says_fail(tiny, tokens):
    source, twin = _pair(tiny, "gpt2")
    twin.banks[0].gates = ah.gates.approximate(twin.banks[0].gates.activation, tolerance=1e-3)
    assert "L0: its gates are certified to" in _failures(source, twin, tokens)
    twin.tolerance = 1e-3
    assert ah.verify(source, twin, tokens).passed


def test_a_saved_twin_cannot_loosen_its_thresholds(tiny, tokens, honest, tmp_path):
    source, twin = _pair(tiny, "gpt2")
    twin.tolerance = 1.0
    twin.banks[0].gates = replace(twin.banks[0].gates, max_error=1e9)
    ah.save(twin, tmp_path / "twin")
    loaded = ah.load(tmp_path / "twin", source=source)
    assert (loaded.tolerance, loaded.banks[0].gates.max_error) == (1.0, 1e9)
    report = ah.verify(source, loaded, tokens)
    assert report.thresholds == honest["gpt2"].thresholds
    assert report.layers[0].bound == honest["gpt2"].layers[0].bound


@pytest.mark.parametrize("change", [{"limit": math.inf}, {"limit": 1.0}, {"by_theorem": False}])
def test_a_domain_is_that_of_the_source(tiny, tokens, change):
    source, twin = _pair(tiny, "llama")
    first, *others = twin.layers
    twin.layers = (replace(first, domain=replace(first.domain, **change)), *others)
    assert "L0: the twin says that preactivations end at" in _failures(source, twin, tokens)


def test_gates_that_end_before_the_inputs_do_fail(tiny, tokens):
    """A source whose norm was changed behind its twin's back, in the memory that both share."""
    source, twin = _pair(tiny, "llama")
    with torch.no_grad():
        source.blocks[1].ln2.weight.mul_(40.0)
    assert "L1: its gates hold up to" in _failures(source, twin, tokens)


def test_activations_outside_the_domain_are_counted(tiny, tokens):
    from allheads.twin.convert import read

    source, twin = _pair(tiny, "llama")
    mlp, layer = read(source).mlps[1], twin.layers[1]
    direction = mlp.tensors["W_gate"][:, :1].detach().T
    far = 1.01 * layer.bank.gates.domain / float(direction.square().sum()) * direction
    assert prove_layer(mlp, layer, 0.5 * far, layer.domain, 0.0).violations == 0
    proof = prove_layer(mlp, layer, far, layer.domain, 0.0)
    assert proof.violations >= 1
    assert not proof.passed


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_twin_in_which_no_bank_runs_is_refused(tiny, tokens, kind):
    source, twin = _pair(tiny, kind)
    for mine, theirs in zip(source.blocks, twin.blocks, strict=True):
        layer = network_module(theirs)
        layer._modules["mlp"] = network_module(mine.mlp)
    with pytest.raises(ah.AllHeadsError, match=r"one that goes around L0, L1"):
        ah.verify(source, twin, tokens)


def test_a_bank_that_no_layer_records_is_refused(tiny, tokens):
    source, twin = _pair(tiny, "gpt2")
    first, second = twin.layers
    twin.layers = (replace(first, bank=second.bank), second)
    with pytest.raises(ah.AllHeadsError, match="goes around L0"):
        ah.verify(source, twin, tokens)


def test_frozen_gates_are_refused(tiny, tokens):
    source, twin = _pair(tiny, "gpt2")
    twin.banks[1].freeze()
    with pytest.raises(ah.AllHeadsError, match="frozen ones in L1"):
        ah.verify(source, twin, tokens)


def test_closed_neurons_that_were_deleted_are_noticed_and_named(tiny):
    source, twin = _pair(tiny, "opt")
    shut = ah.verify(source, twin, ONE_TOKEN)
    assert shut.passed, shut.failures
    assert shut.layers[0].never_open > 0
    assert any("neurons, which never open" in what and "are the source's" in what for what in shut.unreached)
    preactivations = source.run_with_cache(ONE_TOKEN, names_filter="blocks.0.mlp.hook_pre")[1]["blocks.0.mlp.hook_pre"]
    W_out = _replaced(twin.banks[0], "W_out")
    W_out[preactivations[0, 0] < -0.5] = 0.0
    report = ah.verify(source, twin, ONE_TOKEN)
    assert report.max_logit_error < 1e-5
    assert any(f.startswith("L0: W_O of its heads") for f in report.failures)
    assert any("never open" in what and "NOT all the source's" in what for what in report.unreached)


def test_experts_that_no_token_chose_are_compared():
    sample = zoo.build("MixtralForCausalLM")
    twin = ah.convert(sample.bridge)
    honest = ah.verify(sample.bridge, twin, {"input": ONE_TOKEN})
    silent = next(number for number, layer in enumerate(honest.layers) if not layer.rows)
    assert honest.passed
    assert any("never chosen" in what for what in honest.unreached)
    _replaced(twin.banks[silent], "W_out").mul_(7.0)
    failures = _failures(sample.bridge, twin, {"input": ONE_TOKEN})
    assert failures.startswith(f"{twin.layers[silent].location.stem}: W_O of its heads")


def _network(twin):
    return dict(twin.original_model.named_modules())


def _found(twin, name):
    """The network's own module whose path, without the bridge, ends like this."""
    return next(
        network_module(m)
        for path, m in _network(twin).items()
        if path.replace("._original_component", "").endswith(name)
    )


@pytest.mark.parametrize(
    ("kind", "module", "name", "rows", "factor"),
    [
        ("gpt2", "wpe", "weight", slice(20, None), 1.5),
        ("gpt2", "h.0.ln_1", "weight", slice(3, 4), 1.01),
        ("llama", "layers.1.self_attn.q_proj", "weight", slice(None), 5.0),
        ("llama", "lm_head", "weight", slice(9, 10), 1.01),
        ("llama", "model.norm", "weight", slice(5, 6), 1.001),
        ("llama", "rotary_emb", "inv_freq", slice(2, 3), 1.01),
    ],
)
def test_what_a_token_does_not_reach_is_compared(tiny, kind, module, name, rows, factor):
    source, twin = _pair(tiny, kind)
    _replaced(_found(twin, module), name)[rows] *= factor
    assert f"{module}.{name}: " in _failures(source, twin, ONE_TOKEN)


@pytest.mark.parametrize(
    ("kind", "module", "name", "factor"),
    [
        ("llama", "layers.0.input_layernorm", "variance_epsilon", 10.0),
        ("gpt2", "ln_f", "eps", 10.0),
        ("llama", "layers.2.self_attn", "scaling", 1.01),
        ("llama", "rotary_emb", "attention_scaling", 1.001),
    ],
)
@pytest.mark.parametrize("side", ["source", "twin"])
def test_numbers_beside_the_weights_are_compared(tiny, kind, module, name, factor, side):
    pair = dict(zip(("source", "twin"), _pair(tiny, kind), strict=True))
    changed = _found(pair[side], module)
    setattr(changed, name, factor * getattr(changed, name))
    assert f"{module}.{name}: " in _failures(**pair, ids=ONE_TOKEN)


def test_configurations_are_compared(tiny):
    source, twin = _pair(tiny, "llama")
    twin.original_model.config.rms_norm_eps *= 10
    assert "rms_norm_eps" in _failures(source, twin, ONE_TOKEN) or "config" in _failures(source, twin, ONE_TOKEN)


@pytest.mark.parametrize("point", ["blocks.1.mlp.hook_post", "blocks.1.mlp.hook_out", "blocks.0.attn.hook_out"])
def test_hooks_that_a_text_does_not_show_are_named(tiny, point):
    source, twin = _pair(tiny, "llama")
    twin.hook_dict[point].add_hook(lambda value, hook: value)
    assert "1 hooks in the twin" in _failures(source, twin, ONE_TOKEN)


def test_closed_is_held_against_the_noise_of_the_source(honest):
    for report in honest.values():
        limit = report.thresholds.max_logit_error_closed
        assert report.max_logit_error_closed <= limit < 1e-4
    strict = replace(honest["llama"].thresholds, max_logit_error_closed=-1.0)
    assert [f.split()[0] for f in honest["llama"].against(strict).failures] == ["max_logit_error_closed"]


def test_a_twin_in_another_dtype_is_refused(tiny, tokens):
    source, twin = _pair(tiny, "gpt2", dtype=torch.float64)
    twin.original_model.to(torch.float32)
    with pytest.raises(ah.AllHeadsError, match="in float64, got float32"):
        ah.verify(source, twin, tokens)


def test_edited_heads_are_reported_as_edited(tiny, tokens):
    source, twin = _pair(tiny, "gpt2")
    with twin.banks[1].edit() as heads:
        pass
    report = ah.verify(source, twin, tokens)
    assert report.passed and report.edited == ["L1"]
    assert "Edited heads in L1" in str(report)
    with torch.no_grad():
        heads.W_O[5] *= 1 + 1e-6
    assert "L1: W_O of its edited heads" in _failures(source, twin, tokens)


def test_patterns_that_are_too_coarse_fail(tiny, tokens):
    source, twin = _pair(tiny, "gpt2")
    twin.banks[0].pattern_dtype = torch.bfloat16
    assert "L0: its patterns are in bfloat16" in _failures(source, twin, tokens)


def test_the_report_says_what_was_not_reached(honest):
    text = str(honest["gpt2"])
    assert "Not reached by these texts: positions 17 to 63; their weights are the source's" in text
    assert honest["gpt2"].to_dict()["unreached"] == honest["gpt2"].unreached
