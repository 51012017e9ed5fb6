"""The pipeline: a pretrained transformer becomes its attention-only twin.

1. Share the source's network: same weight memory, no bridge.
2. Read its MLPs and experts, and refuse what is not understood.
3. Run it once, and bound what any input can do to each preactivation.
4. Choose gates: sums of heads that equal the activation, or approximate it on that domain.
5. Bridge it, and put a bank of heads where each MLP was.
6. See that every bank is what the model runs, and that nothing else of an MLP is.
"""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge

from allheads.banks.evaluate import Evaluation
from allheads.errors import AllHeadsError
from allheads.models.audit import audit
from allheads.models.bridge import TwinBridge, bridge, share
from allheads.models.graft import graft, refresh
from allheads.models.mlps import MLP
from allheads.models.probe import observe, probe_inputs
from allheads.models.units import other_parts, read_units
from allheads.theory.approximate import DEFAULT_TOLERANCE, approximate
from allheads.theory.gates import GateSum
from allheads.twin.domain import Domain, input_domains, needs_domain, norm_paths


def convert(
    model: TransformerBridge, *, tolerance: float = DEFAULT_TOLERANCE, evaluation: Evaluation = "closed"
) -> TwinBridge:
    """The attention-only twin of ``model``: every MLP neuron becomes one or a few attention heads.

    ``tolerance`` is the certified error of the scalar activation, absolute for plain neurons and relative to
    0.3 + |f| for gated ones. The source is untouched; the twin's weights are views of it.

    Raises `AllHeadsError` if the model is not a plain bridge, an MLP or activation is not supported, or the
    tolerance cannot be reached.

    >>> import allheads as ah
    >>> source = ah.load()  # doctest: +SKIP
    >>> twin = ah.convert(source)  # doctest: +SKIP
    """
    source = _checked(model)
    # Weights made in inference mode could never be probed with a gradient, nor edited later.
    with torch.inference_mode(False):
        body = share(source)
        units = read_units(source, body)
        inputs = probe_inputs(body, source.cfg)
        seen = observe(body, inputs, [*norm_paths(body), *(unit.reads for unit in units)])
        domains = input_domains(body, units, seen)
        banks = [
            [mlp.heads(_gates(mlp, domain, tolerance), evaluation) for mlp, domain in zip(unit.mlps, here, strict=True)]
            for unit, here in zip(units, domains, strict=True)
        ]
        twin = bridge(source, body)
        for unit, here in zip(units, banks, strict=True):
            graft(twin, unit, here)
        refresh(twin)
        twin.tolerance = tolerance
        twin.banks = [bank for here in banks for bank in here]
        twin.places = [mlp.place for unit in units for mlp in unit.mlps]
        twin.domains = [domain for here in domains for domain in here]
        twin.rest = other_parts(twin)
        audit(twin, units, inputs, seen)
    return twin


def _checked(model: TransformerBridge) -> TransformerBridge:
    if not isinstance(model, TransformerBridge):
        raise AllHeadsError(
            "a TransformerBridge",
            type(model).__name__,
            "Load one with ah.load(...) or boot_transformers(...).",
        )
    if isinstance(model, TwinBridge):
        raise AllHeadsError("a model with MLPs", "an attention-only twin", "It is converted already.")
    if model.original_model.training:
        raise AllHeadsError("a model in evaluation mode", "one in training mode", "Call model.eval() first.")
    if getattr(model, "_weights_processed", False) or model.compatibility_mode:
        raise AllHeadsError(
            "a bridge with the weights it was trained with",
            "one in compatibility mode",
            "Convert first, and call enable_compatibility_mode on neither or after.",
        )
    return model


def _gates(mlp: MLP, domain: Domain, tolerance: float) -> GateSum:
    gates = approximate(
        mlp.activation,
        gated=mlp.gated,
        tolerance=tolerance,
        domain=mlp.scale_in * domain.limit if needs_domain(mlp) else None,
    ).stretched(mlp.scale_in, mlp.scale_out)
    rounding = torch.finfo(torch.promote_types(mlp.dtype, torch.float32)).eps
    if gates.max_error and tolerance < rounding / 8:
        raise AllHeadsError(
            f"a tolerance that the rounding of the patterns can show, {rounding / 8:.0e} or more",
            f"{tolerance:.0e}",
            "Raise the tolerance, or load the model in float64.",
        )
    return gates
