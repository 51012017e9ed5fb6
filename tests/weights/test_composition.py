"""Composition against dense matrices, over every pair of small networks."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch

import allheads as ah
from allheads.weights import factors, top_k
from allheads.weights.compositions import KINDS
from allheads_labs import zoo

OFFSETS = (0, 1, 5)


class Dense:
    """Every matrix of a network in full, in float64, from the modules themselves."""

    def __init__(self, twin):
        self.twin, self.blocks = twin, twin.blocks
        self.family = type(twin.original_model).__name__
        self.centred = self.family.startswith("GPT")
        self.parallel = self.family.startswith("GPTNeoX")
        self.d = twin.cfg.d_model - self.centred
        self.write, self.reads = cache(self._write), cache(self._reads)

    def gain(self, layer, name):
        """The matrix in front of weights that read: gain, and centring."""
        component = getattr(self.blocks[layer], name, None)
        if component is None:
            return torch.eye(self.twin.cfg.d_model).double()
        gain = component.original_component.weight.detach().double() + self.family.startswith("Gemma")
        C = torch.eye(len(gain)).double() - self.centred / len(gain)
        return C @ gain.diag()

    def head(self, layer, index):
        """Reading weights of a head with the norm folded in, and what it writes as the next reader sees it."""
        attn = self.blocks[layer].attn
        group = attn.W_Q.shape[0] // attn.W_K.shape[0]
        W_Q, W_K, W_V = (
            self.gain(layer, "ln1") @ W.detach().double()
            for W in (attn.W_Q[index], attn.W_K[index // group], attn.W_V[index // group])
        )
        return W_Q, W_K, self.seen(W_V @ attn.W_O[index].detach().double(), layer, "ln1_post")

    def seen(self, W, layer, name):
        """A write behind its norm, without what readers do not see."""
        after = self.gain(layer, name)
        return W @ after - self.centred * (W @ after).mean(-1, keepdim=True)

    def _write(self, label):
        if label.kind == "A":
            return self.head(label.layer, label.index)[2]
        return self.seen(
            self.twin.banks[label.layer].W_out.detach().double()[None, label.index], label.layer, "ln2_post"
        )

    def _reads(self, kind, label):
        """One matrix for each offset."""
        if label.kind == "N":
            bank = self.twin.banks[label.layer]
            W = bank.W_gate if bank.gated and kind == "query" else bank.W_in
            return [self.gain(label.layer, "ln2") @ W.detach().double()[:, label.index, None]]
        W_Q, W_K, OV = self.head(label.layer, label.index)
        if kind == "V":
            return [OV]
        turns = [self.rotation(offset, W_Q.shape[1]) for offset in OFFSETS]
        return [W_Q @ R @ W_K.T if kind == "Q" else (W_Q @ R @ W_K.T).T for R in turns]

    def rotation(self, offset, width):
        """Query at ``offset``, key at 0: rows are turned by every frequency."""
        R = torch.eye(width).double()
        if hasattr(self.twin, "rotary_emb"):
            frequencies = self.twin.rotary_emb.original_component.inv_freq.double()
            for i, angle in enumerate(offset * frequencies):
                j = i + len(frequencies)
                R[i, i] = R[j, j] = angle.cos()
                R[i, j], R[j, i] = angle.sin(), -angle.sin()
        return R

    def score(self, kind, writer, reader):
        W, reads = self.write(writer), self.reads(kind, reader)
        above = sum((W @ R).square().sum() for R in reads)
        return float((above / W.square().sum() / sum(R.square().sum() for R in reads)).sqrt())

    def reaches(self, writer, reader):
        if self.parallel or (writer.kind, reader.kind) != ("A", "N"):
            return writer.layer < reader.layer
        return writer.layer <= reader.layer


def _everything(twin, kind):
    return ah.weights.composition(twin, kind, k=10**6, offsets=OFFSETS)


def _kinds(twin):
    return [kind for kind in KINDS if twin.banks[0].gated or "value" not in kind]


def test_every_pair_is_the_dense_one(twin):
    dense = Dense(twin)
    labels = {str(each.label.neuron): each.label.neuron for each in twin.heads()}
    for kind in _kinds(twin):
        writer, reader = ("A" if side == "head" or side in "QKV" else "N" for side in kind.split("->"))
        expected = {
            (name, other)
            for (name, w), (other, r) in itertools.product(labels.items(), labels.items())
            if (w.kind, r.kind) == (writer, reader) and dense.reaches(w, r)
        }
        found = _everything(twin, kind)
        assert found.count == len(found) == len(expected)
        scores = {(pair.writer, pair.reader): pair.score for pair in found}
        assert scores.keys() == expected
        # Some neurons of each layer stand for all.
        for w, r in expected:
            if all(label.kind == "A" or label.index % 13 == 0 for label in (labels[w], labels[r])):
                truth = dense.score(kind.partition("->")[2], labels[w], labels[r])
                assert abs(scores[w, r] - truth) < 2e-6, (kind, w, r)


def test_what_is_summed_up(twin):
    """Largest first; means by layer and chance from all pairs; as a table."""
    found = _everything(twin, "neuron->Q")
    frame = found.to_dataframe()
    assert frame.excess.is_monotonic_decreasing and len(frame) == found.count
    assert (frame.score - frame.baseline - frame.excess).abs().max() == 0
    layers = [frame[name].str.extract(r"L(\d+)")[0].astype(int) for name in ("writer", "reader")]
    assert [bool(each) for each in found.by_layer.isnan().flatten()] == [True, False, True, True]
    mean = frame.excess[(layers[0] == 0) & (layers[1] == 1)].mean()
    assert float(found.by_layer[0, 1]) == pytest.approx(mean, abs=1e-7)
    assert found.chance_ratio == pytest.approx((frame.score**2).mean() * Dense(twin).d, rel=1e-5)


def test_signs_are_those_of_the_products(twin_of):
    twin = twin_of("LlamaForCausalLM")
    dense = Dense(twin)
    found = ah.weights.composition(twin, "neuron->query", k=50)
    for pair in found:
        W, (R,) = dense.write(ah.Label.parse(pair.writer)), dense.reads("query", ah.Label.parse(pair.reader))
        assert pair.sign == int((W @ R).sign())
    assert {pair.sign for pair in found} == {1, -1}
    assert {pair.sign for pair in ah.weights.composition(twin, "neuron->V", k=5)} == {0}


@pytest.mark.parametrize("kind", ["neuron->Q", "head->V", "head->query", "neuron->query"])
def test_blocks_do_not_matter(twin_of, kind, monkeypatch):
    twin = twin_of("LlamaForCausalLM")
    whole = ah.weights.composition(twin, kind, k=20)
    monkeypatch.setattr(top_k, "BLOCK", 100)
    monkeypatch.setattr(factors, "GROUP", 1)
    pieces = ah.weights.composition(twin, kind, k=20)
    assert [(p.writer, p.reader) for p in pieces] == [(p.writer, p.reader) for p in whole]
    assert [p.score for p in pieces] == pytest.approx([p.score for p in whole], abs=1e-6)
    everything = _everything(twin, kind)
    if "Q" not in kind:
        assert [(p.writer, p.reader) for p in everything][:20] == [(p.writer, p.reader) for p in whole]


def _changed(name, change):
    """Scores before and after a change of a twin's weights, of every kind."""
    twin = ah.convert(zoo.build(name).bridge)
    before = {kind: _scores(twin, kind) for kind in _kinds(twin)}
    with torch.no_grad():
        change(twin)
    return before, {kind: _scores(twin, kind) for kind in _kinds(twin)}


def _apart(before, after):
    """The largest difference."""
    assert before.keys() == after.keys()
    return max(abs(before[key] - after[key]) for key in before)


def _scores(twin, kind):
    return {(pair.writer, pair.reader): pair.score for pair in ah.weights.composition(twin, kind, k=10**6)}


def test_sizes_of_weights_do_not_matter():
    def larger(twin):
        twin.banks[0].W_out *= 3.0
        twin.banks[1].W_gate *= 0.1
        twin.blocks[1].ln1.original_component.weight *= 7.0
        twin.blocks[0].attn.o.original_component.weight *= 2.0

    before, after = _changed("LlamaForCausalLM", larger)
    for kind, scores in before.items():
        assert _apart(scores, after[kind]) < 1e-5, kind


def test_the_mean_of_the_stream_is_not_seen_behind_layernorm():
    def shifted(twin):
        twin.banks[0].W_out += torch.randn(len(twin.banks[0].W_out), 1, generator=torch.Generator().manual_seed(3))

    before, after = _changed("GPT2LMHeadModel", shifted)
    for kind, scores in before.items():
        assert _apart(scores, after[kind]) < 1e-5, kind
    # RMSNorm sees it.
    before, after = _changed("LlamaForCausalLM", shifted)
    assert _apart(before["neuron->Q"], after["neuron->Q"]) > 1e-2


def test_random_weights_compose_by_chance():
    def drawn(twin):
        generator = torch.Generator().manual_seed(4)
        for parameter in twin.parameters():
            if parameter.ndim == 2:
                parameter.normal_(generator=generator)
            else:
                parameter.fill_(1.0)

    twin = ah.convert(zoo.build("LlamaForCausalLM").bridge)
    with torch.no_grad():
        drawn(twin)
    for kind in KINDS:
        found = ah.weights.composition(twin, kind)
        assert found.chance_ratio == pytest.approx(1.0, abs=0.1 if "neuron" in kind else 0.25), kind
        assert abs(float(found.by_layer.nanmean())) < 0.01, kind


def test_offsets_turn_only_what_has_rotary(twin_of):
    """Scores differ between offsets with rotary, and are the same without; values are never turned."""
    for name, turns in (("LlamaForCausalLM", True), ("GPT2LMHeadModel", False)):
        near, far = (
            {
                (p.writer, p.reader): p.score
                for p in ah.weights.composition(twin_of(name), "neuron->Q", k=10**6, offsets=some)
            }
            for some in ((0,), range(1, 30))
        )
        assert (_apart(near, far) > 1e-3) if turns else (_apart(near, far) == 0)
    twin = twin_of("LlamaForCausalLM")
    near, far = (ah.weights.composition(twin, "neuron->V", offsets=some).pairs for some in ((0,), range(1, 30)))
    assert near == far


def test_a_dead_neuron_composes_with_nothing():
    twin = ah.convert(zoo.build("LlamaForCausalLM").bridge)
    with torch.no_grad():
        twin.banks[0].W_out[3] = 0.0
    scores = _scores(twin, "neuron->Q")
    assert all(score == pytest.approx(0.0, abs=1e-9) for (writer, _), score in scores.items() if writer == "L0.N3")


def test_float64_and_bfloat16():
    exact, coarse = (
        _scores(ah.convert(zoo.build("LlamaForCausalLM", dtype=dtype).bridge), "neuron->Q")
        for dtype in (torch.float64, torch.bfloat16)
    )
    single = _scores(ah.convert(zoo.build("LlamaForCausalLM").bridge), "neuron->Q")
    assert _apart(single, exact) < 1e-6
    assert 1e-5 < _apart(coarse, exact) < 0.02


def test_bad_input(twin_of):
    llama, gpt2 = twin_of("LlamaForCausalLM"), twin_of("GPT2LMHeadModel")
    calls = {
        r"a kind out of neuron->Q, .*, got 'neuron->neuron'": lambda: ah.weights.composition(llama, "neuron->neuron"),
        r"an attention-only twin, got TransformerBridge": lambda: ah.weights.composition(
            zoo.build("LlamaForCausalLM").bridge, "neuron->Q"
        ),
        r"k of 1 or more, got 0": lambda: ah.weights.composition(llama, "neuron->Q", k=0),
        r"offsets such as .*, got \[\]": lambda: ah.weights.composition(llama, "neuron->Q", offsets=[]),
        r"offsets such as .*, got \(-1,\)": lambda: ah.weights.composition(llama, "neuron->Q", offsets=(-1,)),
        r"gated neurons, for '->value', got plain": lambda: ah.weights.composition(gpt2, "neuron->value"),
        r"W_K up to one scale, got latent attention": lambda: ah.weights.composition(
            twin_of("DeepseekV3ForCausalLM"), "neuron->Q"
        ),
        r"heads that write pattern x W_V W_O, got others in layers L1": lambda: ah.weights.composition(
            twin_of("Qwen3NextForCausalLM"), "neuron->V"
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    assert len(ah.weights.composition(twin_of("Qwen3ForCausalLM"), "head->V")) > 0
    edited = ah.convert(zoo.build("LlamaForCausalLM").bridge)
    with edited.banks[1].edit():
        pass
    with pytest.raises(ah.AllHeadsError, match=r"neurons whose heads share their weights, got edited heads in L1"):
        ah.weights.composition(edited, "head->query")
