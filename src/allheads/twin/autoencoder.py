r"""Sparse autoencoders: what passes a hook point, as a sum of few latents and an error.

    x = sum_k f_k d_k + b_dec + error        f = open * ((x - b) W_enc + b_enc)

``open`` says which latents are: those above a threshold, the largest, those that a gate of its own lets through. With
it held, latents are linear in x, and so is the error: each is a share of what passes, to be followed on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.gates.approximation import approximate
from allheads.heads.bank import HeadBank
from allheads.models.locations import Location
from allheads.twin.sites import Site
from allheads.twin.twin import TwinBridge

Architecture = Literal["standard", "jumprelu", "topk", "gated"]


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """A sparse autoencoder at a hook point of the stream, or of what an MLP or attention writes into it.

    ``b_enc`` has what ``b_dec`` takes from the input; ``threshold`` is what preactivations have to exceed, ``k`` how
    many latents are open at most, ``gate`` the weights and biases of a gate ``(x W + b > 0)``.
    """

    hook_point: str
    architecture: Architecture
    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " d_sae"] | float = 0.0
    k: int | None = None
    gate: tuple[Float[Tensor, "d_model d_sae"], Float[Tensor, " d_sae"]] | None = None

    @property
    def count(self) -> int:
        """How many latents there are."""
        return len(self.b_enc)

    @property
    def stem(self) -> str:
        """What the labels of its latents begin with: ``L3`` of ``L3.F77``."""
        return Location.at(self.hook_point).stem

    @property
    def sites(self) -> tuple[Site, Site]:
        """Its latents and its error, as sublayers."""
        at = Location.at(self.hook_point)
        latents = Site(at, "F", self.count, at=f"{self.hook_point}.latents")
        return latents, Site(at, "R", 1, at=f"{self.hook_point}.error")

    def preactivations(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_sae"]:
        """What latents would be if all were open."""
        return x @ self.W_enc + self.b_enc

    def open(self, x: Float[Tensor, "*rows d_model"]) -> Bool[Tensor, "*rows d_sae"]:
        """Which latents are."""
        values = self.preactivations(x)
        mask = values > torch.as_tensor(self.threshold).clamp_min(0.0)
        if self.k is not None:
            largest = values.topk(self.k).indices
            mask &= torch.zeros_like(mask).scatter(-1, largest, True)
        if self.gate is not None:
            weights, biases = self.gate
            mask &= x @ weights + biases > 0
        return mask

    def encode(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_sae"]:
        """The latents of what passes."""
        return self.preactivations(x) * self.open(x)

    def decode(self, latents: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_model"]:
        """What latents make together."""
        return latents @ self.W_dec + self.b_dec

    def as_heads(self) -> HeadBank:
        """The autoencoder as its attention-only twin: an MLP from stream to stream, whose neurons are the latents.

        Raises `AllHeadsError` for other architectures than the standard one: what chooses their latents is no sum of
        gates.
        """
        if self.architecture != "standard":
            raise AllHeadsError(
                "a standard autoencoder, whose latents are ReLUs", self.architecture, "Use its latents."
            )
        tensors = {"W_in": self.W_enc, "b_in": self.b_enc, "W_out": self.W_dec, "b_out": self.b_dec}
        return HeadBank(tensors, approximate("relu"))

    def like(self, x: Tensor) -> SparseAutoencoder:
        """The same in the dtype and on the device of a tensor."""
        gate = None if self.gate is None else (self.gate[0].to(x), self.gate[1].to(x))
        threshold = self.threshold.to(x) if isinstance(self.threshold, Tensor) else self.threshold
        made = {name: getattr(self, name).to(x) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return replace(self, gate=gate, threshold=threshold, **made)


def require_fitting(twin: TwinBridge, autoencoders: Sequence[SparseAutoencoder]) -> None:
    """Raise `AllHeadsError` for an autoencoder that has no place in a twin, and for two in one layer.

    >>> require_fitting(twin, [])
    """
    known = twin.hook_dict
    for each in autoencoders:
        at = Location.at(each.hook_point)
        ends = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
        if each.hook_point not in known or not each.hook_point.endswith(ends):
            raise AllHeadsError(
                f"an autoencoder at a hook point of the stream, {', '.join(ends)}",
                f"one at {each.hook_point}",
                "twin.hook_dict has all hook points.",
            )
        if len(each.b_dec) != twin.cfg.d_model:
            raise AllHeadsError(
                f"an autoencoder of d_model {twin.cfg.d_model}", f"one of {len(each.b_dec)}", "Use one of this model."
            )
        if sum(Location.at(other.hook_point).stem == at.stem for other in autoencoders) > 1:
            raise AllHeadsError("one autoencoder in a layer", f"two in {at.stem}", "Ask about one after the other.")
