"""potential: the log-sum-exp that a token would climb if a head moved it along its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from allheads import AllHeadsError, HeadBank, Label, TwinBridge
from allheads.twin.capture import captured
from allheads.twin.prompt import prompt_ids, require_twin
from allheads.weights import read_attention
from allheads_labs.physics.fields import HeadField, NeuronField

if TYPE_CHECKING:
    from allheads.twin.heads import Head


@dataclass(frozen=True)
class Potential:
    """One head on one prompt. ``U`` is in nats; gradients are nats per unit of the normed input ``x``.

    ``gradient`` holds all keys; ``own`` is what is added to it because the token makes a key, too. ``pattern`` is over
    the positions, or for a neuron head over its slots: its own token, then the bias tokens.
    """

    label: str
    field: HeadField | NeuronField
    x: Float[Tensor, "pos d_model"]
    U: Float[Tensor, " pos"]
    pattern: Float[Tensor, "pos key"]
    gradient: Float[Tensor, "pos d_model"]
    own: Float[Tensor, "pos d_model"]

    @property
    def entropy(self) -> Float[Tensor, " pos"]:
        """That of the pattern, in nats: ``U`` less the mean score. U is a free energy, with its sign turned."""
        return -torch.special.xlogy(self.pattern, self.pattern).sum(-1)

    def at(self, reading: Float[Tensor, "*points pos d_model"]) -> Float[Tensor, "*points pos"]:
        """The potential where the tokens are not: at other normed inputs, all keys held."""
        return self.field.scores(reading, self.x).logsumexp(-1)

    def autograd(self) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]]:
        """``gradient`` and ``own`` again, by automatic differentiation and nothing else."""
        with torch.enable_grad():
            reading, own = (self.x.clone().requires_grad_() for _ in range(2))
            U = self.field.scores(reading, own).logsumexp(-1)
            first, second = torch.autograd.grad(U.sum(), [reading, own], allow_unused=True)
        return first, torch.zeros_like(self.x) if second is None else second


@torch.no_grad()
def potential(twin: TwinBridge, tokens: str | Tensor, label: str | Label) -> Potential:
    r"""The potential of one head over a prompt, and its gradient in closed form.

        U_i = ln sum_k exp(s_ik),    dU_i/dx_i = scale W_Q R_i (sum_k a_ik R_k^T k_k)  +  a_ii scale W_K q_i

    with ``s_ik = scale (q_i R_i) . (k_k R_k)`` over the keys that position i sees, biases included. Without rotary and
    biases the first term is ``W_Q W_K^T (sum_k a_ik x_k) / sqrt(d_head)``: keys are held. The second is there because
    x_i is a key, too. For a neuron head the keys are its own token and the bias tokens: ``U = ln(1 + sum_j exp(a_j -
    l_j t))``, along ``w`` only, and its pattern on self is ``exp(-U)``: a gate is open where its potential is low.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.
        label: one head: ``L3.A5``, or of a neuron ``L3.N812.0``.

    Returns:
        A `Potential`, in the dtype of the twin, float32 at least; against `Potential.autograd` 1e-10 in float64 and
        1e-4 of its norm in float32 (tests/physics).

    Raises:
        AllHeadsError: a label that names no head or several, a prompt that cannot be read, or a head whose pattern in
            this run is not the softmax of these scores: ALiBi, norms of queries, caps, sinks, rotary that turns
            neighbours, or frequencies of its own in every layer.

    The equations are the log-sum-exp energy of modern Hopfield networks (Ramsauer et al. 2020, arXiv 2008.02217) with
    queries and keys projected.

    >>> found = potential(twin, "Mary and John", "L3.A5")  # doctest: +SKIP
    >>> found.U, found.gradient.norm(dim=-1)  # doctest: +SKIP
    """
    return next(potentials(twin, prompt_ids(twin, tokens), [label]))


@torch.no_grad()
def potentials(twin: TwinBridge, ids: Tensor, labels: Sequence[str | Label]) -> Iterator[Potential]:
    """Those of several heads, from one run; raises as `potential` does."""
    heads = [_head(twin, label) for label in labels]
    names = dict.fromkeys(f"{head.hook_prefix}hook_{name}" for head in heads for name in ("in", "pattern"))
    activations = captured(twin, ids, names)
    for head in heads:
        x, pattern = (activations[f"{head.hook_prefix}hook_{name}"][0] for name in ("in", "pattern"))
        yield _potential(twin, head, x.to(torch.promote_types(x.dtype, torch.float32)), pattern[head.number])


def _head(twin: TwinBridge, label: str | Label) -> Head:
    heads = require_twin(twin).index.heads(label)
    if len(heads) != 1:
        raise AllHeadsError("one head", f"{label} with {len(heads)}", f"Name one of them: {heads[0]}.")
    return heads[0]


def _potential(twin: TwinBridge, head: Head, x: Tensor, observed: Tensor) -> Potential:
    """Raises `AllHeadsError` unless the logs of its pattern and the observed one agree, as then its scores do."""
    field: HeadField | NeuronField
    if isinstance(head.module, HeadBank):
        # Offsets of -inf mask bias tokens that other parts have and this one has not.
        weights = head.module.weights(x.dtype).only(head.label.index).part(head.label.part or 0)
        field = NeuronField(weights.to(x.dtype), x)
    else:
        # Which keys a query sees, by masks and windows of any kind, is read off its pattern.
        field = HeadField.of(read_attention(twin, head.label.layer), head.number, x, observed > 0)
    scores = field.scores(x, x)
    pattern, observed = scores.softmax(-1), observed[:, : scores.shape[-1]].to(x.dtype)
    size = scores[scores.isfinite()].abs().max().clamp_min(1.0)
    if not bool((pattern.log() - observed.log())[observed > 1e-6].abs().max() <= 4e-4 * size):
        kinds = "norms of queries, ALiBi, caps, sinks, or rotary of another kind"
        raise AllHeadsError(
            "scores that are scale (x W_Q + b_Q) R (x W_K + b_K)",
            f"others at {head} of {twin.cfg.architecture}: {kinds}",
            "Its potential is another function; choose another model.",
        )
    return Potential(str(head), field, x, scores.logsumexp(-1), pattern, field.pull(pattern), field.own_pull(pattern))
