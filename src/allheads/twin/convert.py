"""The pipeline: a pretrained transformer becomes its attention-only twin.

1. Share the source's network: same weight memory, no bridge.
2. Read its MLPs, and refuse what is not understood.
3. Bound what the input can do to each preactivation.
4. Choose gates: sums of heads that equal the activation, or approximate it on that domain.
5. Put a bank of heads where each MLP was.
6. Bridge the result, and see that every bank is what the model runs.
"""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge

from allheads.banks.evaluate import Evaluation
from allheads.errors import AllHeadsError
from allheads.models.bridge import TwinBridge, build_twin, share
from allheads.models.mlps import MLP, read_mlps
from allheads.theory.approximate import DEFAULT_TOLERANCE, approximate
from allheads.theory.gates import GateSum
from allheads.twin.domain import Domain, input_domains, needs_domain


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
        mlps = read_mlps(source, body)
        domains = input_domains(source, body, mlps)
        for mlp, domain in zip(mlps, domains, strict=True):
            mlp.install(body, mlp.heads(_gates(mlp, domain, tolerance), evaluation))
        twin = build_twin(source, body)
        twin.tolerance = tolerance
        twin.domains = domains
        _assert_replaced(twin, len(mlps))
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
        domain=domain.limit if needs_domain(mlp) else None,
    )
    rounding = torch.finfo(torch.promote_types(mlp.dtype, torch.float32)).eps
    if gates.max_error and tolerance < rounding / 8:
        raise AllHeadsError(
            f"a tolerance that the rounding of the patterns can show, {rounding / 8:.0e} or more",
            f"{tolerance:.0e}",
            "Raise the tolerance, or load the model in float64.",
        )
    return gates


def _assert_replaced(twin: TwinBridge, expected: int) -> None:
    """Every bank is run once, and the logits depend on its heads.

    The gradient of the logits with respect to the heads' outputs z is taken in every layer: where it is zero,
    zeroing the heads would change nothing.
    """
    probes: list[torch.Tensor] = []

    def probe(z: torch.Tensor, hook: object) -> torch.Tensor:
        probes.append(torch.zeros_like(z, requires_grad=True))
        return z + probes[-1]

    tokens = torch.arange(min(4, twin.cfg.n_ctx), device=twin.cfg.device)[None] % twin.cfg.d_vocab
    points = [(f"blocks.{layer}.mlp.hook_z", probe) for layer in range(expected)]
    with torch.enable_grad(), twin.evaluated("slots"):
        logits = twin.run_with_hooks(tokens, fwd_hooks=points)
        gradients = torch.autograd.grad(logits.double().square().sum(), probes, allow_unused=True)
        # TransformerLens keeps the last patterns: these should not hold the probe's graph.
        with torch.no_grad():
            twin(tokens[:, :1])
    silent = [layer for layer, g in enumerate(gradients) if g is None or not g.abs().max() > 0]
    if len(probes) != expected or silent:
        raise AllHeadsError(
            f"{expected} banks of heads that the logits depend on",
            f"{len(probes)} that run, and layers {silent} without effect",
            "Their output weights are zero, or this architecture calls its MLPs in a way that is not supported yet.",
        )
