"""The pure form of every structure: one family for each, equal to its twin, or refused by name."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.pure.files import rewritten
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import MistralConfig, MistralForCausalLM

import allheads as ah
from allheads.pure import attention, export, purified, run, runner
from allheads_labs import zoo

#: What is new about each family, and whether its masks can be weights.
STRUCTURES = {
    "GPTNeoXForCausalLM": ("parallel, a part turns", True),
    "BloomForCausalLM": ("a norm of embeddings, a slope by distance", True),
    "OpenAIGPTLMHeadModel": ("norms after the sum", True),
    "Gemma2ForCausalLM": ("norms of what is written, caps, windows, scaled embeddings", False),
    "Gemma3ForCausalLM": ("norms of queries and keys, frequencies by layer", False),
    "Olmo2ForCausalLM": ("norms after sublayers, and of all heads' queries together", False),
    "NanoChatForCausalLM": ("norms without weights, capped logits", False),
    "HunYuanDenseV1ForCausalLM": ("queries and keys that turn before their norms", False),
    "GraniteForCausalLM": ("factors of embeddings, sublayers, scores and logits", True),
    "CohereForCausalLM": ("neighbours turn, scaled logits", True),
    "T5ForConditionalGeneration": ("two streams, tables by distance", False),
    "MarianMTModel": ("two streams, norms after the sum, sinusoids", False),
    "GPTNeoForCausalLM": ("windows of some layers", True),
    "Glm4MoeForCausalLM": ("a router by sigmoids with a correction, and an expert for all", True),
    "MixtralForCausalLM": ("a router by softmax", True),
}


class InDouble(TorchFunctionMode):
    """What asks for float32 gets float64: many families compute norms and softmax in float32 whatever their dtype."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name == "float":
            return args[0].double()
        if name in ("to", "type", "softmax"):
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {k: torch.float64 if value is torch.float32 else value for k, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``exported(family, dtype)``: a twin, and the file it was exported to."""
    made = {}

    def make(family: str, dtype: torch.dtype = torch.float64):
        if (family, dtype) not in made:
            twin = ah.convert(zoo.build(family, seed=3, dtype=dtype).bridge)
            path = tmp_path_factory.mktemp("pure") / f"{family}.safetensors"
            with InDouble() if dtype == torch.float64 else nullcontext():
                export(twin, path)
            made[family, dtype] = twin, path
        return made[family, dtype]

    return make


def texts(twin, seed: int = 5) -> list[Tensor]:
    """Texts of other lengths than those that are compared when a twin is exported."""
    draw = torch.Generator().manual_seed(seed)
    two = getattr(twin.original_model.config, "is_encoder_decoder", False)
    return [torch.randint(3, 64, (1, length), generator=draw) for length in ((13, 9) if two else (17,))]


def outputs(twin, ids: list[Tensor]) -> Tensor:
    double = next(twin.original_model.parameters()).dtype == torch.float64
    with torch.no_grad(), twin.evaluated("slots"), InDouble() if double else nullcontext():
        return twin(ids[0], **({"decoder_input": ids[1]} if len(ids) > 1 else {})).double()


def error(twin, path, ids: list[Tensor]) -> float:
    wanted = outputs(twin, ids)
    return float((run(path, *ids) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("family", STRUCTURES)
def test_every_structure_is_exact(exported, family):
    """The error shrinks by eight orders of magnitude from float32 to float64."""
    twin, path = exported(family)
    assert error(twin, path, texts(twin)) < 1e-13
    single, path = exported(family, torch.float32)
    assert 1e-9 < error(single, path, texts(single)) < 1e-5


@pytest.mark.parametrize("family", STRUCTURES)
def test_masks_in_weights_or_a_refusal_by_name(exported, family):
    twin, path = exported(family)
    ids = texts(twin)
    if not STRUCTURES[family][1]:
        with pytest.raises(ValueError, match=r"masks can be weights, got \w+\.[AX] with"):
            run(path, *ids, masks="weights")
        return
    explicit, weights = (run(path, *ids, masks=masks) for masks in ("explicit", "weights"))
    assert float((explicit - weights).abs().max() / explicit.abs().max()) < 1e-12


def test_a_dense_layer_with_an_activation_becomes_neurons(exported):
    """Its gates are within their tolerance, like those of any neuron."""
    twin, path = exported("BertForMaskedLM")
    assert error(twin, path, texts(twin)) < 2 * twin.tolerance


def test_the_layers_of_a_model_of_images(exported):
    """In place of tokens the runner is given what the layers begin with; one position is classified."""
    twin, path = exported("ViTForImageClassification")
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad(), twin.evaluated("slots"), InDouble():
        wanted, cache = twin.run_with_cache(image, names_filter="blocks.0.hook_in")
    got = run(path, cache["blocks.0.hook_in"])
    assert (got[:, 0] - wanted).abs().max() < 1e-13 * wanted.abs().max()
    with pytest.raises(ValueError, match=r"Expected streams \[batch pos 32\] with 1 to \d+ positions"):
        run(path, torch.zeros(4, 7))


def test_a_stream_is_a_sum_that_others_read(exported):
    _, path = exported("GPTJForCausalLM")
    steps = {step.name: step for step in runner.load(path).sublayers}
    assert list(steps) == ["L0.A", "L0.N", "x0", "L1.A", "L1.N", "x1", "end"]
    assert steps["L0.A"].reads == steps["L0.N"].reads == {"tokens": 1.0}
    assert steps["x1"].reads == {"x0": 1.0, "L1.A": 1.0, "L1.N": 1.0}


def test_the_decoder_reads_the_encoder(exported):
    twin, path = exported("T5ForConditionalGeneration")
    steps = {step.name: step for step in runner.load(path).sublayers}
    assert steps["DL1.X"].other == steps["DL0.X"].other == "encoder.final_layer_norm"
    ids = texts(twin)
    other = [ids[0].roll(1), ids[1]]
    assert (run(path, *ids) - run(path, *other)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="Expected tokens of a decoder"):
        run(path, ids[0])
    with pytest.raises(ValueError, match="as many texts for the decoder"):
        run(path, ids[0].expand(2, -1), ids[1])


def test_windows_that_are_longer_than_any_text_that_is_run(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(
        **sizes, num_key_value_heads=2, head_dim=8, vocab_size=96, sliding_window=700, max_position_embeddings=900
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    twin = ah.convert(build_bridge_from_module(model, "MistralForCausalLM", hf_config=config, model_name="tiny"))
    path = tmp_path / "windows.safetensors"
    export(twin, path)
    assert twin.original_model.config.sliding_window == 700
    assert [heads.window for heads in runner.load(path).sublayers[0].heads] == [700]
    ids = torch.randint(3, 64, (1, 710), generator=torch.Generator().manual_seed(0))
    assert error(twin, path, [ids]) < 1e-5


def test_a_sink_is_a_bias_token():
    """What a row of a pattern lacks to 1 went to a token without a value, whose offset is the same in every row."""
    draw = torch.Generator().manual_seed(0)
    x, W = torch.randn(2, 8, 6, generator=draw).double(), torch.randn(3, 6, 4, generator=draw).double()
    heads, sink = runner.Heads(W.mT, W, -W, mask="causal"), torch.tensor([[0.5], [-1.0], [2.0]]).double()
    with_sink = replace(heads, bias_keys=torch.zeros(3, 1, 4).double(), bias_offsets=sink)
    rows = [runner.patterns(row, with_sink, runner.allowed(with_sink, 8))[..., :-1] for row in x]
    site = SimpleNamespace(name="L0.A", kind="A", location=SimpleNamespace(prefix=""))
    seen = {"hook_pattern": torch.stack(rows)}
    run = SimpleNamespace(reads={"L0.A.Q": x, "L0.A.V": x}, seen=seen, tolerance=1e-4)
    found = attention._with_offsets(run, site, heads, SimpleNamespace(tables=[], n_ctx=8))
    assert (found.bias_offsets - sink).abs().max() < 1e-11
    assert (runner.patterns(x[0], found, runner.allowed(found, 8))[..., :-1] - rows[0]).abs().max() < 1e-12


def test_tokens_that_are_padding_are_refused(exported):
    """Positions of this family are counted without padding."""
    _, path = exported("RobertaForMaskedLM", torch.float32)
    assert runner.load(path).refused == [0]
    assert runner.load(path).n_ctx == 63
    with pytest.raises(ValueError, match=r"Expected tokens other than \[0\]"):
        run(path, torch.tensor([5, 0, 6]))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("AfmoeForCausalLM", r"L0\.A with values that are not x W_V"),
        ("Llama4ForCausalLM", r"L0\.A with a mask that is neither causal nor a window"),
        ("LongT5ForConditionalGeneration", r"EL0\.A with queries and keys that are compared in another way"),
        ("HrmTextForCausalLM", r"L0\.N.* with weights that are used again"),
        ("PhiMoEForCausalLM", r"the router of L0\.M"),
        ("Lfm2ForCausalLM", r"ffn_norm reads, in layers with conv\.conv"),
        ("YoutuForCausalLM", r"attention with W_Q, .* L0 without W_Q"),
    ],
)
def test_what_cannot_be_said_is_named_and_nothing_is_written(tmp_path, family, name):
    with pytest.raises(ah.AllHeadsError, match=name):
        export(ah.convert(zoo.build(family, seed=3).bridge), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def twin_of(family: str):
    return ah.convert(zoo.build(family, seed=3).bridge)


def test_what_shows_on_longer_texts_only_is_seen(tmp_path):
    """Sublayers are compared on a short text, the whole on longer ones."""
    twin = twin_of("GPTJForCausalLM")

    def louder(module, args, out):
        return torch.cat([out[:, :12], 1.1 * out[:, 12:]], 1)

    twin.blocks[1].attn.original_component.out_proj.register_forward_hook(louder)
    with pytest.raises(ah.AllHeadsError, match="the whole model, which writes"):
        export(twin, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "change", "name"),
    [
        ("Gemma2ForCausalLM", {"cap": 5.0}, "L0.A, which writes"),
        ("HunYuanDenseV1ForCausalLM", {"turned_first": False}, "L0.A, which writes"),
        ("GPTJForCausalLM", {"interleaved": False}, "L0.A, which writes"),
        ("BloomForCausalLM", {"distance_offsets": None}, "L0.A, which writes"),
        ("Gemma3ForCausalLM", {"norm_K": None}, "L0.A, which writes"),
        ("MistralForCausalLM", {"window": None}, "L0.A, which writes"),
        ("BertForMaskedLM", {"mask": "causal"}, "L0.A, which writes"),
    ],
)
def test_a_field_that_is_wrong_is_seen(tmp_path, monkeypatch, family, change, name):
    """Heads broken on purpose: every field counts, and is compared."""
    original = purified.attention_heads
    monkeypatch.setattr(
        purified, "attention_heads", lambda *args: [replace(original(*args)[0], **change), *original(*args)[1:]]
    )
    with pytest.raises(ah.AllHeadsError, match=name):
        export(twin_of(family), tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("family", "change", "reason"),
    [
        ("T5ForConditionalGeneration", lambda steps, model: steps["x1"]["reads"].update(gone=1.0), "gone"),
        ("T5ForConditionalGeneration", lambda steps, model: steps["x1"].update(reads={}), "x1 reads"),
        ("T5ForConditionalGeneration", lambda steps, model: steps["x1"].update(reads={"tokens": 1}), "x1 reads"),
        ("T5ForConditionalGeneration", lambda steps, model: steps["x1"].update(reads={"tokens": 1e999}), "x1 reads"),
        ("T5ForConditionalGeneration", lambda steps, model: steps["x1"]["reads"].update({"decoder tokens": 1.0}), "x1"),
        ("T5ForConditionalGeneration", lambda steps, model: steps["x1"].update(name="tokens"), "tokens reads"),
        ("T5ForConditionalGeneration", lambda steps, model: steps["DL0.X"].update(other="end"), "DL0.X reads 'end'"),
        ("T5ForConditionalGeneration", lambda steps, model: model.update(beginnings=[]), "the beginnings are"),
        ("T5ForConditionalGeneration", lambda steps, model: model.update(sublayers=[]), "there are 0 sublayers"),
        ("T5ForConditionalGeneration", lambda steps, model: model.update(n_ctx=9), "distance_offsets of EL0.A"),
        ("T5ForConditionalGeneration", lambda steps, model: model.update(position=10**9), "the position is"),
        ("T5ForConditionalGeneration", lambda steps, model: model.update(refused=["0"]), "refused tokens"),
        ("T5ForConditionalGeneration", lambda steps, model: model["beginnings"][0].update(by="day"), "by 'day'"),
        ("MixtralForCausalLM", lambda steps, model: steps["L0.M"]["router"].update(top=9), "takes 9 of 4"),
        ("MixtralForCausalLM", lambda steps, model: steps["L0.M"]["router"].update(gate="tanh"), "by 'tanh'"),
        ("MixtralForCausalLM", lambda steps, model: steps["L0.M"].pop("router"), "an expert 0 of 0"),
        ("MixtralForCausalLM", lambda steps, model: steps["L0.M"]["heads"][0].update(expert=4), "an expert 4 of 4"),
        (
            "MixtralForCausalLM",
            lambda steps, model: steps["L0.A"]["heads"][0].update(rotary=model["unembed"]),
            "rotary of L0.A has shape",
        ),
        (
            "Gemma3ForCausalLM",
            lambda steps, model: steps["L0.A"]["heads"][0]["norm_Q"].update(gain=model["unembed"]),
            "a norm of L0.A has shape",
        ),
    ],
)
def test_headers_of_new_structures_that_name_no_model(exported, tmp_path, family, change, reason):
    twin, path = exported(family)

    def changed(model: dict[str, Any]) -> None:
        change({step["name"]: step for step in model["sublayers"]}, model)

    with pytest.raises(ValueError, match=r"Expected a file written by .*" + reason):
        run(rewritten(path, tmp_path / "changed.safetensors", changed), *texts(twin))
