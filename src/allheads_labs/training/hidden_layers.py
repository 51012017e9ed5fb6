"""The hidden layer in three forms, from the same start: an MLP, its tied twin, and its untied twin.

=========  ==================================================================================================
``mlp``    ``silu(x W_in + b_in) W_out + b_out``
``tied``   a `HeadBank` evaluated as heads: query and value of a head are the same weights
``untied`` the same bank with a copy of every head: W_Q and W_V start equal and are free to part
=========  ==================================================================================================

Dropout comes in three places: on the hidden neurons, on the entries of the patterns after the softmax, and on the
keys before it. The value of a bias token is zero, so dropping entries of a pattern is the same as dropping neurons;
dropping keys is not: without its bias token a neuron is linear, without its own token it is silent.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allheads import AllHeadsError, HeadBank
from allheads.gates import approximate

Form = Literal["mlp", "tied", "untied"]
Dropout = Literal["none", "hidden", "pattern", "key"]


class MLP(nn.Module):
    """``silu(x W_in + b_in) W_out + b_out``, with dropout on the hidden neurons."""

    def __init__(self, W_in: Tensor, b_in: Tensor, W_out: Tensor, b_out: Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        self.W_in, self.b_in, self.W_out, self.b_out = map(nn.Parameter, (W_in, b_in, W_out, b_out))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """The MLP."""
        hidden = F.silu(x @ self.W_in + self.b_in)
        return F.dropout(hidden, self.dropout, self.training) @ self.W_out + self.b_out

    def gates(self, x: Tensor) -> Tensor:
        """``sigma(t)``, what the patterns on self are in the other two forms, ``[batch head pos]``."""
        return torch.sigmoid(x @ self.W_in + self.b_in).mT


class HiddenHeads(nn.Module):
    """The same as a bank of heads, with dropout on what hooks reach."""

    def __init__(self, start: MLP, *, tied: bool, dropout: Dropout, rate: float) -> None:
        super().__init__()
        weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.named_parameters()}
        self.bank = HeadBank(
            {name: weights[name] for name in ("W_in", "W_out", "b_in", "b_out")}, approximate("silu"), "slots"
        )
        if not tied:
            with self.bank.edit() as heads:
                # The gate's own shape stays; reading, value and writing are learned.
                for name in ("W_K", "b_K", "bias_keys", "bias_offsets"):
                    getattr(heads, name).requires_grad_(False)
        if dropout != "none":
            self._drop(dropout, rate)

    def _drop(self, dropout: Dropout, rate: float) -> None:
        def entries(tensor: Tensor, hook: Any) -> Tensor:
            return F.dropout(tensor, rate, self.training)

        def keys(scores: Tensor, hook: Any) -> Tensor:
            if not self.training:
                return scores
            dropped = torch.rand_like(scores) < rate
            # Where every key of a query would go, all stay.
            return scores.masked_fill(dropped & ~dropped.all(-1, keepdim=True), -torch.inf)

        hooks = self.bank.hooks
        place: dict[str, tuple[Any, Any]] = {
            "hidden": (hooks.hook_z, entries),
            "pattern": (hooks.hook_pattern, entries),
            "key": (hooks.hook_attn_scores, keys),
        }
        point, function = place[dropout]
        point.add_hook(function)

    def forward(self, x: Tensor) -> Tensor:
        """What the heads write."""
        return self.bank(x)

    def gates(self, x: Tensor) -> Tensor:
        """The patterns on self, ``[batch head pos]``."""
        patterns: list[Tensor] = []
        point = self.bank.hooks.hook_pattern_self
        point.add_hook(lambda pattern, hook: patterns.append(pattern))
        self.bank(x)
        point.remove_hooks()
        return patterns[0]


def hidden_layer(form: Form, start: MLP, dropout: Dropout = "none", rate: float = 0.1) -> MLP | HiddenHeads:
    """One form of the hidden layer, starting from the weights of ``start``.

    Raises `AllHeadsError` for an unknown form or dropout, a rate outside [0, 1), or patterns where there are none.

    >>> start = MLP(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2))
    >>> x = torch.ones(1, 3, 2)
    >>> all(torch.allclose(hidden_layer(form, start)(x), start(x)) for form in ("mlp", "tied", "untied"))
    True
    """
    if form not in get_args(Form) or dropout not in get_args(Dropout) or not 0 <= rate < 1:
        raise AllHeadsError(
            f"a form out of {get_args(Form)}, dropout out of {get_args(Dropout)} at a rate in [0, 1)",
            f"{form!r}, {dropout!r} at {rate}",
            "Use one of these.",
        )
    if form == "mlp":
        if dropout in ("pattern", "key"):
            raise AllHeadsError("dropout on what an MLP has", f"dropout on {dropout}s", "Use the tied or untied form.")
        copied = {name: tensor.detach().clone() for name, tensor in start.named_parameters()}
        return MLP(**copied, dropout=rate if dropout == "hidden" else 0.0)
    return HiddenHeads(start, tied=form == "tied", dropout=dropout, rate=rate)
