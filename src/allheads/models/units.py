"""All MLPs of a model, read and checked before anything is changed."""

from __future__ import annotations

from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from allheads.errors import AllHeadsError
from allheads.models.experts import read_experts
from allheads.models.mlps import Unit, read_module, read_parts
from allheads.models.roles import Roles
from allheads.models.sites import find_sites, input_size


def read_units(source: TransformerBridge, body: nn.Module) -> list[Unit]:
    """Every MLP and every stack of experts; ``body`` is the source's network without its bridge.

    Raises `AllHeadsError` naming the layer if one is of a kind that is not known, or has weights that are not
    finite, and for a model without any.
    """
    known: list[Roles] = []
    units = []
    for site in find_sites(source, body):
        module = body.get_submodule(site.path)
        if site.experts:
            units.append(read_experts(site, module))
        elif site.inside is not None:
            units.append(read_parts(site, module))
        else:
            units.append(read_module(site, module, input_size(module), known))
    if not units:
        raise AllHeadsError(
            "a transformer with MLPs",
            f"{source.cfg.architecture}, in which none was found",
            "State-space and recurrent models have no MLPs to convert.",
        )
    return units
