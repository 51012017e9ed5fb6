"""HeadBank: all neurons of one MLP as attention heads that read one residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allheads.errors import AllHeadsError
from allheads.gates.gates import GateSum
from allheads.heads import evaluate
from allheads.heads.alone import alone, passing
from allheads.heads.edited import EditedHeads
from allheads.heads.evaluate import Evaluation
from allheads.heads.frozen import FrozenGates
from allheads.heads.guard import SharedWeight
from allheads.heads.hooks import HeadHooks
from allheads.heads.views import WeightView
from allheads.heads.weights import HeadWeights


def _per_head(name: str) -> Any:
    """An attribute of a bank that holds one weight of every head, to read, in the dtype of the model.

    It is a guarded view, or a guarded copy where a factor is folded in.
    """

    def read(bank: HeadBank) -> Tensor:
        edited = bank.edited
        layout = EditedHeads.layout(bank.weights()) if edited is None else dict(edited.named_parameters())
        return layout[name].detach().to(bank.dtype).as_subclass(SharedWeight)

    def refuse(bank: HeadBank, value: Tensor) -> None:
        raise AllHeadsError(
            "an edit of a head's weights in place",
            f"an assignment to {name}",
            f"Write `with bank.edit() as heads: heads.{name}[...] = ...`.",
        )

    return property(read, refuse)


def _shared(name: str) -> Any:
    """An attribute of a bank that reads what its neurons share; None where the MLP has none of it."""

    def read(bank: HeadBank) -> Tensor | None:
        bank.require_shared(f"heads that share {name}", remedy="Read bank.W_Q, bank.W_O and the like: one per head.")
        return bank.shared(name)

    def write(bank: HeadBank, value: Tensor) -> None:
        # What `bank.W_out *= 2` assigns has been written already.
        shared = read(bank)
        if shared is None or (value.data_ptr(), value.shape) != (shared.data_ptr(), shared.shape):
            raise AllHeadsError(
                "a change in place of what neurons share",
                f"an assignment to {name}",
                f"Write `bank.{name}[...] = ...`, which changes the source's weights too, or edit heads.",
            )

    return property(read, write, doc=f"``{name}`` of the MLP, which the neurons share; refused for edited heads.")


class HeadBank(nn.Module):
    r"""Every neuron ``n`` of an MLP as ``gates.heads`` heads that attend to self and to bias tokens.

    A plain neuron writes ``F(t) W_out[n]`` with ``t = x W_in[:, n] + b_in[n]``; a gated one writes
    ``F(g) u W_out[n]`` with ``g = x W_gate[:, n] + b_gate[n]`` and ``u = x W_in[:, n] + b_in[n]``. F is ``gates``.
    Head ``part * d_mlp + n`` is part ``part`` of neuron ``n``.

    The weights are ``tensors``, in the orientations of TransformerLens: ``W_in [d_model d_mlp]``,
    ``W_out [d_mlp d_model]``, for gated neurons ``W_gate [d_model d_mlp]``, and ``b_in``, ``b_out`` and ``b_gate``
    where the MLP has them. A tensor becomes a parameter of the bank over the same memory; a `WeightView` is read in the
    module that owns it, anew in every run. Seen as heads they are ``W_Q, W_K, W_V [head d_model d_head]``,
    ``W_O [head d_head d_model]``, ``b_Q, b_K, b_V [head d_head]``, ``b_O [d_model]``,
    ``bias_keys [head token d_head]`` and ``bias_offsets [head token]`` with d_head = 1, to read; `edit` hands them over
    for writing.

    The weights are *shared* with the source until `edit` gives the bank *edited* ones. While a bank of shared weights
    is *frozen* (`freeze`), it is a linear map.

    >>> from allheads.gates.approximation import approximate
    >>> W = torch.eye(2)
    >>> bank = HeadBank({"W_in": W, "W_out": W}, approximate("silu"), "slots")
    >>> x = torch.tensor([[[1.0, -1.0]]])
    >>> torch.allclose(bank(x), torch.nn.functional.silu(x))
    True
    """

    edited: EditedHeads | None
    frozen: FrozenGates | None
    W_in, W_gate, W_out = map(_shared, ("W_in", "W_gate", "W_out"))
    b_in, b_gate, b_out = map(_shared, ("b_in", "b_gate", "b_out"))
    W_Q, b_Q, W_K, b_K = map(_per_head, ("W_Q", "b_Q", "W_K", "b_K"))
    W_V, b_V, W_O, b_O = map(_per_head, ("W_V", "b_V", "W_O", "b_O"))
    bias_keys, bias_offsets = map(_per_head, ("bias_keys", "bias_offsets"))

    def __init__(
        self, tensors: Mapping[str, Tensor | WeightView], gates: GateSum, evaluation: Evaluation = "closed"
    ) -> None:
        super().__init__()
        self.gated = "W_gate" in tensors
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}
        self.gates = gates
        # New parameters over the same memory: casting or moving the bank leaves the source alone.
        self.stored = nn.ParameterDict(
            {
                name: nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
                for name, tensor in tensors.items()
                if isinstance(tensor, Tensor)
            }
        )
        self.views = {
            name: tensor if isinstance(tensor, WeightView) else WeightView(self.stored, name)
            for name, tensor in tensors.items()
        }
        self.edited = None
        self.d_mlp = self._tensor("W_in").shape[1]
        self.hooks = HeadHooks()
        self.evaluation = evaluation
        self.pattern_dtype: torch.dtype | None = None
        self.frozen = None

    def shared(self, name: str) -> Tensor | None:
        """What the neurons share with the MLP they come from, edited or not: ``W_in``, ``b_out`` ..."""
        view = self.views.get(name)
        return None if view is None else view.read()

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
        return self._tensor("W_in").dtype if self.edited is None else self.edited.W_Q.dtype

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

        While the bank is frozen it is a linear map, see `allheads.heads.frozen`.
        ``scale`` multiplies all values, see `allheads.heads.evaluate`.
        """
        if x.ndim != 3:
            raise AllHeadsError("a residual stream [batch pos d_model]", f"shape {tuple(x.shape)}", "Add a batch axis.")
        with passing(self):
            return self._output(x, scale)

    def _output(self, x: Tensor, scale: Tensor | None) -> Tensor:
        if self.frozen is not None:
            rows = self.frozen.by_prompt(x)
            scale = None if scale is None else scale.view(rows.shape[:2])
            out = self.frozen.output(self.weights(), rows, self.hooks, self.evaluation == "closed", scale)
            return out.view(x.shape)
        if self.evaluation == "closed" and self.edited is None and not self.hooks.watched(*HeadHooks.PER_HEAD):
            return evaluate.closed(self.weights(), x, self.hooks, self.gates.activation, scale)
        pattern_dtype = self._pattern_dtype(x.dtype)
        if self.evaluation == "attention" and not self.hooks.watched(*HeadHooks.PER_HEAD):
            return evaluate.attention(self.weights(), x, self.hooks, pattern_dtype, scale)
        return evaluate.slots(self.weights(), x, self.hooks, pattern_dtype, scale)

    def weights(self, gate_dtype: torch.dtype | None = None) -> HeadWeights:
        """What the bank computes with: the shared views, or the edited heads.

        ``gate_dtype`` is the precision of the gates' coefficients, that of the patterns unless said.
        """
        if self.edited is not None:
            return self.edited.weights(self.gates.heads)
        query, b_in = "gate" if self.gated else "in", self.shared("b_in")
        query_bias = self.shared(f"b_{query}")
        keys, offsets, alpha, delta = self._gate_tables(gate_dtype or self._pattern_dtype(self.dtype))
        return HeadWeights(
            W_Q=self._tensor(f"W_{query}").T[None],
            b_Q=None if query_bias is None else query_bias[None],
            W_K=None,
            b_K=None,
            W_V=self._tensor("W_in").T[None] if self.gated else None,
            b_V=b_in[None] if self.gated and b_in is not None else None,
            W_O=self._tensor("W_out")[None],
            b_O=self.shared("b_out"),
            bias_keys=keys,
            bias_offsets=offsets,
            alpha=alpha,
            delta=delta,
        )

    @contextmanager
    def edit(self) -> Iterator[EditedHeads]:
        """Give the bank its own copy of every head, and hand it over for writing.

        If the block raises, or leaves NaN behind (`AllHeadsError`), the heads are what they were before. Raises
        `AllHeadsError` also where another thread edits or runs the bank, and there meanwhile.

        >>> from allheads.gates.approximation import approximate
        >>> bank = HeadBank({"W_in": torch.eye(2), "W_out": torch.eye(2)}, approximate("silu"))
        >>> with bank.edit() as heads:
        ...     heads.W_O[0] *= 2
        >>> bank(torch.ones(1, 1, 2))[0, 0].tolist() == [2 * bank(torch.ones(1, 1, 2))[0, 0, 1].item()] + [
        ...     bank(torch.ones(1, 1, 2))[0, 0, 1].item()
        ... ]
        True
        """
        if self.frozen is not None:
            raise AllHeadsError("a bank whose gates may change", "frozen gates", "Edit it before or after.")
        with alone(self):
            before = None if self.edited is None else self.edited.snapshot()
            edited = self.copy_heads()
            try:
                with torch.no_grad():
                    yield edited
                edited.check_numbers()
            except BaseException:
                if before is None:
                    self.edited = None
                else:
                    edited.restore(before)
                raise

    def copy_heads(self) -> EditedHeads:
        """The bank's own copy of every head, made from what is shared if there is none."""
        if self.edited is None:
            self.edited = EditedHeads(self.weights(torch.float64))
        return self.edited

    def freeze(self, gate_share: float = 0.0) -> None:
        """Keep the patterns that the next run has, until `unfreeze`; see `allheads.heads.frozen`."""
        self.frozen = FrozenGates(self.gates.activation, gate_share if self.gated else 0.0)

    def unfreeze(self) -> None:
        """Let the patterns follow the input again."""
        self.frozen = None

    def everything(self) -> Iterator[nn.Parameter]:
        """The parameters that heads come from, those of the network among them."""
        yield from self.parameters()
        for view in self.views.values():
            if isinstance(parameter := getattr(view.owner, view.name, None), nn.Parameter):
                yield parameter

    def require_shared(self, needed: str, where: str = "", remedy: str = "Do it before the edit.") -> None:
        """Raise `AllHeadsError` if the heads were edited: ``needed`` says what the caller reads."""
        if self.edited is not None:
            raise AllHeadsError(needed, f"edited heads in {where}" if where else "edited heads", remedy)

    def head(self, number: int) -> dict[str, Tensor]:
        """The weights of one head by name, without expanding those of all the others."""
        part, neuron = divmod(number, self.d_mlp)
        layout = EditedHeads.layout(self.weights(torch.float64).only(neuron))
        return {name: tensor if name == "b_O" else tensor[part].to(self.dtype) for name, tensor in layout.items()}

    def _tensor(self, name: str) -> Tensor:
        return cast(Tensor, self.shared(name))

    def _pattern_dtype(self, stream: torch.dtype) -> torch.dtype:
        return self.pattern_dtype or torch.promote_types(stream, torch.float32)

    def _gate_tables(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Keys, offsets, alpha and delta of the gates, made once per dtype from their exact values."""
        device = self._tensor("W_in").device
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
