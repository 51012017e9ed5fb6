"""A gated MLP whose parts sit in the layer, as in LLaDA, whose code comes with a checkpoint: here is a small one."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformer_lens.model_bridge.sources import build_bridge_from_module

import allheads as ah
from allheads.models.compat import called


@dataclass
class Config:
    """What TransformerLens asks of a LLaDA configuration."""

    architectures: list = field(default_factory=lambda: ["LLaDAModelLM"])
    model_type: str = "llada"
    activation_type: str = "silu"
    block_type: str = "llama"
    layer_norm_type: str = "rms"
    block_group_size: int = 1
    d_model: int = 16
    mlp_hidden_size: int = 24
    n_heads: int = 2
    n_kv_heads: int = 2
    n_layers: int = 2
    vocab_size: int = 40
    embedding_size: int = 40
    max_sequence_length: int = 16
    mask_token_id: int = 39
    eos_token_id: int = 1
    pad_token_id: int = 0
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope: bool = True
    rope_full_precision: bool = True
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    residual_dropout: float = 0.0
    alibi: bool = False
    attention_layer_norm: bool = False
    include_bias: bool = False
    include_qkv_bias: bool = False
    input_emb_norm: bool = False
    scale_logits: bool = False
    use_cache: bool = False
    weight_tying: bool = False


class Turned(nn.Module):
    """Rotary positions."""

    def forward(self, q, k):
        half = q.shape[-1] // 2
        speeds = 10_000.0 ** (-torch.arange(half, dtype=q.dtype) / half)
        angles = torch.outer(torch.arange(q.shape[-2], dtype=q.dtype), speeds).repeat(1, 2)

        def turn(t):
            return t * angles.cos() + torch.cat([-t[..., half:], t[..., :half]], -1) * angles.sin()

        return turn(q), turn(k)


class Block(nn.Module):
    def __init__(self, config, activation):
        super().__init__()
        self.config = config
        d, hidden = config.d_model, config.mlp_hidden_size
        self.act, self.rotary_emb = activation, Turned()
        self.attn_norm, self.ff_norm = nn.RMSNorm(d, 1e-5), nn.RMSNorm(d, 1e-5)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            setattr(self, name, nn.Linear(d, d, bias=False))
        self.ff_proj, self.up_proj = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden, bias=False)
        self.ff_out = nn.Linear(hidden, d, bias=False)

    def attention(self, q, k, v, attention_bias=None, layer_past=None, use_cache=False):
        q, k, v = (t.unflatten(-1, (self.config.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = self.rotary_emb(q, k)
        z = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.attn_out(z.transpose(1, 2).flatten(-2)), None

    def forward(self, x, attention_bias=None, layer_past=None, use_cache=False):
        normed = self.attn_norm(x)
        x = x + self.attention(self.q_proj(normed), self.k_proj(normed), self.v_proj(normed))[0]
        normed = self.ff_norm(x)
        gate, value = self.ff_proj(normed), self.up_proj(normed)
        return x + self.ff_out(self.act(gate) * value), None


class Network(nn.Module):
    def __init__(self, config, activation):
        super().__init__()
        self.config = config
        parts = {
            "wte": nn.Embedding(config.vocab_size, config.d_model),
            "blocks": nn.ModuleList([Block(config, activation()) for _ in range(config.n_layers)]),
            "ln_f": nn.RMSNorm(config.d_model, 1e-5),
            "ff_out": nn.Linear(config.d_model, config.vocab_size, bias=False),
        }
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict(parts)

    def forward(self, input_ids, attention_mask=None, **_):
        parts = self.model.transformer
        x = parts["wte"](input_ids)
        for block in parts["blocks"]:
            x, _ = block(x)
        return SimpleNamespace(logits=parts["ff_out"](parts["ln_f"](x)))


def source_with(activation=nn.SiLU, dtype=torch.float64):
    torch.manual_seed(0)
    network = Network(Config(), activation).to(dtype).eval()
    return build_bridge_from_module(
        network, architecture="LLaDAModelLM", hf_config=network.config, dtype=dtype, model_name="small-llada"
    ).eval()


@pytest.fixture(scope="module")
def pair():
    source = source_with()
    return source, ah.convert(source)


TOKENS = torch.tensor([[3, 14, 15, 9, 26], [5, 35, 8, 9, 7]])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_twin_is_the_source(dtype):
    source = source_with(dtype=dtype)
    twin = ah.convert(source)
    assert all(layer.bank.gated for layer in twin.layers)
    # Two layers of sums over at most 40 products each.
    torch.testing.assert_close(twin(TOKENS), source(TOKENS), rtol=0, atol=100 * torch.finfo(dtype).eps)
    for evaluation in ("slots", "attention"):
        with twin.evaluated(evaluation):
            torch.testing.assert_close(twin(TOKENS), source(TOKENS), rtol=0, atol=10 * twin.tolerance)


@torch.no_grad()
def test_every_hook_point_fires_once_with_the_values_of_the_source(pair):
    cached = pair[0].run_with_cache(TOKENS)[1]
    # Heads have no activation that is not yet multiplied by the value.
    expected = [name for name in cached if ".mlp.act." not in name]
    caches = [model.run_with_cache(TOKENS, names_filter=expected)[1] for model in pair]
    for name in expected:
        torch.testing.assert_close(caches[1][name], caches[0][name], rtol=1e-11, atol=1e-12)
    names = [f"blocks.0.mlp.{name}" for name in ("hook_in", "gate.hook_in", "in.hook_in", "out.hook_in", "hook_out")]
    for model in pair:
        fired: list[str] = []

        def note(_, hook, fired=fired):
            fired.append(hook.name)

        model.run_with_hooks(TOKENS, fwd_hooks=[(name, note) for name in names])
        assert sorted(fired) == sorted(names)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["hook_in", "gate.hook_in", "in.hook_in", "gate.hook_out", "in.hook_out", "out.hook_in", "out.hook_out"]
)
def test_a_change_at_a_hook_point_is_that_of_the_source(pair, name):
    hooks = [(f"blocks.0.mlp.{name}", lambda t, hook: 1.5 * t)]
    changed = [model.run_with_hooks(TOKENS, fwd_hooks=hooks) for model in pair]
    torch.testing.assert_close(changed[1], changed[0], rtol=1e-11, atol=1e-12)
    assert not torch.allclose(changed[0], pair[0](TOKENS), rtol=1e-3)


@torch.no_grad()
def test_the_mlp_itself_can_be_called(pair):
    x = torch.randn(1, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pair[1].blocks[1].mlp(x), pair[0].blocks[1].mlp(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("part", ["ff_proj", "up_proj", "act", "ff_out"])
def test_it_is_verified_and_a_part_that_does_something_else_is_seen(pair, part):
    source, twin = pair
    assert ah.verify(source, twin, TOKENS).passed
    parts = vars(called(twin.original_model, f"model.transformer.blocks.1.{part}"))
    known = called(twin.original_model, f"model.transformer.blocks.0.{part}").forward
    parts["forward"] = lambda *given: known(*given)  # what it gives to these texts may well be right
    try:
        with pytest.raises(ah.AllHeadsError, match="goes around L1"):
            ah.verify(source, twin, TOKENS)
    finally:
        del parts["forward"]


def test_an_edit_counts(pair):
    source = pair[0]
    twin = ah.convert(source)
    with twin.layers[0].bank.edit() as heads, torch.no_grad():
        heads.W_O.zero_()
    cut = [(name, lambda t, hook: 0.0 * t) for name in ("blocks.0.mlp.hook_out",)]
    torch.testing.assert_close(twin(TOKENS), source.run_with_hooks(TOKENS, fwd_hooks=cut), rtol=1e-11, atol=1e-12)


def test_an_activation_that_is_not_known_is_refused():
    with pytest.raises(ah.AllHeadsError, match=r"Mish in L0, which has other values"):
        ah.convert(source_with(nn.Mish))


class Squared(nn.Module):
    def forward(self, t):
        return t.relu().square()


def test_a_squared_gate_is_refused():
    with pytest.raises(ah.AllHeadsError, match=r"a gate that grows linearly"):
        ah.convert(source_with(Squared))
