"""HeadBank: all neurons of one MLP as attention heads that read one residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allheads.errors import AllHeadsError
from allheads.gates.gates import GateSum
from allheads.heads import evaluate
from allheads.heads.edited import OwnHeads
from allheads.heads.evaluate import Evaluation
from allheads.heads.frozen import Held, linear
from allheads.heads.guard import SharedWeight
from allheads.heads.hooks import HeadHooks
from allheads.heads.weights import HeadWeights


class _PerHead:
    """An attribute of a bank that holds one weight of every head."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, bank: HeadBank | None, owner: type) -> Any:
        """To read, in the dtype of the model: a guarded view, or a guarded copy where a factor is folded in."""
        if bank is None:
            return self
        layout = dict(bank.own.named_parameters()) if bank.own is not None else OwnHeads.layout(bank.weights())
        return layout[self.name].detach().to(bank.dtype).as_subclass(SharedWeight)

    def __set__(self, bank: HeadBank, value: Tensor) -> None:
        raise AllHeadsError(
            "an edit of a head's weights in place",
            f"an assignment to {self.name}",
            f"Write `with bank.edit() as heads: heads.{self.name}[...] = ...`.",
        )


class HeadBank(nn.Module):
    r"""Every neuron ``n`` of an MLP as ``gates.heads`` heads that attend to self and to bias tokens.

    A plain neuron writes ``F(t) W_out[n]`` with ``t = x W_in[:, n] + b_in[n]``; a gated one writes
    ``F(g) u W_out[n]`` with ``g = x W_gate[:, n] + b_gate[n]`` and ``u = x W_in[:, n] + b_in[n]``. F is ``gates``.
    Head ``part * d_mlp + n`` is part ``part`` of neuron ``n``.

    The weights are views of the tensors given, in the orientations of TransformerLens: ``W_in [d_model d_mlp]``,
    ``W_out [d_mlp d_model]``. Seen as heads they are ``W_Q, W_K, W_V [head d_model d_head]``,
    ``W_O [head d_head d_model]``, ``b_Q, b_K, b_V [head d_head]``, ``b_O [d_model]``,
    ``bias_keys [head token d_head]`` and ``bias_offsets [head token]`` with d_head = 1, to read; `edit` hands them over
    for writing.

    >>> from allheads.gates.approximation import approximate
    >>> W = torch.eye(2)
    >>> bank = HeadBank(W, W, approximate("silu"), evaluation="slots")
    >>> x = torch.tensor([[[1.0, -1.0]]])
    >>> torch.allclose(bank(x), torch.nn.functional.silu(x))
    True
    """

    W_in: Tensor
    b_in: Tensor | None
    W_gate: Tensor | None
    b_gate: Tensor | None
    W_out: Tensor
    b_out: Tensor | None
    W_Q, b_Q, W_K, b_K = _PerHead(), _PerHead(), _PerHead(), _PerHead()
    W_V, b_V, W_O, b_O = _PerHead(), _PerHead(), _PerHead(), _PerHead()
    bias_keys, bias_offsets = _PerHead(), _PerHead()

    def __init__(
        self,
        W_in: Float[Tensor, "d_model d_mlp"],
        W_out: Float[Tensor, "d_mlp d_model"],
        gates: GateSum,
        *,
        b_in: Float[Tensor, " d_mlp"] | None = None,
        b_out: Float[Tensor, " d_model"] | None = None,
        W_gate: Float[Tensor, "d_model d_mlp"] | None = None,
        b_gate: Float[Tensor, " d_mlp"] | None = None,
        evaluation: Evaluation = "closed",
    ) -> None:
        super().__init__()
        self.gated = W_gate is not None
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}
        self.gates = gates
        self.d_mlp = W_in.shape[1]
        self.hooks = HeadHooks()
        self.evaluation = evaluation
        self.pattern_dtype: torch.dtype | None = None
        self.own: OwnHeads | None = None
        self.held: Held | None = None
        shared = {
            "W_in": W_in,
            "b_in": b_in,
            "W_gate": W_gate,
            "b_gate": b_gate,
            "W_out": W_out,
            "b_out": b_out,
        }
        for name, tensor in shared.items():
            # Parameters of its own over the same memory: casting or moving the bank leaves the source alone.
            view = None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
            self.register_parameter(name, view)

    @property
    def gates(self) -> GateSum:
        """The sum of heads that every neuron is."""
        return self._gates

    @gates.setter
    def gates(self, gates: GateSum) -> None:
        if gates.gated != self.gated:
            kinds = ["gates for a plain neuron", "gates for a gated neuron"]
            raise AllHeadsError(kinds[self.gated], kinds[gates.gated], "Use ah.gates.approximate(..., gated=...).")
        self._gates = gates
        self._tables.clear()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream the weights are made for."""
        return self.W_in.dtype if self.own is None else self.own.W_Q.dtype

    @property
    def evaluation(self) -> Evaluation:
        """``closed``, ``slots`` or ``attention``; see `allheads.heads.evaluate`."""
        return self._evaluation

    @evaluation.setter
    def evaluation(self, name: Evaluation) -> None:
        if name not in get_args(Evaluation):
            raise AllHeadsError(f"an evaluation out of {get_args(Evaluation)}", repr(name), "Use 'closed' by default.")
        self._evaluation = name

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], scale: Float[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The MLP's output, by the chosen evaluation, or by ``slots`` where a hook needs the heads one by one.

        While ``held`` is set it is a linear map, see `allheads.heads.frozen`.
        ``scale`` multiplies all values, see `allheads.heads.evaluate`.
        """
        if x.ndim != 3:
            raise AllHeadsError("a residual stream [batch pos d_model]", f"shape {tuple(x.shape)}", "Add a batch axis.")
        if self.held is not None:
            closed = self.evaluation == "closed"
            return linear(self.weights(), x, self.hooks, self.held, self.gates, closed)
        if self.evaluation == "closed" and self.own is None and not self.hooks.watched(*HeadHooks.PER_HEAD):
            return evaluate.closed(self.weights(), x, self.hooks, self.gates.activation, scale)
        pattern_dtype = self._pattern_dtype(x.dtype)
        if self.evaluation == "attention" and not self.hooks.watched(*HeadHooks.PER_HEAD):
            return evaluate.attention(self.weights(), x, self.hooks, pattern_dtype, scale)
        return evaluate.slots(self.weights(), x, self.hooks, pattern_dtype, scale)

    def weights(self, gate_dtype: torch.dtype | None = None) -> HeadWeights:
        """What the bank computes with: the shared views, or its own heads once edited.

        ``gate_dtype`` is the precision of the gates' coefficients, that of the patterns unless said.
        """
        if self.own is not None:
            return self.own.weights(self.gates.heads)
        query_weight, query_bias = (self.W_gate, self.b_gate) if self.gated else (self.W_in, self.b_in)
        keys, offsets, alpha, delta = self._gate_tables(gate_dtype or self._pattern_dtype(self.dtype))
        return HeadWeights(
            W_Q=cast(Tensor, query_weight).T[None],
            b_Q=None if query_bias is None else query_bias[None],
            W_K=None,
            b_K=None,
            W_V=self.W_in.T[None] if self.gated else None,
            b_V=self.b_in[None] if self.gated and self.b_in is not None else None,
            W_O=self.W_out[None],
            b_O=self.b_out,
            bias_keys=keys,
            bias_offsets=offsets,
            alpha=alpha,
            delta=delta,
        )

    @contextmanager
    def edit(self) -> Iterator[OwnHeads]:
        """Give the bank its own copy of every head, and hand it over for writing.

        >>> from allheads.gates.approximation import approximate
        >>> bank = HeadBank(torch.eye(2), torch.eye(2), approximate("silu"))
        >>> with bank.edit() as heads:
        ...     heads.W_O[0] *= 2
        >>> bank(torch.ones(1, 1, 2))[0, 0].tolist() == [2 * bank(torch.ones(1, 1, 2))[0, 0, 1].item()] + [
        ...     bank(torch.ones(1, 1, 2))[0, 0, 1].item()
        ... ]
        True
        """
        if self.own is None:
            self.own = OwnHeads(self.weights(torch.float64))
            for name in ("W_in", "b_in", "W_gate", "b_gate", "W_out", "b_out"):
                self._parameters[name] = None
        with torch.no_grad():
            yield self.own

    def head(self, number: int) -> dict[str, Tensor]:
        """The weights of one head by name, without expanding those of all the others."""
        part, neuron = divmod(number, self.d_mlp)
        layout = OwnHeads.layout(self.weights(torch.float64).only(neuron))
        return {name: tensor if name == "b_O" else tensor[part].to(self.dtype) for name, tensor in layout.items()}

    def _pattern_dtype(self, stream: torch.dtype) -> torch.dtype:
        return self.pattern_dtype or torch.promote_types(stream, torch.float32)

    def _gate_tables(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Keys, offsets, alpha and delta of the gates, made once per dtype from their exact values."""
        device = self.W_in.device
        if (dtype, device) not in self._tables:
            gates, width = self.gates.gates, max(self.gates.bias_tokens)
            pads = [width - count for count in self.gates.bias_tokens]
            rows = (
                [[[-k for k in g.slopes] + [0.0] * pad] for g, pad in zip(gates, pads, strict=True)],
                [[[*g.offsets, *[-torch.inf] * pad]] for g, pad in zip(gates, pads, strict=True)],
                # The value of a gated neuron is delta u: alpha scales the gate's own input, which it does not read.
                list(self.gates.delta if self.gated else self.gates.alpha),
                [0.0] * len(gates) if self.gated else list(self.gates.delta),
            )
            self._tables[dtype, device] = tuple(torch.tensor(r, dtype=dtype, device=device) for r in rows)
        return self._tables[dtype, device]
