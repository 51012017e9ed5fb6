"""Contributions sum to the whole at every cut, and predict what interventions in the held twin do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import allheads as ah
from allheads.attribution import attribute as backward
from allheads.attribution.freezing import freezing
from allheads.attribution.rules import RULES, rule_named
from allheads_labs import zoo

COMPLETE = ["value", "gate", "half"]
FAMILIES = [
    "LlamaForCausalLM",  # gated, RMSNorm, grouped keys
    "GPT2LMHeadModel",  # plain, biases everywhere, learned positions
    "OPTForCausalLM",  # containerless, attention that only shows its patterns
    "BloomForCausalLM",  # a norm behind the embedding, the MLP adds the residual
    "GPTNeoXForCausalLM",  # attention and MLP side by side
    "Olmo2ForCausalLM",  # norms after
    "GraniteForCausalLM",  # factors on embedding, residual, attention and logits
    "Gemma2ForCausalLM",  # norms on both sides, capped logits
    "BertForMaskedLM",  # both directions, post-norm, a head with an activation
]
NOT_LINEAR = {"Gemma2ForCausalLM", "BertForMaskedLM"}


@pytest.fixture(scope="module")
def twins():
    made = {}

    def make(name, dtype=torch.float64):
        if (name, dtype) not in made:
            sample = zoo.build(name, dtype=dtype)
            made[name, dtype] = ah.convert(sample.bridge), sample.inputs["input"]
        return made[name, dtype]

    return make


@pytest.mark.parametrize("rule", COMPLETE)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_cut_sums_to_the_target(twins, name, rule):
    # Random networks cancel more than trained ones; the limits for those are in test_smollm_circuits.py.
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 5e-5)):
        twin, ids = twins(name, dtype)
        found = ah.attribute(twin, ids, (3, 5), rule=rule, position=-2)
        with torch.no_grad():
            logits = twin(ids)[0, -2]
        assert abs(found.target_value - float(logits[3] - logits[5])) < 1e-5
        assert found.completeness_error < close
        assert all(abs(found.cut(layer) - found.target_value) < 100 * close for layer in range(len(found.stream)))
        assert (found.intercept != 0.0) == (name in NOT_LINEAR)


@pytest.mark.parametrize("rule", COMPLETE)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NOT_LINEAR])
def test_effects_are_what_interventions_do(twins, name, rule):
    twin, ids = twins(name)
    found = ah.attribute(twin, ids, 7, rule=rule)
    last = ids.shape[1] - 1
    changes = {
        "L0.A1": ("blocks.0.attn.hook_z", lambda z: z[:, :, 1].zero_()),
        "L1.A0": ("blocks.1.attn.hook_z", lambda z: z[:, :, 0].zero_()),
        "L0.N3": ("blocks.0.mlp.hook_post", lambda post: post[:, :, 3].zero_()),
        "L1.N4": ("blocks.1.mlp.hook_post", lambda post: post[:, :, 4].zero_()),
    }
    with ah.frozen(twin, ids, rule=rule), torch.no_grad():
        before = twin(ids)[0, last, 7]
        for label, (point, zero) in changes.items():

            def edit(value, hook, zero=zero):
                value = value.clone()
                zero(value)
                return value

            with twin.hooks(fwd_hooks=[(point, edit)]):
                change = float(twin(ids)[0, last, 7] - before)
            assert change == pytest.approx(-sum(each.effect for each in found.of(label)), abs=1e-11), label


@pytest.mark.parametrize("rule", COMPLETE)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NOT_LINEAR])
def test_the_frozen_twin_is_linear(twins, name, rule):
    twin, ids = twins(name)
    with torch.no_grad():
        own = twin(ids)
        delta = torch.randn(1, ids.shape[1], twin.cfg.d_model, dtype=own.dtype, generator=torch.manual_seed(0))
        with ah.frozen(twin, ids, rule=rule):
            outs = []
            for factor in (0.0, 1.0, -3.0, 100.0):
                moved = [("blocks.0.hook_resid_pre", lambda x, hook, factor=factor: x + factor * delta)]
                with twin.hooks(fwd_hooks=moved):
                    outs.append(twin(ids))
    assert (outs[0] - own).abs().max() < 1e-5 * own.abs().max()
    step = outs[1] - outs[0]
    assert step.abs().max() > 1e-3
    for out, factor in zip(outs[2:], (-3.0, 100.0), strict=True):
        assert ((out - outs[0]) - factor * step).abs().max() < 1e-11 * max(1.0, float(out.abs().max()))
    with torch.no_grad():
        assert torch.equal(twin(ids), own)  # nothing stays held


@pytest.mark.parametrize("name", FAMILIES)
def test_direct_parts(twins, name):
    """They are those of a run in which all that is written is a leaf; the last layer has no other way to the logits."""
    twin, ids = twins(name)
    found = ah.attribute(twin, ids, 7)
    begins = tuple(found.begins)
    cut = backward.ForwardCache(twin, cut=True, begins=begins)
    with torch.enable_grad(), freezing(twin, found.question.rule):
        twin(ids)  # which is recorded
        with cut.recording():
            value = twin(ids)[0, -1, 7]
        leaves = {site.name: (site, cut.leaves[site.point]) for site in cut.sites}
        found_there = torch.autograd.grad(value, [leaf for _, leaf in leaves.values()], allow_unused=True)
    for (label, (site, leaf)), gradient in zip(leaves.items(), found_there, strict=True):
        effects = torch.zeros_like(leaf) if gradient is None else gradient * leaf.detach()
        by_hand = site.summed(effects[0]) if site.kind == "N" else effects[0].sum(-1).T
        assert torch.allclose(found.direct[label], by_hand, atol=1e-12), label
    last = len(twin.banks) - 1
    for each in found.of(f"L{last}.N2"):
        assert each.effect == pytest.approx(each.direct, abs=1e-12)
    assert any(abs(each.effect - each.direct) > 1e-6 for each in found.of("L0.N2"))
    neurons = sum(layer["neurons"] for layer in found.by_layer().values())
    assert neurons == pytest.approx(float(found.neurons_direct.sum()))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Olmo2ForCausalLM"])
def test_all_direct_parts_sum_to_the_target(twins, name):
    """Without constants: everything that is written into the stream, counted once."""
    twin, ids = twins(name)
    found = ah.attribute(twin, ids, 7)
    embedded = backward.ForwardCache(twin)
    with torch.enable_grad(), freezing(twin, RULES["value"]):
        with embedded.recording():
            value = twin(ids)[0, -1, 7]
        end = embedded.activations[f"blocks.{len(twin.banks) - 1}.hook_resid_post"]
        (gradient,) = torch.autograd.grad(value, [end])
    start = float((gradient * embedded.activations["blocks.0.hook_resid_pre"].detach()).sum())
    parts = float(found.heads_direct.sum() + found.neurons_direct.sum())
    # The only constants here are what norms of float32 round; those after the last layer go straight into the target.
    last = sum(effect for effect, layer in found.constants.values() if layer == len(twin.layers))
    rounding = sum(abs(effect) for effect, _ in found.constants.values())
    assert rounding < 1e-6
    allowed = 1e-11 + (rounding if name == "Olmo2ForCausalLM" else 0.0)  # whose norms come after, inside the layers
    assert start + parts + last == pytest.approx(found.target_value, abs=allowed)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM"])
def test_sources_sum_to_the_head(twins, name):
    twin, ids = twins(name)
    found = ah.attribute(twin, ids, 7)
    sources = found.by_source()
    assert sources.shape == (*found.heads.shape, ids.shape[1])
    assert torch.allclose(sources.sum(-1), found.heads, atol=1e-12)
    assert not sources[0, 0].triu(1).any()


def test_shares_are_mixed_linearly(twins):
    twin, ids = twins("LlamaForCausalLM")
    value, gate, half = (ah.attribute(twin, ids, 7, rule=rule) for rule in COMPLETE)
    assert not torch.allclose(value.embeddings, gate.embeddings, atol=1e-3)
    last = len(twin.banks) - 1
    # One layer's gates are linear in the share; through several, shares multiply.
    assert torch.allclose(half.stream[last], (value.stream[last] + gate.stream[last]) / 2, atol=1e-12)
    quarter = ah.attribute(twin, ids, 7, rule=replace(RULES["half"], name="quarter", gate_share=0.25))
    assert torch.allclose(quarter.stream[last], (3 * value.stream[last] + gate.stream[last]) / 4, atol=1e-12)


@pytest.mark.parametrize("evaluation", ["closed", "slots"])
def test_the_value_is_that_of_the_evaluation(twins, evaluation):
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel"):
        twin, ids = twins(name)
        with twin.evaluated(evaluation), torch.no_grad():
            own = float(twin(ids)[0, -1, 7])
        with twin.evaluated(evaluation):
            found = ah.attribute(twin, ids, 7)
        # Float64 throughout, although an RMSNorm of transformers computes in float32: what it rounds is a constant.
        size = float(found.embeddings.abs().sum() + found.stream[-1].abs().sum())
        assert abs(found.target_value - own) <= 1e-13 * size


def test_incomplete_rules_do_not_claim_it(twins):
    twin, ids = twins("LlamaForCausalLM")
    for rule in ("live", "relp", "gradient"):
        assert not rule_named(rule).complete
        assert ah.attribute(twin, ids, 7, rule=rule).completeness_error > 1e-3
    leaf = []

    def start(x, hook):
        leaf.append(x.detach().requires_grad_())
        return leaf[0]

    with twin.hooks(fwd_hooks=[("embed.hook_out", start)]):
        (gradient,) = torch.autograd.grad(twin(ids)[0, -1, 7], leaf)
    found = ah.attribute(twin, ids, 7, rule="gradient")
    assert torch.allclose(found.embeddings, (gradient * leaf[0])[0].sum(-1).detach(), atol=1e-12)


def test_targets(twins):
    twin, ids = twins("LlamaForCausalLM")
    weights = torch.zeros(twin.cfg.d_vocab_out, dtype=torch.float64)
    weights[3], weights[5] = 1.0, -1.0
    pair, weighed = ah.attribute(twin, ids, (3, 5)), ah.attribute(twin, ids, weights)
    assert torch.equal(pair.neurons, weighed.neurons)
    curved = ah.attribute(twin, ids, lambda logits: logits.log_softmax(-1)[3])
    assert curved.intercept != 0.0
    assert curved.total == pytest.approx(curved.target_value, abs=1e-11)
    assert ah.attribute(twin, ids, lambda logits: logits[3] - logits[5]).intercept == 0.0


def test_reading_the_result(twins):
    twin, ids = twins("LlamaForCausalLM")
    found = ah.attribute(twin, ids, 7)
    everything = list(found)
    assert len(everything) == found.heads.numel() + found.neurons.numel()
    by_size = found.top(5)
    assert [each.effect for each in by_size] == sorted((each.effect for each in everything), key=abs)[::-1][:5]
    assert [e.effect for e in found.top(4, by="sign", kind="A")] == sorted(found.heads.flatten().tolist())[::-1][:4]
    for each in by_size:
        assert each == found.of(each.label)[each.position]
    frame = found.to_dataframe(6)
    assert list(frame.columns) == ["label", "layer", "kind", "position", "token", "effect", "direct"]
    assert frame.effect[0] == by_size[0].effect
    assert frame.token[0] == found.tokens[by_size[0].position]


def test_nothing_of_the_twin_is_changed(twins):
    twin, ids = twins("GPT2LMHeadModel")
    before = {name: (p.requires_grad, p.grad) for name, p in twin.original_model.named_parameters()}
    hooks = sum(len(point.fwd_hooks) for point in twin.hook_dict.values())
    with torch.no_grad():
        own = twin(ids)
        ah.attribute(twin, ids, 7)  # gradients are taken where a user has switched them off
    assert {name: (p.requires_grad, p.grad) for name, p in twin.original_model.named_parameters()} == before
    assert sum(len(point.fwd_hooks) for point in twin.hook_dict.values()) == hooks
    assert all(bank.frozen is None for bank in twin.banks)
    assert torch.equal(twin(ids), own)


def test_what_cannot_be_read(twins):
    twin, ids = twins("LlamaForCausalLM")
    length, d_vocab = ids.shape[1], twin.cfg.d_vocab
    cases = {
        "a token from 0": lambda: ah.attribute(twin, ids, d_vocab),
        "a token's id": lambda: ah.attribute(twin, ids, " Mary"),
        "two different tokens": lambda: ah.attribute(twin, ids, (3, 3)),
        f"a position from -{length} to {length - 1}": lambda: ah.attribute(twin, ids, 3, position=length),
        "a rule out of": lambda: ah.attribute(twin, ids, 3, rule="best"),
        "a rule, by name or a Rule": lambda: ah.attribute(twin, ids, 3, rule=replace(RULES["half"], gate_share=2.0)),
        "one text, got 2": lambda: ah.attribute(twin, ids.repeat(2, 1), 3),
        "at least one token": lambda: ah.attribute(twin, ids[:, :0], 3),
        "ids from 0 to": lambda: ah.attribute(twin, ids + d_vocab, 3),
        "token ids, got text": lambda: ah.attribute(twin, "Mary", 3),
        "an attention-only twin": lambda: ah.attribute(zoo.build("LlamaForCausalLM").bridge, ids, 3),
        "one number": lambda: ah.attribute(twin, ids, lambda logits: logits),
        r"weights \[": lambda: ah.attribute(twin, ids, torch.ones(3)),
        "a label up to L1.N": lambda: ah.attribute(twin, ids, 3).of("L1.N99999"),
        "a cut from 0 to 2": lambda: ah.attribute(twin, ids, 3).cut(3),
        "by='size' or 'sign'": lambda: ah.attribute(twin, ids, 3).top(3, by="name"),
        "a rule under which the twin is linear": lambda: ah.frozen(twin, ids, rule="relp").__enter__(),
    }
    for message, call in cases.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    with torch.inference_mode(), pytest.raises(ah.AllHeadsError, match="inference_mode"):
        ah.attribute(twin, ids, 3)


def test_parts_that_are_not_held_are_named(twins):
    """Attention that multiplies its output by a gate of its own would miss the sum: it is refused, not approximated."""
    twin, ids = twins("LlamaForCausalLM")

    def gate(value, hook):
        return value * value.mean(-1, keepdim=True).sigmoid()

    with (
        twin.hooks(fwd_hooks=[("blocks.0.attn.hook_out", gate)]),
        pytest.raises(ah.AllHeadsError, match="linear under rule 'half', got LlamaForCausalLM, whose parts miss"),
    ):
        ah.attribute(twin, ids, 7)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "Olmo2ForCausalLM"])
@pytest.mark.parametrize("by_position", [False, True])
def test_relative_to_means(twins, name, by_position):
    """Every part loses what its mean is worth; the sum stays the target."""
    twin, ids = twins(name)
    other = ids.flip(1)
    means = ah.corpus.means(twin, [ids, other], by_position=by_position)
    plain = ah.attribute(twin, ids, 7)
    relative = plain.relative_to(means)
    assert relative.baseline != 0.0
    assert relative.total == pytest.approx(plain.target_value, abs=1e-11)
    assert relative.completeness_error < 1e-12
    at_mean = {name: value.to(torch.float64) for name, value in means.values.items()}
    with ah.frozen(twin, ids), torch.no_grad():
        own = twin(ids)[0, -1, 7]
        for label, point, index in (
            ("L0.N3", "blocks.0.mlp.hook_post", 3),
            ("L0.A1", "blocks.0.attn.hook_z", 1),
        ):

            def to_mean(value, hook, point=point, index=index):
                value = value.clone()
                value[:, :, index] = at_mean[point].select(1 if by_position else 0, index)
                return value

            with twin.hooks(fwd_hooks=[(point, to_mean)]):
                change = float(own - twin(ids)[0, -1, 7])
            assert change == pytest.approx(sum(each.effect for each in relative.of(label)), abs=1e-11)
    direct = relative.neurons_direct - plain.neurons_direct
    assert direct.abs().max() > 1e-6


def test_means_that_do_not_fit(twins):
    twin, ids = twins("LlamaForCausalLM")
    short = ah.corpus.means(twin, [ids[:, :4]], by_position=True)
    with pytest.raises(ah.AllHeadsError, match="or by position"):
        ah.attribute(twin, ids, 7).relative_to(short)
    with pytest.raises(ah.AllHeadsError, match="prompts of 12 tokens each, got one of 4"):
        ah.corpus.means(twin, [ids, ids[:, :4]], by_position=True)


def test_the_first_position_can_be_left_out(twins):
    twin, ids = twins("LlamaForCausalLM")
    found = ah.attribute(twin, ids, 7)
    everything = found.heads.numel() + found.neurons.numel()
    first = everything // ids.shape[1]
    for by in ("size", "sign"):
        without = found.top(everything, by=by, skip_first=True)
        assert len(without) == everything - first
        assert without == [each for each in found.top(everything, by=by) if each.position] or len(
            {each.effect for each in without}
        ) < len(without)
