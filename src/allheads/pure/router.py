"""Routers of mixtures of experts, found by the weights that they give: which experts, and how much of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.compat import network_path
from allheads.models.read_mlps import routers
from allheads.pure.runner import Router, routes
from allheads.twin.twin import TwinBridge


def read_router(
    twin: TwinBridge, name: str, x: Float[Tensor, "row d_model"], given: Float[Tensor, "row expert"] | None
) -> Router:
    """The router that gives experts these weights for these rows.

    Raises `AllHeadsError` where it is no choice of the largest of ``x W``.
    """
    if given is not None:
        for router in _candidates(twin, x, given):
            ours = routes(x, router)
            scale = float((ours * given).sum() / ours.square().sum().clamp_min(1e-300))
            if float((scale * ours - given).abs().max()) <= 1e-5 * float(given.abs().max()):
                return replace(router, scale=1.0 if abs(scale - 1.0) < 1e-6 else scale)
    known = ", ".join(network_path(path) for path, _ in routers(twin))
    raise AllHeadsError(
        "routers that choose the largest of x W",
        f"the router of {name}, which weighs experts in another way (routers: {known})"[:300],
        "This model cannot be exported.",
    )


def _candidates(twin: TwinBridge, x: Tensor, given: Tensor) -> Iterator[Router]:
    """Every way to choose, with every matrix of the twin's routers that has the shape.

    Those that use more vectors come first: what corrects the choice may not change that of a few rows.
    """
    count, top = given.shape[1], int((given != 0).sum(-1).max())
    for _, module in routers(twin):
        tensors = [*module.parameters(), *module.buffers()]
        vectors = [*(t.detach().flatten() for t in tensors if t.numel() == count), None]
        for weight in (t.detach() for t in tensors if t.shape == (count, x.shape[-1])):
            for bias, correction in itertools.product(vectors, vectors):
                for gate, normalised in itertools.product(("softmax", "sigmoid"), (True, False)):
                    yield Router(weight.mT, bias, correction, gate, top, normalised)
