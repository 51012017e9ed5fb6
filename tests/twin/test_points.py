"""A hook point's names elsewhere are names of the same tensor, caught in the network by plain hooks of torch."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import allheads as ah
from allheads_labs.zoo.building import build

_SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}
_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, attn_implementation="eager")),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=96, n_positions=64, attn_implementation="eager")
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES, head_dim=8, attn_implementation="eager")),
}
_GATED = {
    "embed": "model.embed_tokens",
    "layer": "model.layers.{}",
    "attn": "self_attn",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "middle": "post_attention_layernorm",
    "pre": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm": "model.norm",
}
#: Where each family has what the other packages name, told by hand.
_WHERE = {
    "llama": _GATED,
    "gpt2": {
        "embed": "transformer.wte",
        "layer": "transformer.h.{}",
        "attn": "attn",
        "o": "attn.c_proj",
        "middle": "ln_2",
        "pre": "mlp.c_fc",
        "down": "mlp.c_proj",
        "norm": "transformer.ln_f",
    },
    "gemma2": _GATED
    | {
        "middle": "pre_feedforward_layernorm",
        "attn_post": "post_attention_layernorm",
        "mlp_post": "post_feedforward_layernorm",
    },
}
#: What nnterp and interp-engine say that their names are: a module of the network, and what it reads or gives.
_NNTERP = {
    "token_embeddings": ("embed", "output"),
    "layers_input[{}]": ("layer", "input"),
    "attentions_input[{}]": ("attn", "input"),
    "attentions_output[{}]": ("attn", "output"),
    "mlps_input[{}]": ("mlp", "input"),
    "mlps_output[{}]": ("mlp", "output"),
    "layers_output[{}]": ("layer", "output"),
    "ln_final.output": ("norm", "output"),
    "lm_head.input": ("lm_head", "input"),
    "lm_head.output": ("lm_head", "output"),
}
_INTERP_ENGINE = {
    "embeddings": ("embed", "output"),
    "resid_pre": ("layer", "input"),
    "attn_in": ("attn", "input"),
    "value": ("v", "output"),
    "z": ("o", "input"),
    "attn_out": ("attn", "output"),
    "attn_out_post": ("attn_post", "output"),
    "resid_mid": ("middle", "input"),
    "mlp_in": ("mlp", "input"),
    "mlp_pre": ("pre", "output"),
    "mlp_pre_linear": ("up", "output"),
    "mlp_act": ("down", "input"),
    "mlp_out": ("mlp", "output"),
    "mlp_out_post": ("mlp_post", "output"),
    "resid_post": ("layer", "output"),
    "final_norm": ("norm", "output"),
    "lm_head": ("lm_head", "output"),
}


class _Caught:
    """What every module of a network read and gave, by plain hooks, and its attention patterns."""

    def __init__(self, network: Any, ids: torch.Tensor) -> None:
        self.seen: dict[tuple[str, str], Any] = {}
        handles = [
            module.register_forward_hook(self._keeper(name), with_kwargs=True)
            for name, module in network.named_modules()
        ]
        with torch.no_grad():
            self.patterns = network(ids, output_attentions=True).attentions
        for handle in handles:
            handle.remove()

    def _keeper(self, name: str) -> Any:
        def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = (*args, *kwargs.values())
            self.seen[name, "input"] = given[0] if given else None
            self.seen[name, "output"] = output

        return keep

    def by_path(self, name: str) -> torch.Tensor:
        """What ``model.layers[3].mlp.output[0]`` names."""
        path, end, first = re.fullmatch(r"(.*)\.(input|output)(\[0\])?", name).groups()
        found = self.seen[re.sub(r"\[(\d+)\]", r".\1", path), end]
        assert isinstance(found, tuple) == bool(first)
        return found[0] if first else found

    def by_role(self, where: dict[str, str], role: str, end: str, layer: str | None) -> torch.Tensor:
        """What a module reads or gives, by what it is for."""
        path = where.get(role, role)
        if role not in ("embed", "layer", "norm", "lm_head"):
            path = f"{where['layer']}.{path}"
        found = self.seen[path.format(layer), end]
        return found[0] if isinstance(found, tuple) else found


@pytest.fixture(scope="module", params=_MODELS)
def case(request):
    """The kind of a model, its table of points, what a run passes at each, and what plain hooks catch in it."""
    torch.manual_seed(0)
    network = _MODELS[request.param]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ids = torch.tensor([[5, 17, 3, 80], [6, 18, 4, 81]])
    caught = _Caught(network, ids)
    bridge = build_bridge_from_module(network, type(network).__name__, hf_config=network.config, dtype=torch.float32)
    twin = ah.convert(bridge)
    table = twin.points()
    named = [row.point for row in table.names if row.nnsight or row.nnterp or row.interp_engine]
    _, cache = twin.run_with_cache(ids, names_filter=named)
    return request.param, table, cache, caught


def _same(passed: torch.Tensor, found: torch.Tensor) -> bool:
    """Equal, where heads may stand side by side in one axis, and positions once for all prompts."""
    if found.shape[0] == 1 and found.ndim == passed.ndim:
        found = found.expand_as(passed)
    return passed.numel() == found.numel() and torch.allclose(
        passed.float().reshape(-1), found.float().reshape(-1), rtol=1e-4, atol=1e-5
    )


def test_names_in_nnsight_are_the_same_tensor(case):
    _, table, cache, caught = case
    rows = [row for row in table.names if row.nnsight]
    assert len(rows) > 50
    for row in rows:
        assert _same(cache[row.point], caught.by_path(row.nnsight)), row


def test_names_in_nnterp_are_the_same_tensor(case):
    kind, table, cache, caught = case
    found = set()
    for row in (row for row in table.names if row.nnterp):
        name, layer = re.sub(r"\[(\d+)\]", "[{}]", row.nnterp), re.search(r"\d+|$", row.nnterp)[0]
        found.add(name)
        if name == "attention_probabilities[{}]":
            assert _same(cache[row.point], caught.patterns[int(layer)])
        else:
            assert _same(cache[row.point], caught.by_role(_WHERE[kind], *_NNTERP[name], layer)), row
    assert found == {*_NNTERP, "attention_probabilities[{}]"}


def test_names_in_interp_engine_are_the_same_tensor(case):
    kind, table, cache, caught = case
    found = set()
    for row in (row for row in table.names if row.interp_engine):
        name, layer = re.fullmatch(r'cache\["(\w+)"(?:, (\d+))?\]', row.interp_engine).groups()
        found.add(name)
        if name in ("attn_probs", "attn_scores"):
            passed = cache[row.point].softmax(-1) if name == "attn_scores" else cache[row.point]
            assert _same(passed, caught.patterns[int(layer)])
        elif kind == "gpt2" and name == "value":  # the last third of one projection
            joint = caught.seen[f"transformer.h.{layer}.attn.c_attn", "output"]
            assert _same(cache[row.point], joint.chunk(3, -1)[2])
        else:
            assert _same(cache[row.point], caught.by_role(_WHERE[kind], *_INTERP_ENGINE[name], layer)), row
    missing = {"llama": {"attn_out_post", "mlp_out_post"}, "gemma2": set()}
    missing["gpt2"] = missing["llama"] | {"mlp_pre_linear"}
    assert {*_INTERP_ENGINE, "attn_probs", "attn_scores"} - found == missing[kind]


def test_what_the_mlp_gives_is_not_what_it_adds_behind_a_norm(case):
    kind, table, cache, _ = case
    names = table.to_dataframe().set_index("point").interp_engine
    gives, adds = (f"blocks.1.{name}" for name in ("mlp.hook_out", "hook_mlp_out"))
    assert names[gives] == 'cache["mlp_out", 1]'
    assert names[adds] == ('cache["mlp_out_post", 1]' if kind == "gemma2" else 'cache["mlp_out", 1]')
    assert torch.equal(cache[gives], cache[adds]) == (kind != "gemma2")


def test_every_name_is_there_once(case):
    kind, table, *_ = case
    points = [row.point for row in table.names]
    assert len(set(points)) == len(points)
    heads = [row for row in table.names if row.point == "blocks.0.mlp.hook_pattern_self"]
    assert heads[0].shape == "batch head pos" and heads[0].nnsight == heads[0].nnterp == heads[0].interp_engine == ""
    if kind == "gpt2":  # no module gives the queries alone
        assert next(row for row in table.names if row.point == "blocks.0.attn.hook_q").nnsight == ""


def test_shapes_are_what_passes(case):
    kind, table, cache, _ = case
    sizes = {"batch": 2, "pos": 4, "d_model": 32, "head": 4, "d_head": 8, "d_vocab": 96, "query": 4, "key": 4, "1": 1}
    sizes |= {"kv_head": 4, "d_mlp": 128} if kind == "gpt2" else {"kv_head": 2, "d_mlp": 64}
    checked = 0
    for row in table.names:
        if row.point in cache and row.point != "pos_embed.hook_in":
            assert list(cache[row.point].shape) == [sizes[axis] for axis in row.shape.split()], row
            checked += 1
    assert checked > 50


def test_points_that_wait_for_a_switch(tiny, tokens):
    """The block's `hook_mlp_in` is the stream before the norm, and `mlp.hook_in` what is behind it."""
    twin = ah.convert(tiny("llama"))
    rows = {row.point: row for row in twin.points().names}
    switches = {"hook_mlp_in": "hook_mlp_in", "attn.hook_result": "attn_result", "hook_q_input": "split_qkv_input"}
    for name, switch in switches.items():
        assert f"twin.set_use_{switch}(True)" in rows[f"blocks.1.{name}"].what
        getattr(twin, f"set_use_{switch}")(True)
    names = [f"blocks.1.{name}" for name in (*switches, "hook_resid_pre", "hook_resid_mid")]
    _, cache = twin.run_with_cache(tokens, names_filter=names)
    mlp_in, result, q_input, resid_pre, resid_mid = (cache[name] for name in names)
    assert torch.equal(mlp_in, resid_mid)
    assert result.shape == (2, 17, 4, 32) and torch.equal(q_input, resid_pre[:, :, None].expand(2, 17, 4, 32))


def _nnsight(twin):
    return {row.point: row.nnsight for row in twin.points().names}


def test_names_are_those_of_the_source_whatever_was_edited(tiny):
    twin = ah.convert(tiny("llama"))
    before = _nnsight(twin)
    with twin.banks[0].edit() as heads:
        heads.W_O[0] += 1.0
    assert {point: name for point, name in _nnsight(twin).items() if name} == {
        point: name for point, name in before.items() if name and point in twin.hook_dict
    }
    assert twin.banks[0].edited is not None


def test_points_that_pass_something_else_have_no_name():
    """A factor behind Falcon H1's neurons is in their gates; the block's output is the same again."""
    names = {row.point: row for row in ah.convert(build("FalconH1ForCausalLM").bridge).points().names}
    assert names["blocks.0.mlp.hook_post"].nnsight == names["blocks.0.mlp.hook_post"].interp_engine == ""
    assert names["blocks.0.mlp.hook_out"].nnsight == "model.layers[0].feed_forward.output"


@pytest.mark.parametrize(
    ("kind", "point", "name"),
    [
        ("OPTForCausalLM", "blocks.1.mlp.hook_post", "model.decoder.layers[1].fc2.input"),
        ("BertForMaskedLM", "blocks.1.hook_resid_post", "bert.encoder.layer[1].output"),
        ("Qwen3ForCausalLM", "blocks.1.attn.q_norm.hook_out", "model.layers[1].self_attn.q_norm.output"),
    ],
)
def test_names_in_other_families(kind, point, name):
    """MLPs without a module, whose activation a twin has put aside; norms of heads, which stand in another axis."""
    twin = ah.convert(build(kind).bridge)
    assert _nnsight(twin)[point] == name
    if kind == "Qwen3ForCausalLM":
        row = next(row for row in twin.points().names if row.point == point)
        assert row.interp_engine == 'cache["q_norm_out", 1]'


def test_in_low_precision(tiny):
    in_16, in_32 = (_nnsight(ah.convert(tiny("llama", dtype=dtype))) for dtype in (torch.bfloat16, torch.float32))
    assert in_16 == in_32


def test_an_encoder_decoder_has_names_in_nnsight_only():
    rows = ah.convert(build("T5ForConditionalGeneration").bridge).points().names
    assert not any(row.nnterp or row.interp_engine for row in rows)
    by_point = {row.point: row.nnsight for row in rows}
    assert by_point["decoder_blocks.0.hook_in"] == "decoder.block[0].input"
