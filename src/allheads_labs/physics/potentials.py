"""potential: the log-sum-exp that a token would climb if a head moved it along its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allheads import AllHeadsError, TwinBridge
from allheads.heads.bank import HeadBank
from allheads.models.attention import read_attention
from allheads.twin.heads import Head
from allheads.twin.labels import Label
from allheads.twin.prompt import prompt_ids
from allheads.twin.twin import require_twin
from allheads_labs.physics.fields import Field, HeadField, NeuronField


@dataclass(frozen=True)
class Potential:
    """One head on one prompt. ``U`` is in nats; gradients are nats per unit of the normed input ``x``.

    ``gradient`` holds all keys; ``own`` is what is added to it because the token makes a key, too. ``pattern`` is over
    the positions, or for a neuron head over its slots: its own token, then the bias tokens.
    """

    label: str
    field: Field
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
    parts = [_one(twin, label) for label in labels]
    names = dict.fromkeys(f"{part.hook_prefix}hook_{name}" for part in parts for name in ("in", "pattern"))
    missing = [name for name in names if name not in twin.hook_dict]
    if missing:
        raise AllHeadsError(
            "a head that shows what it reads and its pattern", f"none at {missing[0]}", "Not supported."
        )
    seen = twin.run_with_cache(ids, names_filter=list(names), return_cache_object=False)[1]
    for part in parts:
        yield _of(twin, part, seen)


def _one(twin: TwinBridge, label: str | Label) -> Head:
    found = require_twin(twin).index.heads(label)
    if len(found) != 1:
        raise AllHeadsError("one head", f"{label} with {len(found)}", f"Name one of them: {found[0]}.")
    return found[0]


def _of(twin: TwinBridge, part: Head, seen: Mapping[str, Tensor]) -> Potential:
    x, theirs = (seen[f"{part.hook_prefix}hook_{name}"][0] for name in ("in", "pattern"))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    theirs = theirs[part.number].to(x.dtype)
    field: Field
    if isinstance(part.module, HeadBank):
        field = _of_neuron(part, part.module, x)
        theirs = theirs[:, : field.scores(x, x).shape[-1]]
    else:
        # Which keys a query sees, by masks and windows of any kind, is read off its pattern.
        field = HeadField.of(read_attention(twin, part.label.layer), part.number, x, theirs > 0)
    scores = field.scores(x, x)
    pattern = scores.softmax(-1)
    _same(part, pattern, theirs, scores, twin.cfg.architecture)
    return Potential(str(part), field, x, scores.logsumexp(-1), pattern, field.pull(pattern), field.own_pull(pattern))


def _of_neuron(part: Head, bank: HeadBank, x: Tensor) -> NeuronField:
    index, number = part.label.index, part.label.part or 0
    # Offsets of -inf mask bias tokens that other parts have and this one has not.
    return NeuronField(bank.weights(x.dtype).only(index).part(number).to(x.dtype), x)


def _same(part: Head, ours: Tensor, theirs: Tensor, scores: Tensor, architecture: str | None) -> None:
    """Raises `AllHeadsError` unless the logs of both patterns agree: what differs there differs in the scores."""
    some = theirs > 1e-6
    size = scores[scores.isfinite()].abs().max().clamp_min(1.0)
    if not bool((ours.log() - theirs.log())[some].abs().max() <= 4e-4 * size):
        raise AllHeadsError(
            "scores that are scale (x W_Q + b_Q) R (x W_K + b_K)",
            f"others at {part} of {architecture}: norms of queries, ALiBi, caps, sinks, or rotary of another kind",
            "Its potential is another function; choose another model.",
        )
