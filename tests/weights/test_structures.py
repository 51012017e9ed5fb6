"""Weights of mixtures, encoder-decoders, hybrids, vision models and norms in the stream, in float64.

What a later part reads moves with what an earlier one writes as their weights say: by gradients of whole runs.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

import allheads as ah
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import differentiable, freezing
from allheads.attribution.metric import NOTHING
from allheads.attribution.question import Question
from allheads.attribution.rules import RULES
from allheads.models.attention import rotated
from allheads.models.observe import run_bridge
from allheads.twin.prompt import one_prompt
from allheads.twin.sites import sites
from allheads.twin.softmax import SCORES, scores_shown
from allheads.twin.wiring import read_wiring
from allheads.weights.factors import reads, writes
from allheads_labs import zoo

#: A mixture with shared keys, an encoder-decoder, a hybrid of state spaces and attention, a vision model, norms behind
#: the sum, norms of queries.
FAMILIES = [
    "MixtralForCausalLM",
    "T5ForConditionalGeneration",
    "JambaForCausalLM",
    "ViTForImageClassification",
    "BertForMaskedLM",
    "Qwen3ForCausalLM",
]


@pytest.fixture(scope="module")
def sample_of():
    return cache(lambda name: zoo.build(name, dtype=torch.float64))


@pytest.fixture(scope="module")
def exact_of(sample_of):
    return cache(lambda name: ah.convert(sample_of(name).bridge))


def _directly_moved(sample, twin, writers, reader, numbers):
    """How much each neuron of earlier sublayers moves later neurons' preactivations, along the stream and no other way.

    The gradients of one whole run whose norms are frozen, and whose heads and neurons are cut from what they read: by
    writer, where a token has chosen it, and number.
    """
    question = Question(twin, one_prompt(twin, sample.inputs), NOTHING, RULES["half"])
    point, moved = f"{reader.location.prefix}hook_pre", {}
    with differentiable(question):
        whole = ForwardCache(twin, (point,))
        with whole.recording():
            question.run()
        cut = ForwardCache(twin, (point,), cut=True, begins=tuple(whole.embeddings))
        with cut.recording():
            question.run()
        ran = {writer.name: cut.leaves[writer.point] for writer in writers if writer.point in cut.leaves}
        for number in numbers:
            read = cut.activations[point][..., number].sum()
            for name, rows in zip(ran, torch.autograd.grad(read, [*ran.values()], retain_graph=True), strict=True):
                rows = rows.flatten(0, -2)
                moved[name, number] = rows[rows.norm(dim=1).argmax()]
    return moved


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_is_what_a_write_does_to_a_read(name, sample_of, exact_of):
    """By gradients of a run: among neurons of a layer, scores are how far each moves a later one per unit it writes."""
    twin, sample = exact_of(name), sample_of(name)
    found = {(p.writer, p.reader): p for p in ah.weights.composition(twin, "neuron->query", k=10**6)}
    by_name = {site.name: site for site in sites(twin)}
    banks = {f"{layer.location.stem}.N": layer.bank for layer in twin.layers}
    writers_of: dict[str, dict[str, None]] = {}
    for writer, reader in (tuple(label.rpartition(".")[0] + ".N" for label in pair) for pair in found):
        writers_of.setdefault(reader, {})[writer] = None
    checked = 0
    for reader, writers in writers_of.items():
        try:
            moved = _directly_moved(sample, twin, [by_name[writer] for writer in writers], by_name[reader], (0, 5))
        except ah.AllHeadsError as error:  # an expert that no token of this prompt has chosen
            assert "where nothing passes" in str(error)
            continue
        for (writer, number), by_neuron in moved.items():
            write = banks[writer].W_out.detach()
            write = write - write.mean(1, keepdim=True) if "Bert" in name or "ViT" in name else write
            pairs = [found[f"{writer}{n}", f"{reader}{number}"] for n in range(len(write))]
            scores = torch.tensor([pair.score for pair in pairs], dtype=torch.float64)
            per_unit = by_neuron.abs() / write.norm(dim=1)
            assert torch.allclose(scores / scores.norm(), per_unit / per_unit.norm(), atol=1e-9)
            assert [pair.sign for pair in pairs] == by_neuron.sign().tolist()
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_move_as_their_weights_say(name, sample_of, exact_of):
    """By gradients of a run: of a score, by what its query reads, and of what is carried, by what its value reads."""
    twin, sample = exact_of(name), sample_of(name)
    heads = read_wiring(twin).of_kind(neurons=False)
    assert heads and all(branch.scores and branch.values for branch in heads)
    number, to = 1, 1
    for branch in heads:
        prefix, read, seen = branch.site.location.prefix, branch.attention, {}
        score = f"{prefix}{SCORES}"

        def kept(name, leaf, prefix=prefix, seen=seen):
            def keep(value, hook):
                seen[name] = value.detach().requires_grad_() if leaf else value
                return seen[name]

            return f"{prefix}{name}", keep

        hooks = [kept(f"{side}.hook_in", leaf=True) for side in "qv"]
        hooks += [kept(name, leaf=False) for name in ("k.hook_in", "hook_pattern", "hook_z")]
        with freezing(twin, RULES["half"], (f"{prefix}hook_q",)), torch.enable_grad():
            sample.run(twin)
            with twin.hooks(fwd_hooks=hooks), scores_shown(twin, [score], seen):
                run_bridge(twin, sample.inputs)
        row = seen[score][0, number]
        at = len(row) - 1
        key = read.projected(seen["k.hook_in"][0, to].detach(), "K", number)
        (moved,) = torch.autograd.grad(row[at, to], seen["q.hook_in"], retain_graph=True)
        expected = read.directions("Q")[number] @ rotated(key, [to - at], read.rotary, read.interleaved)
        assert torch.cosine_similarity(moved[0, at], expected, dim=0) == pytest.approx(1.0, abs=1e-9)
        assert not moved[0, :at].any()
        z = seen["hook_z"]
        z = z.reshape(*z.shape[:2], len(read.W_V), -1)[0, at, number]
        weight = seen["hook_pattern"][0, number, at, to].detach()
        for carried, column in zip(z[:3], read.W_V[number].T[:3], strict=True):
            (moved,) = torch.autograd.grad(carried, seen["v.hook_in"], retain_graph=True)
            assert torch.allclose(moved[0, to], weight * column, atol=1e-9)


def test_experts_are_read_each(exact_of):
    twin = exact_of("MixtralForCausalLM")
    found = ah.weights.composition(twin, "neuron->Q", k=10**6)
    assert {pair.writer.rpartition(".")[0] for pair in found} == {f"L0.M{number}" for number in range(4)}
    circuit = ah.weights.circuit(twin, "L1.M2.N3", k=5)
    with torch.no_grad():
        x = twin.blocks[1].ln2.original_component(twin.W_E)
        bank = next(layer.bank for layer in twin.layers if layer.location.stem == "L1.M2")
        opens = (x @ bank.W_gate)[:, 3]
    assert [token.value for token in circuit.opens] == pytest.approx(opens.topk(5).values.tolist(), rel=1e-6)


def test_cross_attention_reads_the_end_of_the_encoder(exact_of):
    twin = exact_of("T5ForConditionalGeneration")
    into = {kind: ah.weights.composition(twin, f"head->{kind}", k=10**6) for kind in "QKV"}
    crossing = {kind: {(p.writer[:2], p.reader[:5]) for p in pairs} for kind, pairs in into.items()}
    assert ("EL", "DL0.X") in crossing["V"] and ("EL", "DL0.X") in crossing["K"]
    assert ("EL", "DL0.X") not in crossing["Q"] and ("DL", "DL1.X") in crossing["Q"]
    assert ("DL", "DL1.X") not in crossing["V"]
    assert not any(reader.startswith("DL0.A") for _, reader in crossing["V"] if _ == "EL")


def test_ends_that_are_not_tokens_are_said(exact_of):
    vit, bert = exact_of("ViTForImageClassification"), exact_of("BertForMaskedLM")
    neuron = ah.weights.circuit(vit, "L0.N1", k=2)
    assert neuron.opens == [] and len(neuron.promotes) == 2
    assert "begins with embeddings of tokens" in str(neuron)
    head = ah.weights.circuit(bert, "L1.A2", k=3)
    assert len(head.attends()) == 3
    with pytest.raises(ah.AllHeadsError, match="a stream that ends in logits"):
        head.promotes()
    with pytest.raises(ah.AllHeadsError, match="a stream that begins with embeddings"):
        ah.weights.circuit(vit, "L0.A0").attends()


def test_scores_behind_norms_of_queries_are_those_of_the_network(exact_of):
    """In layer 0 the stream is the embedding: the circuit's scores are the network's."""
    twin = exact_of("Qwen3ForCausalLM")
    for pair in ah.weights.circuit(twin, "L0.A1", k=3).attends((4,)):
        ids = torch.full((1, 6), pair.first)
        ids[0, 1] = pair.second
        name = "blocks.0.attn.hook_pattern"
        with torch.no_grad():
            pattern = twin.run_with_cache(ids, names_filter=[name])[1][name][0, 1, 5].double()
        same = ah.weights.circuit(twin, "L0.A1", k=10**4)
        query, key = same.query[pair.first], same.key[pair.first]
        other = float(rotated(query, [3], same.attention.rotary) @ key)
        assert float(pattern[1].log() - pattern[2].log()) == pytest.approx(pair.value - other, abs=1e-5)


def test_a_write_of_norm_one_reads_itself(exact_of):
    """Factors keep their size, whatever the norms between."""
    wiring = read_wiring(exact_of("BertForMaskedLM"))
    neurons = wiring.of_kind(neurons=True)
    norms = wiring.norms(neurons[0], neurons[1])
    assert norms is not None and len(norms) == 2
    assert wiring.norms(neurons[1], neurons[0]) is None
    behind = reads(wiring, "query", neurons[1], [0]).through(norms)
    for M in (behind.M, writes(wiring, neurons[0]).M):
        assert torch.allclose(M.norm(dim=(1, 2)), torch.ones(len(M), dtype=M.dtype))
