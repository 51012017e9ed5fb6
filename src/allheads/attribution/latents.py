r"""What passes a hook point, as latents of a sparse autoencoder and an error, and what each contributes to a target.

With G the gradient of the target at the hook point,

    sum_p G_p . x_p  =  sum_pk f_pk (d_k . G_p)  +  sum_p b_dec . G_p  +  sum_p error_p . G_p

whatever the rule, since nothing is replaced: what the autoencoder does not reconstruct goes on as its error. In the
stream before or after a layer that is a cut of the network: under a complete rule, with the constants that come after,
these sum to the target. In a graph, latents and errors stand between the parts before and after them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.attribution.attribute import answer
from allheads.attribution.attribution import Attribution, Contribution
from allheads.attribution.forward_cache import ForwardCache
from allheads.attribution.freezing import differentiable
from allheads.attribution.question import Question
from allheads.result import SHOWN, Result
from allheads.twin.autoencoder import SparseAutoencoder, require_fitting
from allheads.twin.labels import Label

if TYPE_CHECKING:
    import pandas

    from allheads.attribution.attribution_graph import AttributionGraph


@dataclass(frozen=True, repr=False)
class LatentAttribution(Result):
    """What latents, the error and the bias of an autoencoder contribute; all numbers in units of the target.

    ``attribution`` has these parts among all others, as ``L3.F77`` and ``L3.R0``. Direct parts then sum to the target
    with ``biases``, which are no part.
    """

    attribution: Attribution
    autoencoder: SparseAutoencoder
    #: By position: of every latent, of what they do not reconstruct, and of the decoder's bias.
    latents: Float[Tensor, "pos d_sae"]
    errors: Float[Tensor, " pos"]
    biases: Float[Tensor, " pos"]
    #: The activations of the latents on the prompt, and how much of the square of what passes is reconstructed.
    activations: Float[Tensor, "pos d_sae"]
    explained: float

    @property
    def total(self) -> float:
        """The contribution of all that passes the hook point."""
        return sum(float(some.sum()) for some in (self.latents, self.errors, self.biases))

    def facts(self) -> dict[str, Any]:
        """The question, and how much latents and error contribute in sum."""
        return {
            "target": self.attribution.target.name,
            "rule": self.attribution.rule.name,
            "hook_point": self.autoencoder.hook_point,
            "total": self.total,
            "latents": float(self.latents.sum()),
            "error": float(self.errors.sum()),
            "bias": float(self.biases.sum()),
            "explained": self.explained,
        }

    def top(self, k: int = 10) -> list[Contribution]:
        """The k latents at positions that contribute most, by size."""
        return self.attribution.top(k, kind="F")

    def to_dataframe(self, k: int | None = None) -> pandas.DataFrame:
        """A row for each latent that is open, largest first: label, latent, position, token, activation, effect."""
        import pandas

        label = Label(self.autoencoder.stem, "F", 0)
        tokens = self.attribution.question.tokens_at(label, len(self.latents))
        order = self.latents.abs().flatten().argsort(descending=True)[: 1000 if k is None else k]
        rows = []
        for position, latent in (divmod(number, self.autoencoder.count) for number in order.tolist()):
            if activation := float(self.activations[position, latent]):
                name, effect = f"{self.autoencoder.stem}.F{latent}", float(self.latents[position, latent])
                rows.append((name, latent, position, tokens[position], activation, effect))
        return pandas.DataFrame(rows, columns=["label", "latent", "position", "token", "activation", "effect"])

    def preview(self) -> pandas.DataFrame:
        """The largest."""
        return self.to_dataframe(SHOWN)

    def graph(self, *, budget: int = 100, coverage: float = 1.0) -> AttributionGraph:
        """The graph of the question, with latents and errors among its nodes; see `Attribution.graph`."""
        return self.attribution.graph(budget=budget, coverage=coverage)


def through(question: Question, autoencoder: SparseAutoencoder) -> LatentAttribution:
    """See `Attribution.through`."""
    split = replace(question, autoencoders=(*question.autoencoders, autoencoder))
    require_fitting(split.twin, split.autoencoders)
    latents, error = (site.name for site in autoencoder.sites)
    found = answer(split)
    with differentiable(split):
        cache = ForwardCache(split.twin, split.metric.hook_points, autoencoders=split.autoencoders)
        with cache.recording():
            value = split.metric.of(split.run(), cache.activations)
        points = [site.point for site in autoencoder.sites]
        activations, rest = (cache.activations[point] for point in points)
        (gradient,) = torch.autograd.grad(value, [rest], allow_unused=True)
    own = autoencoder.like(rest)
    slopes = torch.zeros_like(rest) if gradient is None else gradient
    whole = own.decode(activations.detach()) + rest.detach()[:, :, 0]
    return LatentAttribution(
        found,
        autoencoder,
        found.effects[latents],
        found.effects[error][0],
        slopes[0, :, 0] @ own.b_dec,
        activations.detach()[0],
        1.0 - float(rest.detach().square().sum() / whole.square().sum().clamp_min(1e-30)),
    )
