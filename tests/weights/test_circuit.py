"""Circuits through the embeddings, against dense matrices and against what the network does."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.weights.top_k import top_pairs
from allheads_labs import zoo


def _x(twin, layer, name):
    """Every token as the norm of a layer gives it, by the norm itself; Gemma and Granite scale embeddings."""
    factor = {"Gemma2": twin.cfg.d_model**0.5, "Granit": 3.0}.get(type(twin.original_model).__name__[:6], 1.0)
    with torch.no_grad():
        return getattr(twin.blocks[layer], name).original_component(factor * twin.W_E)


def _logits(twin, layer, write, after):
    """Up to norms' scales: gains, the unembedding, less the mean."""
    for norm in (getattr(twin.blocks[layer], after, None), twin.ln_final):
        if norm is not None:
            gain = norm.original_component.weight.detach() + type(twin.original_model).__name__.startswith("Gemma")
            centred = type(twin.original_model).__name__.startswith("GPT")
            write = gain * (write - write.mean(-1, keepdim=True) if centred else write)
    logits = write @ twin.W_U.detach()
    return logits - logits.mean(-1, keepdim=True)


def _as_vector(strongest, weakest, d_vocab):
    """Both ends of a side, k being the whole vocabulary: the same numbers, largest and smallest first."""
    values = {each.token: each.value for each in strongest}
    assert {each.token: each.value for each in weakest} == values
    ordered = [each.value for each in strongest]
    assert ordered == sorted(ordered, reverse=True) and [each.value for each in weakest] == ordered[::-1]
    return torch.tensor([values[token] for token in range(d_vocab)])


def test_a_neuron_is_read_as_dense_matrices(twin):
    d_vocab = twin.cfg.d_vocab
    found = ah.weights.circuit(twin, "L1.N7", k=d_vocab)
    bank, x = twin.banks[1], _x(twin, 1, "ln2")
    W, b = (bank.W_gate, bank.b_gate) if bank.gated else (bank.W_in, bank.b_in)
    query = (x @ W + (0.0 if b is None else b)).detach()[:, 7]
    assert torch.allclose(_as_vector(found.opens, found.closes, d_vocab), query, atol=1e-4)
    if bank.gated:
        value = (x @ bank.W_in + (0.0 if bank.b_in is None else bank.b_in)).detach()[:, 7]
        assert torch.allclose(_as_vector(found.raises, found.lowers, d_vocab), value, atol=1e-4)
    else:
        assert found.raises == found.lowers == []
    logits = _logits(twin, 1, bank.W_out.detach()[7], "ln2_post")
    assert torch.allclose(_as_vector(found.promotes, found.suppresses, d_vocab), logits, atol=1e-4)
    frame = ah.weights.circuit(twin, "L1.N7", k=2).to_dataframe()
    assert len(frame) == (12 if bank.gated else 8) and list(frame.columns) == ["side", "token", "id", "value"]
    assert frame.value[0] == pytest.approx(float(query.max()), abs=1e-4) and frame.token[0] == str(frame.id[0])


def test_a_head_is_read_as_dense_matrices(twin):
    """OV, by token and by pair; its eigenvalues; QK at offset 0."""
    found = ah.weights.circuit(twin, "L1.A2", k=6)
    attn, x = twin.blocks[1].attn, _x(twin, 1, "ln1")
    group = attn.W_Q.shape[0] // attn.W_K.shape[0]

    def read(name, index):
        bias = getattr(attn, f"b_{name}", None)
        return (x @ getattr(attn, f"W_{name}")[index] + (0.0 if bias is None else bias[index])).detach()

    OV = read("V", 2 // group) @ _logits(twin, 1, attn.W_O[2].detach(), "ln1_post")
    for sign, pairs in ((1, found.promotes()), (-1, found.suppresses())):
        values, places = (sign * OV).flatten().topk(6)
        assert [pair.value for pair in pairs] == pytest.approx((sign * values).tolist(), rel=1e-4)
        assert [pair.first * OV.shape[1] + pair.second for pair in pairs] == places.tolist()
    best, worst = found.of(17)
    assert [each.token for each in best] == OV[17].topk(6).indices.tolist()
    assert [each.value for each in worst] == pytest.approx(OV[17].topk(6, largest=False).values.tolist(), rel=1e-4)
    eigenvalues = torch.linalg.eigvals(OV.double())
    assert found.copying == pytest.approx(float(eigenvalues.real.sum() / eigenvalues.abs().sum()), abs=1e-4)
    scale = 0.3 if "Granite" in type(twin.original_model).__name__ else None
    scale = scale or (1 / 16 if "Gemma" in type(twin.original_model).__name__ else attn.W_Q.shape[2] ** -0.5)
    QK = scale * read("Q", 2) @ read("K", 2 // group).T
    pairs = found.attends()
    assert [pair.value for pair in pairs] == pytest.approx(QK.flatten().topk(6).values.tolist(), rel=1e-4)
    frame = found.to_dataframe()
    assert frame.side.value_counts().to_dict() == {"attends": 6, "promotes": 6, "suppresses": 6}
    assert frame["first"][0] == str(pairs[0].first) and frame["second_id"][0] == pairs[0].second


def _scores(twin, ids, layer=0):
    name = f"blocks.{layer}.attn.hook_attn_scores"
    with torch.no_grad():
        return twin.run_with_cache(ids, names_filter=[name])[1][name][0]


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPTNeoXForCausalLM", "GraniteForCausalLM"])
def test_scores_are_those_of_the_network(twin_of, name):
    """In layer 0 the stream is the embedding: the circuit's scores are the network's, at every offset."""
    twin = twin_of(name)
    found = ah.weights.circuit(twin, "L0.A1", k=5)
    for offset in (0, 1, 4):
        for pair in found.attends((offset,)):
            ids = torch.full((1, 6), pair.first)
            ids[0, 5 - offset] = pair.second
            ids[0, 5] = pair.first if offset else pair.second
            if offset or pair.first == pair.second:
                assert pair.value == pytest.approx(float(_scores(twin, ids)[1, 5, 5 - offset]), abs=1e-4)
    for pair in found.attends((1, 2, 5)):
        seen = []
        for offset in (1, 2, 5):
            ids = torch.full((1, 6), pair.first)
            ids[0, 5 - offset] = pair.second
            seen.append(float(_scores(twin, ids)[1, 5, 5 - offset]))
        assert pair.value == pytest.approx(sum(seen) / 3, abs=1e-4)


def test_a_preactivation_is_that_of_the_network(twin_of):
    """With the heads of layer 0 silent, its neurons read embeddings."""
    twin = twin_of("LlamaForCausalLM")
    found = ah.weights.circuit(twin, "L0.N3", k=twin.cfg.d_vocab)
    ids = torch.arange(12)[None] * 7
    names = ["blocks.0.mlp.hook_pre", "blocks.0.mlp.hook_pre_linear"]
    with torch.no_grad(), ah.ablate(twin, [f"L0.A{head}" for head in range(4)]):
        cache = twin.run_with_cache(ids, names_filter=names)[1]
    for name, side in zip(names, (found.opens, found.raises), strict=True):
        values = {each.token: each.value for each in side}
        assert [values[token] for token in ids[0].tolist()] == pytest.approx(cache[name][0, :, 3].tolist(), abs=1e-4)


def test_a_write_moves_the_logits_as_said(twin_of):
    """With norms held, one more unit of a neuron moves logits by the circuit times the scale of the final norm."""
    twin = twin_of("LlamaForCausalLM")
    ids, d_vocab = torch.arange(6)[None], twin.cfg.d_vocab
    with torch.no_grad():
        cache = twin.run_with_cache(ids, names_filter=["ln_final.hook_in"])[1]["ln_final.hook_in"][0, -1]
    scale = float(cache.square().mean() + twin.ln_final.original_component.variance_epsilon) ** -0.5
    found = ah.weights.circuit(twin, "L1.N7", k=d_vocab)

    def raised(value, hook):
        value = value.clone()
        value[0, -1, 7] += 1.0
        return value

    with ah.frozen(twin, ids), torch.no_grad():
        before = twin(ids)[0, -1]
        with twin.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", raised)]):
            step = twin(ids)[0, -1] - before
    expected = scale * _as_vector(found.promotes, found.suppresses, d_vocab)
    assert torch.allclose(step - step.mean(), expected, atol=1e-4)


def test_top_pairs_leaves_nothing_out(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(n, 5, generator=generator) * torch.rand(n, 1, generator=generator) for n in (70, 90))
    monkeypatch.setattr("allheads.weights.top_k.BLOCK", 400)
    for k in (1, 7, 70 * 90):
        values, places = (A @ B.T).flatten().topk(k)
        found = top_pairs(A, B, k)
        assert [value for value, _, _ in found] == pytest.approx(values.tolist(), abs=1e-6)
        assert [a * 90 + b for _, a, b in found][:7] == places.tolist()[:7]
    # All scores below zero: nothing can be left out by norms.
    assert top_pairs(-A.abs(), B.abs(), 3)[0][0] == pytest.approx(float((-A.abs() @ B.abs().T).max()), abs=1e-6)


def test_bad_input(twin_of):
    llama = twin_of("LlamaForCausalLM")
    head = ah.weights.circuit(llama, "L0.A1")
    calls = {
        "an attention-only twin, got TransformerBridge": lambda: ah.weights.circuit(
            zoo.build("LlamaForCausalLM").bridge, "L0.A1"
        ),
        "a head of this twin, up to": lambda: ah.weights.circuit(llama, "L7.A1"),
        "a label such as": lambda: ah.weights.circuit(llama, "seven"),
        r"a whole neuron or an ordinary head, got L0.N1.0. Read L0.N1": lambda: ah.weights.circuit(llama, "L0.N1.0"),
        "k of 1 or more, got 0": lambda: ah.weights.circuit(llama, "L0.N1", k=0),
        "offsets such as": lambda: head.attends(()),
        "a token from 0 to 95, got 96": lambda: head.of(96),
        "attention with W_Q, W_K, W_V and W_O of each head, got another kind in L3": lambda: ah.weights.circuit(
            twin_of("Gemma4ForConditionalGeneration"), "L3.A1"
        ),
        "a stream that ends in logits": lambda: ah.weights.circuit(twin_of("BertForMaskedLM"), "L0.A1").promotes(),
    }
    for message, call in calls.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    assert len(ah.weights.circuit(twin_of("Qwen3ForCausalLM"), "L0.A1").to_dataframe()) == 30
    edited = ah.convert(zoo.build("LlamaForCausalLM").bridge)
    with edited.banks[1].edit():
        pass
    with pytest.raises(ah.AllHeadsError, match=r"a neuron whose heads share its weights, got edited heads in L1"):
        ah.weights.circuit(edited, "L1.N0")
