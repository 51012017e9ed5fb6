"""On which interval the gates of a layer have to hold.

Gated and squared activations grow quadratically and heads only linearly, so their certificates hold on a bounded
domain. Where the MLP reads a norm, a bound holds for every input (`allheads.models.norms`); elsewhere it is
measured on random input with a margin, and leaving it is counted and reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from allheads.models.mlps import MLP, ReplacedMLP
from allheads.models.norms import Norm, measure_norm, norm_modules
from allheads.models.observe import Activations

#: How far beyond the largest measured preactivation a measured domain reaches.
MARGIN = 4.0


@dataclass(frozen=True)
class Domain:
    """``|t| <= limit`` for the preactivations of a layer: for every input if ``by_theorem``."""

    limit: float
    by_theorem: bool


def needs_domain(mlp: MLP) -> bool:
    """Does the certificate of this MLP's activation end somewhere?"""
    return mlp.gated or mlp.activation.squared


def input_domains(body: nn.Module, units: list[ReplacedMLP], activations: Activations) -> list[list[Domain]]:
    """The domain of every MLP, unit by unit; infinite where the activation is plain.

    ``activations`` is a run of the network in which its norms and the units were watched.
    """
    paths = {path for path, _ in norm_modules(body)}
    norms = {path: written for path, written in activations.outputs.items() if path in paths}
    measured: dict[str, Norm | None] = {}
    domains = []
    for unit in units:
        if not any(needs_domain(mlp) for mlp in unit.mlps):
            domains.append([Domain(math.inf, True) for _ in unit.mlps])
            continue
        reads = activations.inputs.get(unit.reads, [])
        path = next((path for path, written in norms.items() if _is_read(written, reads)), None)
        if path is not None and path not in measured:
            measured[path] = measure_norm(body.get_submodule(path), reads[0].shape[-1])
        norm = measured[path] if path is not None else None
        domains.append([_domain(mlp, norm, reads) for mlp in unit.mlps])
    return domains


def _is_read(written: list[Tensor], reads: list[Tensor]) -> bool:
    """Is what the MLP read, at every call, what the norm wrote?"""
    return (
        bool(reads)
        and len(written) == len(reads)
        and all(
            w.shape[-1] == x.shape[-1] and w.numel() == x.numel() and torch.equal(w.reshape(x.shape), x)
            for w, x in zip(written, reads, strict=True)
        )
    )


def _domain(mlp: MLP, norm: Norm | None, reads: list[Tensor]) -> Domain:
    if not needs_domain(mlp):
        return Domain(math.inf, True)
    weight, bias = mlp.query
    if norm is not None:
        return Domain(float(norm.reach(weight, bias).max()), True)
    x = torch.cat([read.flatten(0, -2) for read in reads]) if reads else torch.ones(1, weight.shape[0]).to(weight)
    t = x @ weight if bias is None else x @ weight + bias
    return Domain(MARGIN * max(1.0, float(t.detach().abs().max())), False)
