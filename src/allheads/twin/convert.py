"""The pipeline: a pretrained transformer becomes its attention-only twin (Huben & Morris 2023, arXiv 2309.08593).

1. Share the source's network: same weight memory, no bridge.
2. Read its MLPs and experts, and refuse what is not understood.
3. Run it once, and find the domain of each preactivation: what it can be on any input, where the MLP reads a norm, and
   what it is on random input, with a margin, elsewhere.
4. Choose gates: sums of heads that equal the activation, or approximate it on that domain. A gate here is the weight
   with which a head attends to its own token, as a function of the preactivation; it is not the gate of a gated MLP.
5. Bridge it, and put a bank of heads, all those of one MLP's neurons, where each MLP was.
6. See that every bank is what the model runs, and that nothing else of an MLP is.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor, nn

from allheads.errors import AllHeadsError
from allheads.gates.approximation import DEFAULT_TOLERANCE, approximate
from allheads.gates.gates import GateSum
from allheads.heads.evaluate import Evaluation
from allheads.models.bridge import TransformerBridge, bridge, share
from allheads.models.compat import network_path, weights_processed
from allheads.models.graft import graft
from allheads.models.mlps import MLP, ReplacedMLP
from allheads.models.norms import norm_modules
from allheads.models.observe import Activations, evaluating, observe, probe_inputs
from allheads.models.read_mlps import read_mlps
from allheads.twin.audit import audit
from allheads.twin.domain import Domain, input_domains, needs_domain
from allheads.twin.twin import Layer, TwinBridge


def convert(
    model: TransformerBridge, *, tolerance: float | None = None, evaluation: Evaluation = "closed"
) -> TwinBridge:
    """The attention-only twin of ``model``: every MLP neuron becomes one or a few attention heads.

    ``tolerance`` is the certified error of the scalar activation f, absolute for neurons without a gate and relative to
    0.3 + |f| for gated ones, which multiply it (docs/gates.md). Without one it is 5e-7; where the domain of a layer is
    too wide for that, it is the smallest that the table reaches, up to 1e-5, and a warning says which.
    ``twin.tolerance`` is what it came to. ``evaluation`` says how banks compute: ``closed``, by the activation itself,
    ``slots``, every head over its own token and its bias tokens, or ``attention``, every head over all positions. The
    source is untouched; the twin's weights are views of it. A model of attention alone is its own twin: it comes back
    without neurons, and a warning says so.

    Raises `AllHeadsError` if the model is not a plain bridge, an MLP or activation is not supported, or the
    tolerance cannot be reached.

    >>> import allheads as ah
    >>> source = ah.load()
    >>> twin = ah.convert(source)
    >>> bool((twin("Mary and John") - source("Mary and John")).abs().max() < 1e-3)
    True
    """
    source = checked(model)
    # Weights made in inference mode could never be probed with a gradient, nor edited later.
    with torch.inference_mode(False), evaluating(source):
        reading = read(source)
        # One for each MLP, in their order.
        domains = list(chain(*input_domains(reading.body, reading.replaced, reading.activations)))
        gates = [gates_of(mlp, domain, tolerance) for mlp, domain in zip(reading.mlps, domains, strict=True)]
        certified = tolerance if tolerance is not None else _reached(reading.mlps, gates)
        scaled = [scaled_gates(mlp, sums) for mlp, sums in zip(reading.mlps, gates, strict=True)]
        return assemble(reading, scaled, domains, certified, evaluation)


def checked(model: TransformerBridge) -> TransformerBridge:
    """The model, if it is one that can have a twin; `AllHeadsError` if not."""
    if not isinstance(model, TransformerBridge):
        raise AllHeadsError(
            "a TransformerBridge",
            type(model).__name__,
            "Load one with ah.load(...) or boot_transformers(...).",
        )
    if isinstance(model, TwinBridge):
        raise AllHeadsError("a model with MLPs", "an attention-only twin", "It is converted already.")
    if weights_processed(model):
        raise AllHeadsError(
            "a bridge with the weights it was trained with",
            "one whose weights enable_compatibility_mode has processed",
            "Load it again; convert first, and call enable_compatibility_mode on the twin.",
        )
    if elsewhere := [name for name, p in model.original_model.named_parameters() if p.is_meta]:
        raise AllHeadsError(
            "a model whose weights are in memory",
            f"one with {len(elsewhere)} of them elsewhere, as {network_path(elsewhere[0])}",
            "A device_map may spread it over devices, but not offload it to disk.",
        )
    if model.original_model.training and any(isinstance(m, torch.nn.Dropout) and m.p for m in model.modules()):
        warnings.warn("The model is in training mode, with dropout; its twin is in evaluation mode.", stacklevel=3)
    return model


@dataclass(frozen=True)
class Reading:
    """A source whose MLPs are understood, a copy of its network to put banks into, and one run on random input."""

    source: TransformerBridge
    body: nn.Module
    replaced: list[ReplacedMLP]
    inputs: dict[str, Tensor]
    activations: Activations

    @property
    def mlps(self) -> list[MLP]:
        """Every MLP, in the order of a twin's banks."""
        return [mlp for group in self.replaced for mlp in group.mlps]


def read(source: TransformerBridge) -> Reading:
    """Steps 1 and 2, and the run of step 3, for a source that is checked and in evaluation mode.

    Raises `AllHeadsError` as `convert` does.
    """
    body = share(source)
    replaced = read_mlps(source, body)
    inputs = probe_inputs(body, source.cfg)
    paths = [*(path for path, _ in norm_modules(body)), *(group.reads for group in replaced)]
    try:
        activations = observe(body, inputs, paths)
    except RuntimeError:  # some networks cannot run without their bridge, whose hooks then see the run
        activations = observe(source.original_model, inputs, paths)
    return Reading(source, body, replaced, inputs, activations)


def gates_of(mlp: MLP, domain: Domain, tolerance: float | None) -> GateSum:
    """Step 4 for the activation of one MLP.

    Raises `AllHeadsError` for a tolerance that cannot be reached or that rounding would hide.
    """
    gates = approximate(
        mlp.activation,
        gated=mlp.gated,
        tolerance=tolerance,
        domain=mlp.scale_in * domain.limit if needs_domain(mlp) else None,
    )
    rounding = torch.finfo(torch.promote_types(mlp.dtype, torch.float32)).eps
    if gates.max_error and tolerance is not None and tolerance < rounding / 8:
        raise AllHeadsError(
            f"a tolerance that the rounding of the patterns can show, {rounding / 8:.0e} or more",
            f"{tolerance:.0e}",
            "Raise the tolerance, or load the model in float64.",
        )
    return gates


def scaled_gates(mlp: MLP, gates: GateSum) -> GateSum:
    """The same for what the MLP computes, ``scale_out f(scale_in t)``."""
    return gates.stretched(mlp.scale_in, mlp.scale_out)


def _reached(mlps: Sequence[MLP], gates: Sequence[GateSum]) -> float:
    """The tolerance that gates keep of their activation, before any scaling, of a twin for which none was named."""
    if not mlps:
        warnings.warn("The model has attention alone: its twin is the model, without neurons.", stacklevel=3)
    errors = [sums.max_error for sums in gates]
    worst = max(errors, default=0.0)
    if worst <= DEFAULT_TOLERANCE:
        return DEFAULT_TOLERANCE
    mlp = mlps[errors.index(worst)]
    warnings.warn(
        f"The tolerance of this twin is {worst:.3g}, where {DEFAULT_TOLERANCE:g} is usual: the table's best for"
        f" {mlp.activation.name} on the domain of {mlp.location.stem}.",
        stacklevel=3,
    )
    return worst


def assemble(
    reading: Reading,
    gates: Sequence[GateSum],
    domains: Sequence[Domain],
    tolerance: float,
    evaluation: Evaluation = "closed",
) -> TwinBridge:
    """Steps 5 and 6, with gates and domains given for every MLP. Changes ``reading.body`` in place."""
    banks = [mlp.heads(sums, evaluation) for mlp, sums in zip(reading.mlps, gates, strict=True)]
    bridged = bridge(reading.source, reading.body)
    remaining = iter(banks)
    for group in reading.replaced:
        graft(bridged, group, list(islice(remaining, len(group.mlps))))
    records = zip((mlp.location for mlp in reading.mlps), banks, domains, strict=True)
    twin = TwinBridge.of(bridged, [Layer(*record) for record in records], tolerance, reading.source)
    audit(twin, reading.replaced, reading.inputs, reading.activations)
    return twin
