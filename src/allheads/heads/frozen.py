"""A bank with its gates frozen: a linear map of the stream, up to a constant.

With patterns P frozen at those of one input, a plain neuron's heads write ``sum_h P_h (alpha_h t + delta_h)``, and a
gated one's ``sum_h P_h delta_h u``: a slope times the preactivation t (or the value input u), and a constant. At that
input this is the bank's own output. A gated neuron is a product, and may share its credit otherwise: with the
fraction ``gate_share`` = c it writes ``(1 - c) F_0 u + c (u_0 F_0 / g_0) g``, where 0 marks what is frozen.

Edited heads are frozen one by one: ``(1 - c) P_0 v + c v_0 (P(0) + (P_0 - P(0)) / q_0 q)``, where P(0) is what a head
attends to itself when its query is 0. Over the heads of a neuron that was not changed this is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.gates.activations import Activation
from allheads.heads.evaluate import patterns_on_self, per_head, projections, read_in, sum_of_heads, written
from allheads.heads.hooks import HeadHooks
from allheads.heads.weights import HeadWeights

#: Preactivations nearer to 0 than this have the slope that the activation has there, measured this far away.
_NEAR, _STEP = 1e-12, 1e-4


@dataclass
class FrozenGates:
    """Every neuron as the linear map that it is with the patterns of the first run, which records it.

    A plain neuron is ``value * t + constant``. A gated one is ``value * u``, or ``gate * g`` where ``gate`` is
    ``u_0 F_0 / g_0``, in the shares ``1 - gate_share`` and ``gate_share``. Edited heads have a ``part`` axis: they are
    ``value * v``, or ``gate * q + constant``, in these shares.
    """

    activation: Activation
    gate_share: float = 0.0
    value: Float[Tensor, "batch pos *part d_mlp"] | None = None
    constant: Float[Tensor, "batch pos *part d_mlp"] | None = None
    gate: Float[Tensor, "batch pos *part d_mlp"] | None = None

    def output(
        self,
        heads: HeadWeights,
        x: Float[Tensor, "batch pos d_model"],
        at: HeadHooks,
        closed: bool,
        scale: Float[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The bank's output; where ``closed``, it is that of the activation itself at the first input.

        ``scale`` multiplies what neurons write, and the layer's bias: a router's weight.
        """
        if heads.edited:
            return self._output_of_heads(heads, x, at, scale)
        t, u = (projected[..., 0, :] for projected in projections(heads, x, at))
        if self.value is None:
            self._record(heads, t.detach(), u.detach(), closed)
            if self.constant is not None and torch.is_grad_enabled():
                self.constant.requires_grad_()
        value = cast(Tensor, self.value)
        if self.constant is not None:
            post = value * t + self.constant
        elif self.gate is None:
            post = value * u
        elif self.gate_share == 1.0:
            post = self.gate * t
        else:
            post = (1.0 - self.gate_share) * (value * u) + self.gate_share * (self.gate * t)
        post = post if scale is None else post * scale[..., None]
        return written(heads, at.hook_post(post.to(x.dtype)), scale)

    def _output_of_heads(self, heads: HeadWeights, x: Tensor, at: HeadHooks, scale: Tensor | None) -> Tensor:
        """The output of edited heads, each of which shows what it writes at ``hook_z``."""
        stream, dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
        x = read_in(heads, x, dtype)
        q, v = (projected.to(dtype) for projected in projections(heads, x, at))
        q, v = per_head(q, heads.parts, at.hook_q), per_head(v, heads.parts, at.hook_v)
        if self.value is None:
            self._record_heads(heads, x.detach(), q.detach(), v.detach())
            if self.constant is not None and torch.is_grad_enabled():
                self.constant.requires_grad_()
        z = cast(Tensor, self.value) * v
        if self.gate is not None:
            z = (1.0 - self.gate_share) * z + self.gate_share * (self.gate * q) + cast(Tensor, self.constant)
        z = z if scale is None else z * scale[..., None, None].to(z.dtype)
        return sum_of_heads(heads, per_head(z, heads.parts, at.hook_z), at, stream, scale)

    @torch.no_grad()
    def _record_heads(self, heads: HeadWeights, x: Tensor, q: Tensor, v: Tensor) -> None:
        self.value = patterns_on_self(heads, x, q)
        if self.gate_share > 0:
            # In float64: of a small query, a slope is a difference of two patterns that are nearly the same.
            moved = torch.where(q.abs() < _NEAR, _STEP, q.double())
            shut, opened = (patterns_on_self(heads, x.double(), query) for query in (torch.zeros_like(moved), moved))
            self.gate = (v * (opened - shut) / moved).to(v)
            self.constant = (self.gate_share * v * shut).to(v)

    def by_prompt(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Rows that a layer has laid end to end, prompt by prompt again, once a run has shown its length."""
        length = None if self.value is None else self.value.shape[1]
        fits = length is not None and len(x) == 1 and x.shape[1] % length == 0
        return x.view(-1, length, x.shape[2]) if fits and length else x

    @torch.no_grad()
    def _record(self, heads: HeadWeights, t: Tensor, u: Tensor, closed: bool) -> None:
        if heads.W_V is None:
            self.value, constant = _weighted(heads, t)
            self.constant = self.activation(t) - self.value * t if closed else constant
            return
        self.value = self.activation(t) if closed else _weighted(heads, t)[0]
        if self.gate_share > 0:
            near = t.abs() < _NEAR
            at_zero = self.activation(torch.full_like(t, _STEP)) / _STEP
            self.gate = u * torch.where(near, at_zero, self.value / torch.where(near, 1.0, t))


def _weighted(heads: HeadWeights, t: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_h P_h alpha_h`` and ``sum_h P_h delta_h``. For gated neurons the first has what multiplies u."""
    dtype = torch.promote_types(t.dtype, torch.float32)
    # Heads that share their neuron's weights have no key that depends on the stream: only queries matter.
    pattern = patterns_on_self(heads, t, t[..., None, :].to(dtype))
    alpha, delta = (torch.stack((heads.alpha, heads.delta)).to(dtype) @ pattern).unbind(-2)
    return alpha, delta
