"""Weights that a bank reads where they are: in the modules that own them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn


def _whole(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class WeightView:
    """A view of the parameter ``name`` of ``owner``, taken anew whenever it is read.

    So it follows what happens to the parameter: training, casting, another device, a state dict that is loaded, norms
    that are folded into it. ``view`` turns, slices or scales it.

    >>> layer = nn.Linear(2, 3)
    >>> W_in = WeightView(layer, "weight").then(lambda weight: weight.T)
    >>> W_in.read().shape
    torch.Size([2, 3])
    >>> layer.weight = nn.Parameter(layer.weight * 2)
    >>> bool((W_in.read() == layer.weight.T).all())
    True
    """

    owner: nn.Module
    name: str
    view: Callable[[Tensor], Tensor] = _whole

    def read(self) -> Tensor | None:
        """The weights; None if the owner has none of this name, as a projection without a bias."""
        tensor = getattr(self.owner, self.name, None)
        return None if tensor is None else self.view(tensor)

    def then(self, step: Callable[[Tensor], Tensor]) -> WeightView:
        """The same with one more step."""
        return replace(self, view=lambda tensor: step(self.view(tensor)))
