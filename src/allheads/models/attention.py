"""Reading ordinary attention: where it is, and its heads as plain tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import AttentionBridge

from allheads.errors import AllHeadsError
from allheads.models.compat import named_components
from allheads.models.locations import Location


@dataclass(frozen=True)
class AttentionLayer:
    """An attention component of a bridge: where, whether it looks at its own stack or across, and how many heads."""

    location: Location
    kind: Literal["A", "X"]
    n_heads: int
    module: Any


def attention_layers(model: TransformerBridge) -> list[AttentionLayer]:
    """Every ordinary attention component, in the order of the layers.

    Patterns are at ``location.prefix + "hook_pattern"``: ``blocks.3.attn.``, ``encoder_blocks.3.attn.``,
    ``decoder_blocks.3.self_attn.`` and ``decoder_blocks.3.cross_attn.``, ``[batch head destination source]``.
    """
    return [
        AttentionLayer(
            Location.at(name), "X" if name.endswith("cross_attn") else "A", _n_heads(model, component), component
        )
        for name, component in named_components(model)
        if isinstance(component, AttentionBridge)
    ]


def is_attention(module: nn.Module) -> bool:
    """Is it attention of transformers', which the bridge may have no component for?

    It tells the kernel that runs it the scale of its scores, or whether it may look ahead. Recurrent mixers, also those
    that are called linear attention, have no scores, and a layer leaves both to its attention.
    """
    return hasattr(module, "scaling") or hasattr(module, "is_causal")


def _n_heads(model: TransformerBridge, component: Any) -> int:
    module = component.original_component
    for owner in (module, getattr(module, "config", None)):
        for name in ("num_heads", "n_heads", "num_attention_heads", "n_head"):
            if isinstance(getattr(owner, name, None), int):
                return getattr(owner, name)
    return model.cfg.n_heads


@dataclass(frozen=True)
class Attention:
    """The ordinary heads of one layer, keys and values repeated where queries share them."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_Q: Float[Tensor, "head d_head"] | None
    b_K: Float[Tensor, "head d_head"] | None
    b_V: Float[Tensor, "head d_head"] | None
    b_O: Float[Tensor, " d_model"] | None
    scale: float
    rotary: Float[Tensor, " half"] | None
    rotary_scale: float
    window: int | None


def read_attention(model: TransformerBridge, layer: int) -> Attention:
    """The ordinary heads of a layer.

    What a module does beyond these numbers is not looked for here: whoever uses them compares outputs.
    """
    component: Any = model.blocks[layer].attn
    module = component.original_component
    try:
        n_heads = component.W_Q.shape[0]
    except NotImplementedError as cause:  # TransformerLens, of latent attention
        got = f"layer {layer} with compressed projections"
        raise AllHeadsError("attention with W_Q, W_K, W_V and W_O", got, "Not supported.") from cause

    def tensor(name: str) -> Tensor | None:
        value = getattr(component, name, None)
        if value is None:
            return None
        return value.detach() if name == "b_O" else value.detach().repeat_interleave(n_heads // value.shape[0], 0)

    weights: dict[str, Any] = {name: tensor(name) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")}
    missing = [name for name in ("W_Q", "W_K", "W_V", "W_O") if weights[name] is None]
    if missing:
        raise AllHeadsError(
            "attention with W_Q, W_K, W_V and W_O", f"layer {layer} without {missing}", "Not supported."
        )
    turning = getattr(getattr(model, "rotary_emb", None), "original_component", None)
    # Some families have other frequencies in every layer: those are not read.
    frequencies = getattr(turning, "inv_freq", None)
    return Attention(
        **weights,
        scale=float(getattr(module, "scaling", None) or weights["W_Q"].shape[2] ** -0.5),
        rotary=None if frequencies is None else frequencies.detach(),
        rotary_scale=float(getattr(turning, "attention_scaling", 1.0)),
        window=getattr(module, "sliding_window", None),
    )
