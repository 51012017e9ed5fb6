"""Sparse autoencoders of SAELens: read as it computes them, split without a remainder, and nodes of graphs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import differentiable
from allheads.twin.capture import captured
from allheads_labs import zoo

D, LATENTS = 16, 40
TEXTS = (
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The capital of France is Paris, and that of Italy is Rome.",
    "def add(a, b): return a + b",
)
ARCHITECTURES = ("standard", "jumprelu", "topk", "gated")


def saved(folder, kind="standard", d=D, point="blocks.1.hook_resid_pre", **changes):
    """Random weights, in SAELens' files."""
    draw = torch.Generator().manual_seed(0)
    folder.mkdir(exist_ok=True)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    tensors = {"W_enc": normal(d, LATENTS), "W_dec": normal(LATENTS, d), "b_dec": normal(d), "b_enc": normal(LATENTS)}
    if kind == "jumprelu":
        tensors["threshold"] = normal(LATENTS).abs()
    if kind == "gated":
        del tensors["b_enc"]
        tensors |= {name: normal(LATENTS) for name in ("r_mag", "b_mag", "b_gate")}
    config = {"d_in": d, "d_sae": LATENTS, "architecture": kind, "metadata": {"hook_name": point, "model_name": "toy"}}
    config |= {"k": 5} if kind == "topk" else {}
    config |= changes
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return tensors, config


def encoded(kind, x, w, config):
    """What SAELens computes, step by step."""
    x = x - w["b_dec"] * config.get("apply_b_dec_to_input", True)
    if kind == "gated":
        magnitude = (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
        return magnitude * (x @ w["W_enc"] + w["b_gate"] > 0)
    pre = x @ w["W_enc"] + w["b_enc"]
    if kind == "jumprelu":
        return pre.relu() * (pre > w["threshold"])
    if kind == "topk":
        if config.get("rescale_acts_by_decoder_norm"):
            pre = pre * w["W_dec"].norm(dim=-1)
        values, places = pre.topk(config["k"], dim=-1)
        return torch.zeros_like(pre).scatter(-1, places, values.relu())
    return pre.relu()


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{}, {"apply_b_dec_to_input": False}, {"rescale_acts_by_decoder_norm": True}])
def test_latents_are_those_of_saelens(tmp_path, kind, changes):
    tensors, config = saved(tmp_path, kind, **changes)
    autoencoder = ah.formats.read_autoencoder(tmp_path)
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(1))
    expected = encoded(kind, x, tensors, config)
    assert 0 < int((expected > 0).sum()) < expected.numel()
    assert (autoencoder.encode(x) - expected).abs().max() < 1e-4
    size = tensors["W_dec"].norm(dim=-1) if kind == "topk" and "rescale_acts_by_decoder_norm" in changes else 1.0
    made = (expected / size) @ tensors["W_dec"] + tensors["b_dec"]
    assert (autoencoder.decode(autoencoder.encode(x)) - made).abs().max() < 1e-4


def test_an_older_file_says_top_k_elsewhere(tmp_path):
    saved(tmp_path, activation_fn_str="topk", activation_fn_kwargs={"k": 3}, hook_name="blocks.0.hook_mlp_out")
    autoencoder = ah.formats.read_autoencoder(tmp_path)
    assert (autoencoder.k, autoencoder.architecture, autoencoder.stem) == (3, "topk", "L0")
    assert int((autoencoder.encode(torch.randn(9, D)) > 0).sum(-1).max()) <= 3


def test_its_own_twin(tmp_path):
    saved(tmp_path)
    autoencoder = ah.formats.read_autoencoder(tmp_path)
    x = torch.randn(1, 6, D, generator=torch.Generator().manual_seed(2))
    heads = autoencoder.as_heads()
    with torch.no_grad():
        assert (heads(x) - autoencoder.decode(autoencoder.encode(x))).abs().max() < 0.2  # ReLU is no sum of gates
    saved(tmp_path, "jumprelu")
    with pytest.raises(ah.AllHeadsError, match="a standard autoencoder"):
        ah.formats.read_autoencoder(tmp_path).as_heads()


@pytest.fixture(scope="module")
def made():
    sample = zoo.build("LlamaForCausalLM", dtype=torch.float64)
    return ah.convert(sample.bridge), sample.inputs["input"][:1, :6]


@pytest.mark.parametrize("rule", ["half", "relp", "gradient"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_latents_error_and_bias_are_what_passes(made, tmp_path, kind, rule):
    twin, ids = made
    saved(tmp_path, kind, d=twin.cfg.d_model)
    autoencoder = ah.formats.read_autoencoder(tmp_path)
    plain = ah.attribute(twin, ids, (7, 9), rule=rule)
    found = plain.through(autoencoder)
    scale = float(found.latents.abs().sum() + found.errors.abs().sum() + found.biases.abs().sum())
    assert found.total == pytest.approx(float(plain.stream[1].sum()), abs=1e-12 * scale)
    if rule == "half":  # a cut: with the constants behind it, it is the target
        after = sum(value for value, layer in plain.constants.values() if layer >= 1)
        assert found.total + after == pytest.approx(plain.target_value, abs=1e-12 * scale)
    # The activations are the autoencoder's, and nothing else has changed.
    x = captured(twin, ids, [autoencoder.hook_point])[autoencoder.hook_point][0]
    assert (found.activations - autoencoder.like(x).encode(x)).abs().max() < 1e-9
    for name, effects in plain.effects.items():
        assert (found.attribution.effects[name] - effects).abs().max() < 1e-12 * scale
    table = found.to_dataframe(3)
    assert list(table["label"].str.startswith("L1.F")) == [True] * 3
    best = found.top(1)[0]
    assert (best.label, best.effect) == (table["label"][0], pytest.approx(table["effect"][0]))


@pytest.mark.parametrize("point", ["blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"])
def test_nodes_between_heads_and_neurons(made, tmp_path, point):
    """Edges sum to effects on both ends, whether through latents or through what they do not reconstruct."""
    twin, ids = made
    saved(tmp_path, d=twin.cfg.d_model, point=point)
    found = ah.attribute(twin, ids, 7).through(ah.formats.read_autoencoder(tmp_path))
    graph = found.graph(budget=10_000)
    scale = max(abs(node.effect) for node in graph.nodes)
    kinds = {node.kind for node in graph.nodes}
    assert {"F", "R", "A", "N"} <= kinds
    for node in graph.nodes:
        if node.kind in "TAXNFR":
            assert node.inflow["V"].left_out == pytest.approx(0.0, abs=1e-9 * scale)
        if node.kind in "AXNFRE":
            assert sum(edge.weight for edge in graph.out_of(node.name)) == pytest.approx(node.effect, abs=1e-9 * scale)
    stem = found.autoencoder.stem
    if point == "blocks.1.hook_resid_pre":  # nothing passes by
        before = {node.name for node in graph.nodes if node.layer == 0 or node.kind == "E"}
        onward = {edge.target for edge in graph.edges if edge.source in before} - before
        assert onward and all(name.startswith((f"{stem}.F", f"{stem}.R")) for name in onward)
    assert AttributionGraph.load(graph.save(tmp_path / "g.json", format="neuronpedia")) == graph
    assert f"{stem}.F" in ah.plots.graph(graph).save(tmp_path / "g.html").read_text()
    assert "3 parts" in str(graph.confirm(3))  # heads and neurons: latents are not there to be taken away


def test_taking_a_latent_away(made, tmp_path):
    """By hand in the frozen twin: without what a latent writes, the target loses its effect."""
    twin, ids = made
    saved(tmp_path, "jumprelu", d=twin.cfg.d_model)
    autoencoder = ah.formats.read_autoencoder(tmp_path)
    found = ah.attribute(twin, ids, 7, rule="half").through(autoencoder)
    best = found.top(1)[0]
    latent = int(best.label.rpartition("F")[2])

    def without(x, hook):
        x = x.clone()
        x[0, best.position] -= found.activations[best.position, latent] * autoencoder.W_dec[latent].to(x)
        return x

    with ah.frozen(twin, ids, rule="half"), torch.no_grad():
        before, after = twin(ids), twin.run_with_hooks(ids, fwd_hooks=[(autoencoder.hook_point, without)])
    assert float((before - after)[0, -1, 7]) == pytest.approx(best.effect, rel=1e-6)


BROKEN = {
    "another width": ({"d": 8}, "an autoencoder of d_model"),
    "inside attention": ({"point": "blocks.1.attn.hook_z"}, "a hook point of the stream"),
    "nowhere": ({"point": "blocks.9.hook_resid_pre"}, "a hook point of the stream"),
    "normalised": ({"normalize_activations": "layer_norm"}, "activations as they are"),
    "reshaped": ({"reshape_activations": "hook_z"}, "a hook point of the stream"),
    "another kind": ({"architecture": "temporal"}, "an architecture out of"),
    "another activation": ({"activation_fn": "tanh-relu"}, "the activation relu"),
    "another size": ({"d_sae": 41}, "instead of"),
    "k of nothing": ({"architecture": "topk", "k": 0}, "which is not from 1"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_does_not_fit_is_refused(made, tmp_path, how):
    twin, ids = made
    changes, reason = BROKEN[how]
    with pytest.raises(ah.AllHeadsError, match=reason):
        saved(tmp_path, **{"d": twin.cfg.d_model} | changes)
        ah.attribute(twin, ids, 7).through(ah.formats.read_autoencoder(tmp_path))


def test_files_that_are_none(tmp_path):
    with pytest.raises(ah.AllHeadsError, match="a folder of SAELens"):
        ah.formats.read_autoencoder(tmp_path / "nowhere")
    saved(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no")
    with pytest.raises(ah.AllHeadsError, match="a folder of SAELens"):
        ah.formats.read_autoencoder(tmp_path)


def test_of_an_encoder(tmp_path):
    """Positions are those of the stack that it stands in, and what is taken away are heads and neurons."""
    sample = zoo.build("T5ForConditionalGeneration", dtype=torch.float64)
    twin = ah.convert(sample.bridge)
    inputs = {"input": sample.inputs["input"][:1, :6], "decoder_input": sample.inputs["decoder_input"][:1, :3]}
    saved(tmp_path, d=twin.cfg.d_model, point="encoder_blocks.1.hook_resid_pre")
    found = ah.attribute(twin, inputs, 7).through(ah.formats.read_autoencoder(tmp_path))
    table = found.to_dataframe()
    assert set(table["position"]) == set(range(6)) and "EL1.F" in repr(found)
    assert "3 parts" in str(found.attribution.confirm(3))


@pytest.fixture(scope="module")
def trained(smollm_twin, tmp_path_factory):
    """A small autoencoder of SmolLM2's stream, trained for a moment, in SAELens' files."""
    folder, point = tmp_path_factory.mktemp("trained"), "blocks.12.hook_resid_pre"
    x = torch.cat([captured(smollm_twin, text, [point])[point][0] for text in TEXTS])
    torch.manual_seed(0)
    d = x.shape[1]
    start = torch.randn(d, 4 * LATENTS) / d**0.5
    weights = {"W_enc": start, "W_dec": start.T.contiguous(), "b_enc": torch.zeros(4 * LATENTS), "b_dec": x.mean(0)}
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), 2e-3)
    for _ in range(60):
        latents = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
        loss = (latents @ weights["W_dec"] + weights["b_dec"] - x).square().mean() + 1e-3 * latents.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file({name: weight.detach() for name, weight in weights.items()}, folder / "sae_weights.safetensors")
    config = {"d_in": d, "d_sae": 4 * LATENTS, "architecture": "standard", "metadata": {"hook_name": point}}
    (folder / "cfg.json").write_text(json.dumps(config))
    return ah.formats.read_autoencoder(folder)


def test_the_real_model(smollm_twin, trained):
    """Reconstruction and error are the stream, and their contributions, with what comes after, the target."""
    prompt = "When Mary and John went to the store, John gave a drink to"
    found = ah.attribute(smollm_twin, prompt, (" Mary", " John")).through(trained)
    question = found.attribution.question
    with differentiable(question):
        cache = ForwardCache(smollm_twin, autoencoders=question.autoencoders)
        with cache.recording():
            question.run()
    x, latents, error = (
        cache.activations[trained.hook_point + part].detach()[0] for part in ("", ".latents", ".error")
    )
    assert (trained.decode(latents) + error[:, 0] - x).norm() <= 1e-5 * x.norm()
    assert 0.2 < found.explained <= 1.0 and error.norm() > 1e-3 * x.norm()
    after = sum(value for value, layer in found.attribution.constants.values() if layer >= 12)
    assert found.total + after == pytest.approx(found.attribution.target_value, abs=1e-4)
    graph = found.graph(budget=40)
    assert {"F", "R", "A"} <= {node.kind for node in graph.nodes}
    for node in graph.parts:
        flow = node.inflow["V"]
        assert flow.kept + flow.left_out == pytest.approx(node.effect, abs=1e-4)
