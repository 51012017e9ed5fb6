"""How far a normalised input can push a preactivation: the domain as a theorem.

RMSNorm and LayerNorm write ``x = gain * n + shift`` with ``||n|| <= sqrt(d_model)`` (and n orthogonal to 1 for
LayerNorm), whatever comes in. So, for every input and in exact arithmetic,

    |w . x + b|  <=  |w . shift + b| + sqrt(d_model) ||gain * w||.

A thousandth is added for rounding; a stream whose mean exceeds its spread a thousandfold can still round further in
LayerNorm, and would be counted by `verify`. Gain and shift are measured on the norm itself, not read from its
weights: architectures store them in many ways.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from allheads.models.compat import version as written


@dataclass(frozen=True)
class Norm:
    """``gain * n + shift`` with ``n = x / sqrt(mean(x^2) + eps)``, x centred or not: ``||n|| <= sqrt(d_model)``."""

    gain: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]
    centred: bool
    slack: float
    eps: float = 0.0

    def reach(self, W: Float[Tensor, "d_model d_mlp"], b: Float[Tensor, " d_mlp"] | None) -> Float[Tensor, " d_mlp"]:
        """The largest ``|x @ W + b|`` that any input can cause, per neuron.

        Computed in float32 or better; the slack covers its rounding.

        >>> norm = Norm(torch.ones(4).double(), torch.zeros(4).double(), centred=False, slack=1.0)
        >>> norm.reach(torch.eye(4), None).tolist()
        [2.0, 2.0, 2.0, 2.0]
        """
        weight = W.detach().to(torch.promote_types(W.dtype, torch.float32))
        direction = self.folded(weight)
        offset = self.shift.to(weight) @ weight if b is None else self.shift.to(weight) @ weight + b.detach().to(weight)
        return self.slack * (offset.abs() + math.sqrt(len(self.gain)) * direction.norm(dim=0))

    def __call__(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What the norm makes of a stream."""
        n = self.centre(x)
        n = n * (n.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return torch.addcmul(self.shift.to(x), self.gain.to(x), n)

    def direction(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What the norm makes of a stream, up to its scale and shift."""
        return self.gain.to(x) * self.centre(x)

    def centre(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The stream less its mean, for LayerNorm; itself for RMSNorm."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def folded(self, W: Float[Tensor, "d_model out"]) -> Float[Tensor, "d_model out"]:
        """The weights that read a stream as W reads the normalised one, up to its scale and shift."""
        direction = self.gain.to(W)[:, None] * W
        return direction - direction.mean(0) if self.centred else direction


def norm_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every norm of a network, bridged or not, by path: modules without parts that scale a stream to one length.

    What counts is what a module computes, not its name: ``module(100 x) = module(x)``, and not a constant. Norms that
    `measure_norm` does not know are among them, so that whoever needs to can refuse them.
    """
    return ((path, module) for path, module, scales in _candidates(network) if scales)


def unreadable_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that may be norms, but cannot be called with a stream alone; by path."""
    return ((path, module) for path, module, scales in _candidates(network) if scales is None)


def ignores_size(function: Callable[[Tensor], Any], like: Float[Tensor, "... d_model"]) -> bool | None:
    """Does a function of streams of this shape give the same for 100 times as much, and not always the same?

    None if it takes no such stream.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(like.shape, generator=generator).to(like) for _ in range(2))
    try:
        with torch.no_grad():
            small, large, other = (function(rows).double() for rows in (10.0 * x, 1e3 * x, 10.0 * y))
    except Exception:
        return None
    # In units of what it makes of other rows: gains may be tiny, and shifts large.
    return bool((small - large).abs().max() < 0.05 * (small - other).abs().max())


#: By module: is it a norm? None if it cannot be called with a stream alone.
_SCALES: WeakKeyDictionary[nn.Module, bool | None] = WeakKeyDictionary()


def _candidates(network: nn.Module) -> Iterator[tuple[str, nn.Module, bool | None]]:
    widths: set[int] = set()
    for path, module in network.named_modules():
        if isinstance(module, HookPoint) or any(module.children()):
            continue
        if module not in _SCALES:
            widths = widths or {8, *(weight.shape[-1] for weight in network.parameters() if weight.ndim)}
            _SCALES[module] = _scales_to_one_length(module, widths)
        yield path, module, _SCALES[module]


def _scales_to_one_length(module: nn.Module, widths: set[int]) -> bool | None:
    weights = list(module.parameters())
    if len(weights) > 2 or any(weight.ndim != 1 for weight in weights):
        return False
    # A norm without weights may still want one width, of those that the network has.
    streams: list[Tensor] = [*weights[:1]] or [torch.zeros(width) for width in sorted(widths)]
    answers = (ignores_size(module, like.expand(1, 16, len(like))) for like in streams)
    return next((answer for answer in answers if answer is not None), None)


_MEASURED: WeakKeyDictionary[nn.Module, tuple[Any, Norm | None]] = WeakKeyDictionary()


def known_norm(module: nn.Module, d_model: int) -> Norm | None:
    """`measure_norm`, remembered as long as the weights stay; gain and shift are the weights' own where they are close.

    A norm that works in float32 inside shows its gain to seven digits only.
    """
    version = (d_model, *((p.data_ptr(), written(p), p.dtype) for p in module.parameters()))
    if _MEASURED.get(module, (None,))[0] != version:
        norm = measure_norm(module, d_model)
        if norm is not None:
            norm = replace(norm, gain=_exact(module, norm.gain), shift=_exact(module, norm.shift))
        _MEASURED[module] = (version, norm)
    return _MEASURED[module][1]


def _exact(module: nn.Module, value: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    stored = [p.detach().double() for p in module.parameters() if p.shape == value.shape]
    for candidate in (*stored, *(1.0 + p for p in stored), torch.ones_like(value), torch.zeros_like(value)):
        if torch.allclose(candidate, value, rtol=1e-6, atol=1e-9):
            return candidate
    return value


def measure_norm(module: nn.Module, d_model: int) -> Norm | None:
    """Recognise an RMSNorm or LayerNorm by what it computes in float64; None if it is neither.

    A signal of +1 and -1 (and one 2 if d_model is odd) has mean zero, so both norms only scale it; its mirror
    image tells gain from shift. Random and one-hot signals over ten orders of magnitude then confirm or refute,
    coordinate by coordinate.
    """
    parameter = next(module.parameters(), torch.zeros(()))
    slack = 1.0 + 1e-3 + 16 * torch.finfo(parameter.dtype).eps
    exact, device = copy.deepcopy(module).double(), parameter.device
    signal = torch.ones(d_model, dtype=torch.float64)
    signal[1::2] = -1.0
    if d_model % 2:
        signal[-3:] = torch.tensor([1.0, 1.0, -2.0])
    unit = signal / signal.square().mean().sqrt()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, d_model, generator=generator, dtype=torch.float64) + 0.5
    x = x * torch.tensor([[1.0], [30.0], [1e4], [1e7]])
    massive = torch.zeros(1, d_model, dtype=torch.float64)
    massive[0, d_model // 2] = 1e5
    with torch.no_grad():
        # Large, so that eps does not matter, and then about as small as eps, so that it does.
        plus, minus = exact(1e4 * torch.stack([unit, -unit]).to(device)).double().cpu()
        gain, shift = (plus - minus) / (2 * unit), (plus + minus) / 2
        small = 1e-3
        shrunk = (exact(small * unit[None].to(device)).double().cpu()[0] - shift)[gain != 0] / (gain * unit)[gain != 0]
        eps = max(0.0, small**2 * (float(shrunk.median()) ** -2 - 1.0)) if len(shrunk) and shrunk.median() > 0 else 0.0
        x = torch.cat([x, massive])
        seen = exact(x.to(device)).double().cpu() - shift
    for centred in (False, True):
        n = x - x.mean(-1, keepdim=True) if centred else x
        n = n / n.square().mean(-1, keepdim=True).sqrt()
        # Some norms work in float32 inside.
        if ((seen - gain * n).abs() <= 1e-4 * (gain * n).abs() + 1e-5 * shift.abs() + 1e-9).all():
            return Norm(gain.to(device), shift.to(device), centred, slack, eps)
    return None
