"""What is read and what is asked: token ids of a prompt, and linear functionals of the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.twin.prompt import described, one_token
from allheads.twin.twin import TwinBridge, require_twin

#: A token, a pair (for, against), weights over the vocabulary, a function of the logits at one position, or all that
#: with a name and a position of its own.
TargetLike: TypeAlias = "str | int | tuple[str | int, str | int] | Tensor | Callable[[Tensor], Tensor] | Target"


def token_ids(twin: TwinBridge, tokens: str | Tensor) -> Int[Tensor, "1 pos"]:
    """One row of ids, as the model's own tokenizer gives them.

    Raises `AllHeadsError` for anything but a twin, several rows, an empty prompt, ids outside the vocabulary, or more
    tokens than ``n_ctx``.
    """
    require_twin(twin)
    twin.require_one_stack("read it linearly")
    if isinstance(tokens, str):
        if twin.tokenizer is None:
            raise AllHeadsError("token ids", "text, for a model without a tokenizer", "Pass a tensor of ids.")
        ids = twin.to_tokens(tokens, truncate=False) if tokens else torch.zeros(1, 0, dtype=torch.long)
    elif isinstance(tokens, Tensor) and not tokens.is_floating_point() and tokens.ndim in (1, 2):
        ids = (tokens if tokens.ndim == 2 else tokens[None]).to(twin.cfg.device).long()
    else:
        raise AllHeadsError("a prompt, or its ids [pos]", described(tokens), "Pass a string or integer ids.")
    n_ctx, d_vocab = twin.cfg.n_ctx, twin.cfg.d_vocab
    if ids.shape[0] != 1 or not 0 < ids.shape[1] <= n_ctx:
        raise AllHeadsError(
            f"one prompt of 1 to n_ctx = {n_ctx} tokens", f"ids of shape {tuple(ids.shape)}", "Read one at a time."
        )
    if int(ids.min()) < 0 or int(ids.max()) >= d_vocab:
        raise AllHeadsError(
            f"ids from 0 to {d_vocab - 1}", f"{int(ids.min())} to {int(ids.max())}", "Use the model's own tokenizer."
        )
    return ids


def token_names(twin: TwinBridge, ids: Int[Tensor, "1 pos"]) -> list[str]:
    """What the tokens say; their numbers, for a model without a tokenizer."""
    return twin.to_str_tokens(ids[0]) if twin.tokenizer is not None else [str(each) for each in ids[0].tolist()]


def position_in(length: int, position: int) -> int:
    """A position counted from the front. Raises `AllHeadsError` for one outside the prompt."""
    if not isinstance(position, int) or not -length <= position < length:
        raise AllHeadsError(f"a position from {-length} to {length - 1}", repr(position), "The last one is -1.")
    return position % length


class Asked(Protocol):
    """A number that is explained: a target, or something a head reads.

    It is read at one ``position``, out of the logits (``layer`` is None) or inside a layer, from what passes the hook
    points ``watched``.
    """

    @property
    def name(self) -> str:
        """What it is called in results."""

    @property
    def position(self) -> int:
        """Where the stream is read."""

    @property
    def layer(self) -> int | None:
        """In which layer; None for the logits."""

    @property
    def watched(self) -> tuple[str, ...]:
        """Hook points that are needed."""

    def of(self, logits: Tensor, seen: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Its value."""


@dataclass(frozen=True)
class Target:
    """A functional of the logits at one position: ``weights @ logits``, or any function, which is then not linear."""

    name: str
    position: int
    weights: Float[Tensor, " d_vocab"] | None
    function: Callable[[Tensor], Tensor] | None = None
    layer: None = None
    watched: tuple[str, ...] = ()

    def of(self, logits: Float[Tensor, "1 pos d_vocab"], seen: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Its value."""
        row = logits[0, self.position]
        if self.function is None:
            assert self.weights is not None
            return row @ self.weights.to(row)
        value = self.function(row)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise AllHeadsError("a target that is one number", described(value), "Return a scalar tensor.")
        return value.reshape(())


def make_target(twin: TwinBridge, target: TargetLike, position: int, length: int) -> Target:
    """The functional that ``target`` names, at a position of a prompt of this length.

    Raises `AllHeadsError` for text that is not one token, ids outside the vocabulary, a pair of one and the same, and
    positions outside the prompt.
    """
    if isinstance(target, Target):
        position_in(length, target.position)
        return target
    place = position_in(length, position)
    if isinstance(target, Tensor):
        if target.shape != (twin.cfg.d_vocab_out,) or not target.is_floating_point():
            raise AllHeadsError(f"weights [{twin.cfg.d_vocab_out}]", described(target), "One weight for each token.")
        return Target("weights", place, target)
    if isinstance(target, tuple) and len(target) == 2:
        (plus, plus_name), (minus, minus_name) = (one_token(twin, each) for each in target)
        if plus == minus:
            raise AllHeadsError("two different tokens", f"{plus_name} twice", "Name one for and one against.")
        return Target(f"{plus_name} - {minus_name}", place, _weights(twin, {plus: 1.0, minus: -1.0}))
    if callable(target):
        return Target(getattr(target, "__name__", "function"), place, None, target)
    token, name = one_token(twin, target)
    return Target(name, place, _weights(twin, {token: 1.0}))


def _weights(twin: TwinBridge, entries: dict[int, float]) -> Tensor:
    weights = torch.zeros(twin.cfg.d_vocab_out, dtype=torch.float64, device=twin.cfg.device)
    for token, weight in entries.items():
        weights[token] = weight
    return weights
