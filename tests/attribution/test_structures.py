"""Experts, encoder-decoders, towers, hybrids: what attribution says of any structure adds up, and predicts changes."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.attribution.confirm import confirm
from allheads.twin.sites import sites
from allheads_labs import zoo

STRUCTURES = {
    "MixtralForCausalLM": "experts",
    "Qwen2MoeForCausalLM": "experts, shared experts behind a gate, a dense layer",
    "Llama4ForCausalLM": "experts whose rows the router scales before",
    "Gemma4ForCausalLM": "experts beside an MLP",
    "T5ForConditionalGeneration": "an encoder and a decoder, relative positions",
    "BartForConditionalGeneration": "an encoder and a decoder, norms after the sum",
    "DeiTForImageClassification": "patches and classes",
    "HubertModel": "frames, and no head",
    "LlavaForConditionalGeneration": "a tower that sees, a projector, a decoder",
    "DeepseekV3ForCausalLM": "latent attention, shown in other pieces",
    "LagunaForCausalLM": "gates behind attention",
    "Lfm2ForCausalLM": "convolutions instead of attention",
    "Qwen3NextForCausalLM": "linear attention with gated norms, experts",
    "OpenAIGPTLMHeadModel": "layers that do not show where they end",
}

GATES_IN_FLOAT32 = ("LagunaForCausalLM",)


def asked(name, rule="half"):
    sample = zoo.build(name, seed=3, dtype=torch.float64)
    twin = ah.convert(sample.bridge)
    out = sample.run(twin)
    weights = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ah.attribute(twin, sample.inputs, weights, rule=rule)
    return sample, twin, found, float((out[0, -1] if out.ndim == 3 else out[0]) @ weights)


@pytest.mark.parametrize("name", STRUCTURES)
def test_parts_add_up_and_predict_changes(name):
    sample, twin, found, live = asked(name)
    assert found.target_value == pytest.approx(live, abs=1e-12)
    assert found.completeness_error < 1e-12
    assert found.intercept == 0.0
    assert found.total == pytest.approx(live, abs=1e-11)
    drawn = torch.Generator().manual_seed(1)
    ran = [site for site in sites(twin) if site.name in found.effects]
    parts = []
    for kind in ("AX", "N"):
        some = [site for site in ran if site.kind in kind]
        for _ in range(3):
            site = some[int(torch.randint(len(some), (1,), generator=drawn))]
            index = int(torch.randint(site.count, (1,), generator=drawn))
            parts.append(max(found.of(str(site.label(index))), key=lambda part: abs(part.effect)))
    named = [(part.label, part.position, part.effect) for part in parts if part.effect]
    assert named
    confirmation = confirm(found.question, named, found.target_value)
    # Where gates compute in float32, a last bit of theirs may fall the other way in another pass.
    rounding = (
        torch.finfo(torch.float32).eps / 2 * confirmation.predicted.abs().max() if name in GATES_IN_FLOAT32 else 0
    )
    assert (confirmation.frozen - confirmation.predicted).abs().max() < 1e-10 + rounding
    untouched = sample.run(twin)
    assert torch.equal(sample.run(twin), untouched)


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "T5ForConditionalGeneration", "LlavaForConditionalGeneration"])
def test_graphs_hide_nothing(name):
    _, _, found, _ = asked(name)
    graph = found.graph(budget=40)
    assert len(graph.parts) == 40
    for node in graph.parts:
        flow = node.inflow["V"]
        kept = sum(edge.weight for edge in graph.into(node.name))
        assert kept + flow.left_out == pytest.approx(flow.total, abs=1e-12)
        assert node.effect == pytest.approx(found.of(node.label)[node.position].effect, abs=1e-12)


def test_an_expert_by_hand():
    """The last layer's neurons write straight into the logits: without this package's code."""
    sample, _, found, _ = asked("MixtralForCausalLM", "value")
    network = zoo.build("MixtralForCausalLM", seed=3, dtype=torch.float64).bridge.original_model
    seen = {}
    plain = {name.replace("._original_component", ""): module for name, module in network.named_modules()}
    layer, norm = "model.layers.1.mlp", plain["model.norm"]
    handles = [
        plain[layer].register_forward_pre_hook(lambda _, args: seen.update(read=args[0])),
        plain[f"{layer}.gate"].register_forward_hook(lambda _, args, out: seen.update(route=out)),
        norm.register_forward_pre_hook(lambda _, args: seen.update(end=args[0])),
    ]
    with torch.no_grad():
        network(sample.inputs["input"])
    for handle in handles:
        handle.remove()
    weights = torch.randn(96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end, (_, shares, chosen) = seen["end"][0, -1], seen["route"]
    scale = norm.weight / (end.square().mean() + norm.variance_epsilon).sqrt()
    up = network.get_output_embeddings().weight.T @ weights
    experts = plain[f"{layer}.experts"]
    read = seen["read"].flatten(0, -2)[-1]
    for expert in range(4):
        share = float(shares[-1][chosen[-1] == expert].sum())
        gate, value = (experts.gate_up_proj[expert] @ read).chunk(2)
        written = share * (torch.nn.functional.silu(gate) * value)
        expected = written * (experts.down_proj[expert].T @ (scale * up))
        assert torch.allclose(found.effects[f"L1.M{expert}.N"][-1], expected.detach(), atol=1e-6)  # norms in float32
        assert bool(expected.any()) == (share > 0)
    assert {int(expert) for expert in chosen[-1]} < set(range(4))


def test_cross_attention_by_hand():
    """What a head carries from the encoder straight into the logits: without this package's code."""
    sample, _, found, _ = asked("T5ForConditionalGeneration", "value")
    network = zoo.build("T5ForConditionalGeneration", seed=3, dtype=torch.float64).bridge.original_model
    seen = {}
    plain = {name.replace("._original_component", ""): module for name, module in network.named_modules()}
    norm = plain["decoder.final_layer_norm"]
    handle = norm.register_forward_pre_hook(lambda _, args: seen.update(end=args[0]))
    with torch.no_grad():
        ids, written = sample.inputs["input"], sample.inputs["decoder_input"]
        out = network(ids, decoder_input_ids=written, output_attentions=True)
    handle.remove()
    weights = torch.randn(96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = norm.weight / (seen["end"][0, -1].square().mean() + norm.variance_epsilon).sqrt()
    up = network.get_output_embeddings().weight.T @ weights
    if network.config.tie_word_embeddings:
        up = up * network.config.d_model**-0.5
    cross = plain["decoder.block.1.layer.1.EncDecAttention"]
    v = (out.encoder_last_hidden_state[0] @ cross.v.weight.T).view(-1, 4, 8)
    for head in range(4):
        z = out.cross_attentions[1][0, head, -1] @ v[:, head]
        direct = z @ cross.o.weight[:, head * 8 : head * 8 + 8].T @ (scale * up)
        assert float(found.direct["DL1.X"][head, -1]) == pytest.approx(float(direct.detach()), abs=1e-6)


def test_experts_that_are_not_chosen_have_no_part():
    _, _, found, _ = asked("MixtralForCausalLM")
    silent = torch.stack([(found.effects[f"L0.M{expert}.N"] == 0).all(1) for expert in range(4)])
    chosen = 4 - silent.sum(0)
    assert (chosen == 2).all()  # of four, for every token


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("HubertModel", 3, r"a direction \[32\] or a function of the last hidden state"),
        ("DeiTForImageClassification", "a dog", "a class from 0 to 1, got str 'a dog'"),
        ("DeiTForImageClassification", 2, "a class from 0 to 1"),
        ("T5ForConditionalGeneration", 96, "a token from 0 to 95"),
    ],
)
def test_targets_of_another_kind(name, target, message):
    sample = zoo.build(name)
    with pytest.raises(ah.AllHeadsError, match=message):
        ah.attribute(ah.convert(sample.bridge), sample.inputs, target)


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("DeiTForImageClassification", "a dog", "This model reads pixel_values, not text"),
        ("T5ForConditionalGeneration", torch.tensor([3, 4]), "input for the decoder beside that of the encoder"),
    ],
)
def test_prompts_of_another_kind(name, prompt, message):
    twin = ah.convert(zoo.build(name).bridge)
    with pytest.raises(ah.AllHeadsError, match=message):
        ah.attribute(twin, prompt, 1)
    with pytest.raises(ah.AllHeadsError, match=message):
        ah.frozen(twin, prompt).__enter__()


def test_several_prompts_are_refused():
    twin = ah.convert(zoo.build("MixtralForCausalLM").bridge)
    with pytest.raises(ah.AllHeadsError, match="one prompt as input, got 2 rows"):
        ah.attribute(twin, {"input": torch.tensor([[3, 4], [5, 6]])}, 7)


def test_tables_are_refused_where_layers_differ():
    _, _, found, _ = asked("Qwen2MoeForCausalLM")
    assert found.heads.shape[:2] == (2, 4)
    with pytest.raises(ah.AllHeadsError, match=r"got L0.N \(12, 48\), L1.S.N .* Read found.effects"):
        _ = found.neurons
    assert set(found.to_dataframe(50)["kind"]) == {"A", "N"}
