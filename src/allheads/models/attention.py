"""Reading ordinary attention: where it is, and its heads as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import AttentionBridge

from allheads.errors import AllHeadsError
from allheads.models.compat import named_components
from allheads.models.locations import Location
from allheads.models.norms import Norm


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
class Latent:
    """Queries, keys or values that are made in two steps, with a norm between: ``norm(x W_down) W_up``.

    Coordinates of ``x W_down`` behind those that the norm has a gain for pass it by.
    """

    W_down: Float[Tensor, "d_model latent"]
    b_down: Float[Tensor, " latent"] | None
    norm: Norm
    W_up: Float[Tensor, "head latent d_head"]

    def __call__(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows latent"]:
        """What is between the steps."""
        made, rank = x @ self.W_down.to(x), len(self.norm.gain)
        made = made if self.b_down is None else made + self.b_down.to(x)
        return torch.cat([self.norm(made[..., :rank]), made[..., rank:]], -1)

    @property
    def of_one_scale(self) -> bool:
        """Does the norm read all of it?"""
        return len(self.norm.gain) == self.W_down.shape[1]

    @property
    def W(self) -> Float[Tensor, "head d_model d_head"]:
        """Both steps as one, with the norm's gain and without its scale."""
        rank = len(self.norm.gain)
        down = torch.cat([self.norm.direction(self.W_down[:, :rank]), self.W_down[:, rank:]], -1)
        return torch.einsum("dl,hle->hde", down, self.W_up)


@dataclass(frozen=True)
class Attention:
    """The ordinary heads of one layer, keys and values repeated where queries share them.

    ``norm_Q`` and ``norm_K`` are norms of queries and keys before they turn, ``norm_V`` of values: of each head, or of
    all heads together. Sides among ``latents`` are made in two steps; their matrices here are both steps as one, up to
    the scale of the norm between, which is positive and another at every position. Where it is ``gated``, what heads
    carry is multiplied, coordinate by coordinate, by positive gates that the destination sets.

    >>> read_attention(twin, 3).W_O.shape  # of every query head
    torch.Size([6, 8, 48])
    """

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
    #: Do neighbouring coordinates turn together, instead of those that are half of them apart?
    interleaved: bool = False
    norm_Q: Norm | None = None
    norm_K: Norm | None = None
    norm_V: Norm | None = None
    latents: Mapping[str, Latent] = field(default_factory=dict)
    gated: bool = False

    def projected(
        self, x: Float[Tensor, "*rows d_model"], side: str, head: int | None = None
    ) -> Float[Tensor, "*rows *head width"]:
        """Queries, keys or values of these inputs (``side`` is Q, K or V), before they turn; those of one head."""
        W, b, norm = (getattr(self, f"{name}_{side}") for name in ("W", "b", "norm"))
        if (latent := self.latents.get(side)) is not None:
            x, W = latent(x), latent.W_up
        whole = norm is not None and len(norm.gain) != W.shape[-1]
        chosen = slice(None) if head is None or whole else slice(head, head + 1)
        made = torch.einsum("...d,hde->...he", x, W[chosen].to(x))
        made = made if b is None else made + b[chosen].to(x)
        if norm is not None:
            made = norm(made.flatten(-2)).view_as(made) if whole else norm(made)
        return made if head is None else made[..., head if whole else 0, :]

    def directions(self, side: str) -> Float[Tensor, "head d_model d_head"]:
        """``W_Q``, ``W_K`` or ``W_V`` up to scales: with the gain of the norm of queries, keys or values.

        Raises `AllHeadsError` for what has no direction of its own: a norm of other heads, or of a part.
        """
        W, norm = getattr(self, f"W_{side}"), getattr(self, f"norm_{side}")
        if side in self.latents and not self.latents[side].of_one_scale:
            remedy = "Values can be read: '->V'; scores of tokens by ah.weights.circuit."
            raise AllHeadsError(f"W_{side} up to one scale", "latent attention that normalises a part of it", remedy)
        W = W.to(torch.promote_types(W.dtype, torch.float32))
        if norm is None:
            return W
        gain = norm.gain.to(W)
        if len(gain) == W.shape[-1]:
            return norm.direction(W)
        if norm.centred:  # over all heads: one head's queries then depend on the others' weights
            raise AllHeadsError("norms of queries that are not centred over all heads", "a LayerNorm", "Not supported.")
        return W * gain.view(len(W), 1, -1)


def read_attention(model: TransformerBridge, layer: int | AttentionLayer) -> Attention:
    """The ordinary heads of a layer: of ``blocks.{layer}.attn``, or of one of `attention_layers`.

    What a module does beyond these numbers is not looked for here: whoever uses them compares outputs.

    Raises `AllHeadsError` for attention without these weights.

    >>> read_attention(twin, 3).W_Q.shape
    torch.Size([6, 48, 8])
    """
    component: Any = layer.module if isinstance(layer, AttentionLayer) else _at(model, layer)
    where = layer.location.stem if isinstance(layer, AttentionLayer) else f"L{layer}"
    module = component.original_component
    weights: dict[str, Any] = {}
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        try:
            weights[name] = getattr(component, name, None)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):  # bridges that only name them
            weights[name] = None
    wrong = [
        name
        for name in ("W_Q", "W_K", "W_V", "W_O")
        if not isinstance(weights[name], Tensor) or weights[name].ndim != 3
    ]
    if wrong:
        raise AllHeadsError(
            "attention with W_Q, W_K, W_V and W_O of each head",
            f"{where} without {', '.join(wrong)}: a {type(module).__name__}",
            "Its patterns can be seen and attributed.",
        )
    n_heads = len(weights["W_Q"])
    for name, value in weights.items():
        if value is not None:
            fits = name == "b_O" or n_heads % len(value) == 0
            weights[name] = value.detach()
            if fits and name != "b_O":
                weights[name] = weights[name].repeat_interleave(n_heads // len(value), 0)
    turning = getattr(getattr(model, "rotary_emb", None), "original_component", None)
    # Some families have other frequencies in every layer.
    frequencies = getattr(turning, "inv_freq", None)
    return Attention(
        **weights,
        scale=float(getattr(module, "scaling", None) or weights["W_Q"].shape[2] ** -0.5),
        rotary=None if frequencies is None else frequencies.detach(),
        rotary_scale=float(getattr(turning, "attention_scaling", 1.0)),
        window=getattr(module, "sliding_window", None),
    )


def rotated(
    x: Float[Tensor, "*rows d_head"],
    offsets: Sequence[float],
    rotary: Float[Tensor, " half"] | None,
    interleaved: bool = False,
) -> Float[Tensor, "*rows d_head"]:
    """Queries as a key sees them that many positions before, averaged over ``offsets``.

    Rotary turns coordinates i and i + half by ``offset rotary_i``, or 2 i and 2 i + 1 where they are ``interleaved``;
    a mean of rotations turns and shrinks.

    >>> x = torch.tensor([1.0, 0.0, 5.0])
    >>> [rotated(x, some, torch.ones(1)).round().abs().tolist() for some in ([torch.pi / 2], [0.0, torch.pi])]
    [[0.0, 1.0, 5.0], [0.0, 0.0, 5.0]]
    """
    if rotary is None:
        return x
    half, angle = len(rotary), torch.tensor(offsets, dtype=torch.float64, device=x.device)[:, None] * rotary.double()
    turning = x[..., : 2 * half]
    first, second = (
        (turning[..., ::2], turning[..., 1::2]) if interleaved else (turning[..., :half], turning[..., half:])
    )
    cos, sin = angle.cos().mean(0).to(x), angle.sin().mean(0).to(x)
    pair = first * cos - second * sin, second * cos + first * sin
    together = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([together, x[..., 2 * half :]], -1)


def _at(model: TransformerBridge, layer: int) -> Any:
    blocks = getattr(model, "blocks", ())
    if not 0 <= layer < len(blocks) or not hasattr(blocks[layer], "attn"):
        raise AllHeadsError("a layer of one stack, with attention", f"layer {layer}", "Pass one of attention_layers.")
    return blocks[layer].attn
