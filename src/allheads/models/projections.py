"""Heads' weights where the bridge does not give them: layers of their own widths, and latent attention.

What is read here is a guess about a module from its parts; whoever uses it compares it with what the module does.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allheads.models.attention import Attention, AttentionLayer, Latent
from allheads.models.compat import network_module
from allheads.models.norms import known_norm


def read_projections(layer: AttentionLayer) -> Attention | None:
    """The heads of a layer, out of its linear maps; None if it has others than queries, keys, values and outputs."""
    module, heads = network_module(layer.module), layer.n_heads
    if hasattr(module, "kv_a_proj_with_mqa"):
        return _latent_attention(module, heads)
    q, k, v, o = (_linear(getattr(layer.module, side, None)) for side in "qkvo")
    v = v or k  # some layers make both of one map, and tell them apart behind it
    if q is None or k is None or v is None or o is None:
        return None
    d_head, d_value = q.out_features // heads, o.in_features // heads
    sides = {"Q": (q, d_head), "K": (k, d_head), "V": (v, d_value)}
    if any(linear.out_features % width or heads % (linear.out_features // width) for linear, width in sides.values()):
        return None
    return _attention(module, {side: _shared(*pair, heads) for side, pair in sides.items()}, o)


def _latent_attention(module: Any, heads: int) -> Attention | None:
    """Keys and values that are made of one latent, queries perhaps of another. What turns comes first in a head."""
    turning, still, rank = module.qk_rope_head_dim, module.qk_nope_head_dim, module.kv_lora_rank
    down, up, o = (_linear(part) for part in (module.kv_a_proj_with_mqa, module.kv_b_proj, module.o_proj))
    norm = known_norm(network_module(module.kv_a_layernorm), rank)
    of_latent = getattr(module, "q_b_proj", None) is not None
    last = _linear(module.q_b_proj if of_latent else module.q_proj)
    if down is None or up is None or o is None or last is None or norm is None or up.bias is not None:
        return None
    keys, values = _columns(up, up.out_features // heads).tensor_split([still], 2)
    # Some of a key's coordinates are not made of the latent, and all heads share them.
    both = keys.new_zeros(heads, rank + turning, turning + still)
    both[:, :rank, turning:], both[:, rank:, :turning] = keys, torch.eye(turning).to(keys)
    W, bias = down.weight.detach().T, None if down.bias is None else down.bias.detach()
    latents = {
        "K": Latent(W, bias, norm, both),
        "V": Latent(W[:, :rank], None if bias is None else bias[:rank], norm, values),
    }
    queries, b_Q = _columns(last, turning + still).roll(turning, -1), _bias(last, turning + still)
    if of_latent:
        first = _linear(module.q_a_proj)
        norm = known_norm(network_module(module.q_a_layernorm), last.in_features)
        if first is None or norm is None:
            return None
        bias = None if first.bias is None else first.bias.detach()
        latents["Q"] = Latent(first.weight.detach().T, bias, norm, queries)
    made = {"Q": (queries, None if b_Q is None else b_Q.roll(turning, -1))}
    made |= {side: (latent.W, made["Q"][1] if side == "Q" else None) for side, latent in latents.items()}
    return _attention(module, made, o, latents)


def _attention(
    module: Any, sides: dict[str, tuple[Tensor, Tensor | None]], o: nn.Linear, latents: dict[str, Latent] | None = None
) -> Attention:
    (W_Q, b_Q), (W_K, b_K), (W_V, b_V) = (sides[side] for side in "QKV")
    return Attention(
        W_Q,
        W_K,
        W_V,
        o.weight.detach().T.view(len(W_Q), -1, o.out_features),
        b_Q,
        b_K,
        b_V,
        None if o.bias is None else o.bias.detach(),
        scale=float(getattr(module, "scaling", None) or W_Q.shape[2] ** -0.5),
        rotary=None,
        rotary_scale=1.0,
        window=getattr(module, "sliding_window", None),
        latents=latents or {},
    )


def _linear(component: Any) -> nn.Linear | None:
    module = None if component is None else network_module(component)
    return module if isinstance(module, nn.Linear) else None


def _columns(linear: nn.Linear, width: int) -> Float[Tensor, "head d_in width"]:
    return linear.weight.detach().unflatten(0, (-1, width)).mT


def _bias(linear: nn.Linear, width: int) -> Float[Tensor, "head width"] | None:
    return None if linear.bias is None else linear.bias.detach().view(-1, width)


def _shared(linear: nn.Linear, width: int, heads: int) -> tuple[Tensor, Tensor | None]:
    """Weights and biases, once for each head that shares them."""
    W, b = _columns(linear, width), _bias(linear, width)
    times = heads // len(W)
    return W.repeat_interleave(times, 0), None if b is None else b.repeat_interleave(times, 0)
