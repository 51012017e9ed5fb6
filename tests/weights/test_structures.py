"""Weights of mixtures, encoder-decoders, hybrids, vision models and norms in the stream, in float64.

A write is put into the stream by a hook, and what a later part reads moves as its weights, read in place, say.
"""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.models.observe import run_bridge
from allheads.twin.segments import cut_run, two_rows
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
def exact_of():
    made: dict[str, ah.TwinBridge] = {}

    def make(name):
        if name not in made:
            made[name] = ah.convert(zoo.build(name, dtype=torch.float64).bridge)
        return made[name]

    return make


def _cosine(a, b):
    return float((a * b).sum() / a.norm() / b.norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_is_what_a_write_does_to_a_read(name, exact_of):
    """By intervention: neurons' writes move the preactivations of later neurons, with parts between held by the cut.

    The gradient of a neuron's preactivation, in the run that is cut and with norms behind the cut taken out by hand,
    is its read; the score is its cosine with the write.
    """
    twin = exact_of(name)
    found = ah.weights.composition(twin, "neuron->query", k=40)
    run = cut_run(twin)
    assert len(found)
    for pair in found.pairs[::8]:
        writer, reader = (ah.Label.parse(label) for label in (pair.writer, pair.reader))
        banks = {layer.location.stem: layer.bank for layer in twin.layers}
        write = banks[writer.stem].W_out[writer.index].detach()
        bank = banks[reader.stem]
        W = (bank.W_gate if bank.gated else bank.W_in)[:, reader.index].detach()
        x = run.reads[run.parts[f"{reader.stem}.N"]]
        direction, chain = W, []
        source = run.parts[f"{writer.stem}.N"]
        # Backwards from the read: through norms, until the write is a summand of what one reads.
        for _ in range(9):
            # Experts are given rows without their batch.
            like = {n: leaf for n, leaf in run.leaves.items() if n in run.norms and leaf.numel() == x.numel()}
            norm = next((n for n, leaf in like.items() if torch.equal(leaf.flatten(), x.flatten())), None)
            if norm is None:
                break
            chain.append(norm)
            module = twin.original_model.get_submodule(norm)
            direction = module.weight.detach() * direction
            if getattr(module, "bias", None) is not None:
                direction = direction - direction.mean()
            x = run.reads[norm]
            if torch.autograd.grad(x.sum(), run.leaves[source], retain_graph=True, allow_unused=True)[0] is not None:
                break
            x = next(
                run.leaves[n]
                for n in run.norms
                if torch.autograd.grad(x.sum(), run.leaves[n], retain_graph=True, allow_unused=True)[0] is not None
            )
        assert chain
        if "Bert" in name or "ViT" in name:
            write = write - write.mean()
        assert pair.score == pytest.approx(abs(_cosine(write, direction)), abs=1e-12)
        assert pair.sign == (1 if _cosine(write, direction) > 0 else -1)


@pytest.mark.parametrize("name", FAMILIES)
def test_queries_move_as_their_weights_say(name, exact_of):
    """Attention reads what its hook points show, in float64: projections with their norms, and values."""
    twin = exact_of(name)
    wiring, inputs = read_wiring(twin), two_rows(twin)
    heads = wiring.of_kind(neurons=False)
    assert heads and all(branch.scores and branch.values for branch in heads)
    points = [f"{branch.site.location.prefix}{side}" for branch in heads for side in ("hook_pattern", "hook_z")]
    seen: dict[str, torch.Tensor] = {}
    run = cut_run(twin)
    hooks = [(point, lambda x, hook: seen.update({hook.name: x.detach()}) or x) for point in points]
    with torch.no_grad(), twin.hooks(fwd_hooks=hooks):
        run_bridge(twin, inputs)
    for branch in heads:
        read, prefix = branch.attention, branch.site.location.prefix
        values = read.projected(run.reads[f"{branch.site.name}.V"].detach(), "V")
        pattern = run.seen[f"{prefix}hook_pattern"]
        carried = torch.einsum("bhqk,bkhe->bqhe", pattern, values)
        z = run.seen[f"{prefix}hook_z"].reshape(carried.shape)
        assert (carried - z).norm() <= 1e-6 * z.norm()


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
        from allheads.models.attention import rotated

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
