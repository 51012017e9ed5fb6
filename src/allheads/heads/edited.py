"""The heads of a bank once somebody edits them: one explicit copy, in TransformerLens orientations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from allheads.errors import AllHeadsError
from allheads.heads.weights import HeadWeights

#: What carries a coefficient of the gates.
_EXACT = ("W_V", "b_V", "bias_keys", "bias_offsets")


class EditedHeads(nn.Module):
    """``W_Q, W_K, W_V [head d_model d_head]``, ``W_O [head d_head d_model]``, biases and bias tokens, to write to.

    What carries a coefficient of the gates, ``W_V, b_V, bias_keys`` and ``bias_offsets``, is kept in float64, so that
    a copied bank is certified like a shared one. Evaluations cast it to the dtype of the stream.
    """

    W_Q: Tensor
    b_Q: Tensor
    W_K: Tensor
    b_K: Tensor
    W_V: Tensor
    b_V: Tensor
    W_O: Tensor
    b_O: Tensor
    bias_keys: Tensor
    bias_offsets: Tensor

    def __init__(self, shared: HeadWeights) -> None:
        super().__init__()
        trained = shared.W_Q.requires_grad
        for name, tensor in self.layout(shared).items():
            copied = tensor.detach().clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(copied, requires_grad=trained))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EditedHeads:
        """Move with the model, and keep the gates' coefficients in float64 when the model is cast."""
        exact = {name: getattr(self, name).data for name in _EXACT}
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            parameter = getattr(self, name)
            parameter.data = tensor.to(parameter.device)
        return self

    def snapshot(self) -> dict[str, tuple[nn.Parameter, Tensor]]:
        """Every parameter with a copy of its values."""
        return {name: (parameter, parameter.detach().clone()) for name, parameter in self.named_parameters()}

    def restore(self, snapshot: dict[str, tuple[nn.Parameter, Tensor]]) -> None:
        """Undo what was written, or put in a parameter's place, since a `snapshot`."""
        for name, (parameter, values) in snapshot.items():
            parameter.data = values
            self._parameters[name] = parameter

    def resize_tokens(self, tensors: Mapping[str, Tensor]) -> None:
        """Make room for as many bias tokens as these tensors have."""
        for name in ("bias_keys", "bias_offsets"):
            if name in tensors:
                parameter = self.get_parameter(name)
                parameter.data = parameter.new_empty(tensors[name].shape)

    def check_numbers(self) -> None:
        """Refuse NaN, and infinity but in ``bias_offsets``, where minus infinity masks a bias token."""
        for name, tensor in self.named_parameters():
            allowed = tensor.isfinite() | (tensor == -torch.inf) if name == "bias_offsets" else tensor.isfinite()
            if not allowed.all():
                head = int((~allowed).nonzero()[0, 0])
                raise AllHeadsError(
                    "finite weights", f"NaN or infinity in {name}[{head}]", "Nothing was changed: edit again."
                )

    @staticmethod
    def layout(shared: HeadWeights) -> dict[str, Tensor]:
        """The weights of every head, expanded: views where nothing has to be multiplied."""
        parts, neurons, d_model = shared.parts, shared.neurons, shared.W_Q.shape[2]

        def per_head(tensor: Tensor) -> Tensor:
            return tensor.expand(parts, neurons, -1).flatten(0, 1)

        zeros = shared.W_Q.new_zeros(()).expand(parts, neurons)
        b_Q = zeros if shared.b_Q is None else shared.b_Q.expand(parts, neurons)
        value, b_value = (shared.W_Q, b_Q) if shared.W_V is None else (shared.W_V, shared.b_V)
        b_value = zeros if b_value is None else b_value.expand(parts, neurons)
        alpha, delta = shared.alpha.double()[:, None], shared.delta.double()[:, None]
        return {
            "W_Q": per_head(shared.W_Q)[..., None],
            "b_Q": b_Q.flatten()[:, None],
            "W_K": per_head(zeros[..., None].expand(-1, -1, d_model) if shared.W_K is None else shared.W_K)[..., None],
            "b_K": (zeros if shared.b_K is None else shared.b_K).flatten()[:, None],
            "W_V": per_head(alpha[..., None] * value)[..., None],
            "b_V": (alpha * b_value + delta).flatten()[:, None],
            "W_O": per_head(shared.W_O)[:, None],
            "b_O": shared.W_Q.new_zeros(d_model) if shared.b_O is None else shared.b_O,
            "bias_keys": per_head(shared.bias_keys.double())[..., None],
            "bias_offsets": per_head(shared.bias_offsets.double()),
        }

    def weights(self, parts: int) -> HeadWeights:
        """Views of the parameters, as the evaluations read them."""

        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (parts, -1))

        return HeadWeights(
            W_Q=split(self.W_Q[..., 0]),
            b_Q=split(self.b_Q[:, 0]),
            W_K=split(self.W_K[..., 0]),
            b_K=split(self.b_K[:, 0]),
            W_V=split(self.W_V[..., 0]),
            b_V=split(self.b_V[:, 0]),
            W_O=split(self.W_O[:, 0]),
            b_O=self.b_O,
            bias_keys=split(self.bias_keys[..., 0]),
            bias_offsets=split(self.bias_offsets),
            alpha=self.bias_keys.new_ones(parts),
            delta=self.bias_keys.new_zeros(parts),
        )
