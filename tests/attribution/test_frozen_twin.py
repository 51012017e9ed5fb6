"""A frozen twin has the live logits; contexts nest, other threads are told, and nothing stays behind."""

from __future__ import annotations

import threading

import pytest
import torch

import allheads as ah
from allheads.attribution.freezing import freezing
from allheads.attribution.frozen_twin import _FROZEN
from allheads.attribution.rules import RULES
from allheads.models.frozen_norms import FrozenNorm
from allheads_labs import zoo

IDS = torch.tensor([[5, 9, 30, 22, 41, 7]])
OTHER = torch.tensor([[8, 40, 12, 33, 6, 21]])


@pytest.fixture
def twin():
    return ah.convert(zoo.build("LlamaForCausalLM", dtype=torch.float64).bridge)


def logit(twin, ids=IDS, token=11):
    with torch.no_grad():
        return float(twin(ids)[0, -1, token])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_that_is_called_twice_has_two_scales(dtype):
    """NanoChat's last norm is also its first."""
    twin = ah.convert(zoo.build("NanoChatForCausalLM", seed=3, dtype=dtype).bridge)
    close = 1e-12 if dtype == torch.float64 else 1e-5
    for rule in ("half", "value", "gate", "live", "relp"):
        found = ah.attribute(twin, IDS, 11, rule=rule)
        assert found.target_value == pytest.approx(logit(twin), abs=close)
        if RULES[rule].complete:
            assert found.total == pytest.approx(logit(twin), abs=close)
    with ah.frozen(twin, IDS), torch.no_grad():
        assert logit(twin) == pytest.approx(found.target_value, abs=close)


@pytest.mark.parametrize(
    "ask",
    [
        lambda twin: ah.attribute(twin, IDS, 11),
        lambda twin: ah.attribute(twin, IDS, 11, rule="live"),
        lambda twin: ah.graph(twin, IDS, 11, budget=3),
        lambda twin: ah.attribute_pattern(twin, IDS, "L1.N3"),
        lambda twin: ah.frozen(twin, IDS).__enter__(),
    ],
)
def test_what_is_frozen_is_compared_with_what_is_live(monkeypatch, ask):
    """Whoever takes the first scale of a norm for all its calls is found out, and told where."""
    twin = ah.convert(zoo.build("NanoChatForCausalLM", seed=3).bridge)
    monkeypatch.setattr(FrozenNorm, "_call", lambda self, calls: calls[0])
    with pytest.raises(ah.AllHeadsError, match=r"NanoChatRMSNorm at model.norm that writes something else"):
        ask(twin)
    monkeypatch.undo()
    assert not _FROZEN
    assert ah.attribute(twin, IDS, 11).target_value == pytest.approx(logit(twin), abs=1e-5)


def test_a_norm_that_clips_is_refused(twin):
    norm = twin.original_model.model.norm
    inner = norm.original_component
    forward = inner.forward
    inner.forward = lambda x: forward(x).clamp(-0.5, 0.5)
    for rule in ("half", "live"):
        with pytest.raises(ah.AllHeadsError, match="norms that only scale what they read, got a LlamaRMSNorm"):
            ah.attribute(twin, IDS, 11, rule=rule)
    assert ah.attribute(twin, IDS, 11, rule="gradient").target_value == logit(twin)


class Gated(torch.nn.Module):
    """A norm times a gate that comes along."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x, gate):
        return self.weight * x * x.square().mean(-1, keepdim=True).rsqrt() * gate.sigmoid()


class Taking(torch.nn.Module):
    """Gives a gated norm its gate."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x, x.flip(-1))


@pytest.mark.parametrize("rule", ["half", "live", "relp"])
def test_norms_that_read_more_than_a_stream_are_refused(twin, rule):
    bridged = twin.original_model.model.norm
    bridged.set_original_component(Taking(Gated(bridged.original_component.weight)))
    with pytest.raises(ah.AllHeadsError, match=r"a Gated at model.norm.norm that reads more than a stream"):
        ah.attribute(twin, IDS, 11, rule=rule)
    assert ah.attribute(twin, IDS, 11, rule="gradient").target_value == logit(twin)


def test_float64_is_kept_through_norms_of_float32(twin):
    """What they round away is a constant of its own, so frozen logits are the live ones to float64."""
    with torch.no_grad():
        own = twin(IDS)
        with ah.frozen(twin, IDS):
            assert (twin(IDS) - own).abs().max() < 1e-13
    rounding = {name: effect for name, (effect, _) in ah.attribute(twin, IDS, 11).constants.items()}
    assert list(rounding) == [name for name in rounding if name.endswith("norm.rounding")]
    assert 1e-12 < sum(map(abs, rounding.values())) < 1e-5
    single = ah.convert(zoo.build("LlamaForCausalLM").bridge)
    assert not ah.attribute(single, IDS, 11).constants


def test_it_is_frozen_in_inference_mode_too(twin):
    own = twin(IDS)
    for place in (torch.inference_mode, torch.no_grad):
        with place(), ah.frozen(twin, IDS):
            assert (twin(IDS) - own).abs().max() < 1e-12


def test_contexts_nest(twin):
    own, other = logit(twin), logit(twin, OTHER)
    found = ah.attribute(twin, IDS, 11)
    ablated = ("blocks.0.mlp.hook_post", lambda post, hook: post.index_fill(2, torch.tensor([3]), 0.0))
    predicted = own - sum(part.effect for part in found.of("L0.N3"))

    def held():
        with twin.hooks(fwd_hooks=[ablated]):
            return logit(twin)

    with ah.frozen(twin, IDS):
        assert held() == pytest.approx(predicted, abs=1e-12)
        again = ah.attribute(twin, IDS, 11)
        assert torch.equal(again.neurons, found.neurons)
        assert torch.equal(again.by_source(), found.by_source())
        assert held() == pytest.approx(predicted, abs=1e-12)
        with ah.frozen(twin, OTHER, rule="value"):
            assert logit(twin, OTHER) == pytest.approx(other, abs=1e-12)
            with ah.frozen(twin, IDS[:, :4]):
                assert logit(twin, IDS[:, :4]) != 0.0
            assert logit(twin, IDS) != pytest.approx(own, abs=1e-3)
        assert held() == pytest.approx(predicted, abs=1e-12)
        inside = found.confirm(5)
        assert ah.attribute_pattern(twin, IDS[:, :5], "L1.N3").query.completeness_error < 1e-12
        with pytest.raises(ah.AllHeadsError, match="a token from 0"):
            ah.attribute(twin, IDS, 10**6)
        assert held() == pytest.approx(predicted, abs=1e-12)
    assert torch.equal(inside.live, found.confirm(5).live)
    assert logit(twin) == own
    assert abs(held() - predicted) > 1e-6
    assert not _FROZEN


def test_contexts_may_end_in_any_order(twin):
    own = logit(twin)
    first, second = ah.frozen(twin, IDS), ah.frozen(twin, OTHER)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logit(twin, OTHER) == pytest.approx(logit_outside(twin, OTHER), abs=1e-12)
    assert logit(twin) != pytest.approx(own, abs=1e-3)
    second.__exit__(None, None, None)
    assert logit(twin) == own
    untouched(twin)


def logit_outside(twin, ids):
    with freezing(twin, RULES["gradient"]):
        return logit(twin, ids)


def untouched(twin):
    assert not _FROZEN
    assert all(layer.bank.frozen is None for layer in twin.layers)
    assert not any("forward" in vars(module) for module in twin.original_model.modules() if norm_like(module))
    assert not sum(len(point.fwd_hooks) for point in twin.hook_dict.values())
    assert not twin.original_model._forward_pre_hooks and not twin.original_model._forward_hooks
    assert not any(layer.bank._forward_pre_hooks for layer in twin.layers)


def norm_like(module):
    return "Norm" in type(module).__name__


def test_another_length_is_refused(twin):
    with ah.frozen(twin, IDS):
        for run in (
            lambda: twin(IDS[:, :5]),
            lambda: twin(IDS[:, :1]),
            lambda: twin(IDS.repeat(1, 2)),
            lambda: ah.corpus.means(twin, [IDS[:, :4]]),
        ):
            with pytest.raises(ah.AllHeadsError, match="the prompt of 6 tokens on which the twin is frozen"):
                run()
        assert twin(IDS.repeat(3, 1)).shape[0] == 3
    with ah.frozen(twin, IDS[:, :1]), pytest.raises(ah.AllHeadsError, match="the prompt of 1 token"):
        twin(IDS)


def test_heads_of_a_neuron_cannot_be_changed_while_frozen(twin):
    """They are frozen together: a hook there would have no effect, and the logit would not be the live one."""
    with ah.pin(twin, {"L1.N3.0": 1.0}):
        with pytest.raises(ah.AllHeadsError, match="whose heads are frozen together"):
            ah.attribute(twin, IDS, 11)
        assert ah.attribute(twin, IDS, 11, rule="gradient").target_value == logit(twin)
    with (
        ah.frozen(twin, IDS),
        ah.patch(twin, {"L1.N3.0": 1.0}),
        pytest.raises(ah.AllHeadsError, match="whose heads are frozen together"),
    ):
        twin(IDS)
    untouched(twin)


def test_a_run_that_breaks_off_is_recorded_anew(twin):
    def stop(value, hook):
        raise KeyboardInterrupt

    own = logit(twin, OTHER)
    with freezing(twin, RULES["half"]):
        with pytest.raises(KeyboardInterrupt), twin.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", stop)]):
            twin(IDS)
        assert logit(twin, OTHER) == pytest.approx(own, abs=1e-12)
        assert logit(twin, OTHER) == pytest.approx(own, abs=1e-12)
    untouched(twin)


def test_what_is_not_linear_is_not_called_frozen():
    """What attention may look at is chosen by an indexer, which follows the stream."""
    twin = ah.convert(zoo.build("GlmMoeDsaForCausalLM").bridge)
    ids = torch.arange(3, 15)[None]
    with pytest.raises(ah.AllHeadsError, match="linear under rule 'half', got GlmMoeDsaForCausalLM, off a line"):
        ah.frozen(twin, ids).__enter__()
    untouched(twin)


def test_another_thread_is_told_at_once(twin):
    own, answers = logit(twin), []
    expected = ah.attribute(twin, IDS, 11).neurons

    def run(ask):
        try:
            answers.append(ask())
        except BaseException as error:
            answers.append(error)

    def elsewhere(ask):
        thread = threading.Thread(target=run, args=(ask,))
        thread.start()
        thread.join()
        return answers.pop()

    asks = [lambda: logit(twin), lambda: ah.attribute(twin, OTHER, 3), lambda: ah.frozen(twin, IDS).__enter__()]
    with ah.frozen(twin, IDS):
        for ask in asks:
            assert isinstance(elsewhere(ask), ah.AllHeadsError)
        assert torch.equal(ah.attribute(twin, IDS, 11).neurons, expected)
    assert elsewhere(asks[0]) == own
    untouched(twin)


def test_many_threads_are_right_or_refused(twin):
    expected = {ids: ah.attribute(twin, ids, 11) for ids in (IDS, OTHER)}
    own, wrong, refused, right = logit(twin), [], [], []

    def work(ids):
        for _ in range(6):
            try:
                found = ah.attribute(twin, ids, 11)
            except ah.AllHeadsError as error:
                refused.append(str(error))
            except BaseException as error:
                wrong.append(error)
            else:
                same = torch.equal(found.neurons, expected[ids].neurons)
                (right if same else wrong).append(found.target_value)

    threads = [threading.Thread(target=work, args=(ids,)) for ids in (IDS, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and right
    assert all("another thread" in message for message in refused)
    assert logit(twin) == own
    untouched(twin)


def test_what_a_stream_begins_with_beside_embeddings_is_a_constant(twin):
    """A table of positions that is computed, for example: it has a name, and is known to be constant."""
    table = torch.randn(1, 6, twin.cfg.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = "blocks.0.hook_resid_pre"
    with twin.hooks(fwd_hooks=[(start, lambda value, hook: value + table)]):
        found, graph = ah.attribute(twin, IDS, 11), ah.graph(twin, IDS, 11, budget=10)
        assert found.completeness_error < 1e-12
        with ah.frozen(twin, IDS):
            whole = logit(twin)
            with twin.hooks(fwd_hooks=[(start, lambda value, hook: value - table)]):
                assert whole - logit(twin) == pytest.approx(found.constants[start][0], abs=1e-10)
        ends = sum(node.effect for node in graph.nodes if node.kind in "EC")
        assert ends == pytest.approx(found.target_value, abs=1e-10)
    with twin.hooks(fwd_hooks=[(start, lambda value, hook: value + 0.1 * value**2)]):
        for ask in (ah.attribute, ah.graph):
            with pytest.raises(ah.AllHeadsError, match="linear under rule 'half', got LlamaForCausalLM, off a line"):
                ask(twin, IDS, 11)
        # What is curved has no constant, and these rules do not say that it is straight.
        for rule in ("live", "gradient"):
            assert start not in ah.attribute(twin, IDS, 11, rule=rule).constants
