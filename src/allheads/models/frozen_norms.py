"""Norms that keep their scale: what makes a normalised network linear.

A norm ``x -> gain * s(x) * (x - mean) + shift`` with s frozen is linear, up to its shift. A scale belongs to a call:
a norm that is called twice in a forward pass has two. TransformerLens' hook points for scales are not used: on the
path that computes what the model does, a change there does not reach the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from allheads.errors import AllHeadsError
from allheads.models.compat import network_path, without_ends, wrappers
from allheads.models.norms import Norm, ignores_size, known_norm, norm_modules, unreadable_modules

#: Roundings on the way through a norm, with room to spare: to float32, less the mean, times scale and gain, plus the
#: shift, and back, on either side.
_ROUNDINGS = 16.0


@dataclass(frozen=True)
class FrozenCall:
    """One call of a norm, as the linear map that it is there: ``gain * scale * (x - mean) + shift``.

    The shift has what the norm's own arithmetic rounds away where that is coarser than the stream's: in a network of
    float64, most norms of transformers compute in float32.
    """

    module: nn.Module
    norm: Norm
    scale: Float[Tensor, "*positions 1"]
    shift: Float[Tensor, "*positions d_model"]
    dtype: torch.dtype

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Rows of the same positions. Raises `AllHeadsError` for others: scales belong to those of one prompt."""
        positions, width = self.scale.shape[:-1], x.shape[-1]
        if x.ndim == len(positions) + 2:
            fits = x.shape[1:-1] == positions
        else:  # some layers run all rows in one
            fits = x.ndim == len(positions) + 1 and len(x) % positions[0] == 0
        if not fits:
            raise other_length(positions[0], tuple(x.shape))
        wide = x.reshape(-1, *positions, width).to(self.scale.dtype)
        written = (self.scale * self.norm.direction(wide) + self.shift).to(self.dtype)
        return written.reshape(x.shape).contiguous()  # as norms write, whatever they read


def other_length(length: int, shape: tuple[int, ...]) -> AllHeadsError:
    """What is wrong with another prompt in a frozen twin."""
    return AllHeadsError(
        f"the prompt of {length} tokens on which the twin is frozen",
        f"activations of shape {shape}",
        "Run other prompts outside, or freeze the twin on them.",
    )


class FrozenNorm:
    """A norm whose calls can be frozen: it is live while ``calls`` is None.

    While it is ``recording``, each call is noted, and compared with what the norm itself makes of the same input; later
    each call has the scale of its number. `begin` is to be called before every forward pass.
    """

    def __init__(
        self, path: str, module: nn.Module, component: GeneralizedComponent | None, guard: Callable[[], None]
    ) -> None:
        self.path, self.module, self.component, self.guard = path, module, component, guard
        self.live: Callable[..., Tensor] = self.called.forward
        self.calls: list[FrozenCall] | None = None
        self.norm: Norm | None = None
        self.recording = False
        self._number = 0

    @property
    def called(self) -> nn.Module:
        """What the network calls: the component around the norm, or itself."""
        return self.module if self.component is None else self.component

    def begin(self) -> None:
        """Count calls from the first again."""
        self._number = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The norm; with its scale frozen, what lies between the hook points of its component."""
        self.guard()
        if self.calls is None:
            return self.live(*args, **kwargs)
        x, *more = args if args else (kwargs.pop(next(iter(kwargs))),)
        x = x if self.component is None else self.component.hook_in(x)
        if not self.recording:
            out = self._call(self.calls)(x)
        else:
            with torch.no_grad(), without_ends(self.called):
                written = self.live(x, *more, **kwargs)
            self.calls.append(self._recorded(x, written))
            out = self._call(self.calls)(x)
            if not (missed := self._missed(x, written, out)) <= self._eps(x, written):
                raise _not_frozen(self.path, self.module, f" that writes something else, by {missed:.0e} of its size")
        return out if self.component is None else self.component.hook_out(out)

    def _call(self, calls: list[FrozenCall]) -> FrozenCall:
        number = self._number
        self._number += 1
        if len(calls) == 1 and not self.recording:  # whoever runs one layer by itself does not begin
            return calls[0]
        if number >= len(calls):
            raise AllHeadsError(
                f"{len(calls)} calls of {self.path}, as when the twin was frozen", "another", "Run the whole twin."
            )
        return calls[number]

    def _recorded(self, x: Tensor, written: Tensor) -> FrozenCall:
        """The scale is read off what the norm itself makes of the input, whatever its formula for it."""
        with _called_instead(self.called, self.live):  # measuring it runs it
            norm = self.norm = known_norm(self.module, x.shape[-1])
        if norm is None or not isinstance(written, Tensor) or written.shape != x.shape:
            raise _not_frozen(self.path, self.module, "")
        with torch.no_grad():
            wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            shift, direction = norm.shift.to(wide, copy=True), norm.direction(wide)
            size = direction.square().sum(-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
            scale = ((written.to(wide) - shift) * direction).sum(-1, keepdim=True) / size
            if wide.dtype == torch.float64:
                out = scale * direction + shift
                if torch.finfo(wide.dtype).eps < self._missed(x, written, out) <= self._eps(x, written):
                    shift = shift + written.to(wide) - out
        one = x.ndim > 2 and len(x) == 1
        scale, shift = scale[0] if one else scale, shift[0] if one and shift.ndim > 1 else shift
        # A constant matters where the stream does: not on the way to a frozen pattern.
        return FrozenCall(self.module, norm, scale, shift.requires_grad_(x.requires_grad), written.dtype)

    @torch.no_grad()
    def _missed(self, x: Tensor, written: Tensor, out: Tensor) -> float:
        """How far ``out`` is off what the norm writes, row by row, at most: in units of what roundings can do.

        Products and sums move each entry by its own size, so a row by its length and the shift's. A mean of d entries
        is off by log2(d) times their mean size, which scale and gain stretch.
        """
        assert self.norm is not None
        wide, out = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (written, out))
        length = wide.norm(dim=-1, keepdim=True)
        size = length + self.norm.shift.to(wide).norm()
        if self.norm.centred:
            x = x.to(wide)
            direction = self.norm.direction(x).norm(dim=-1, keepdim=True)
            stretch = size / direction.clamp_min(torch.finfo(wide.dtype).tiny) * self.norm.gain.to(wide).norm()
            size = size + math.log2(x.shape[-1]) * stretch * x.abs().mean(-1, keepdim=True)
        off = (wide - out).norm(dim=-1, keepdim=True)
        return float((off / (_ROUNDINGS * size).clamp_min(torch.finfo(wide.dtype).tiny)).max())

    def _eps(self, x: Tensor, written: Tensor) -> float:
        """The coarsest of what comes, what goes, the weights, and float32, in which many norms compute."""
        dtypes = {torch.float32, x.dtype, written.dtype, *(weight.dtype for weight in self.module.parameters())}
        return max(torch.finfo(dtype).eps for dtype in dtypes)


def _not_frozen(path: str, module: nn.Module, how: str) -> AllHeadsError:
    return AllHeadsError(
        "norms that only scale what they read",
        f"a {type(module).__name__} at {path}{how}",
        "It cannot be frozen: use rule='gradient'.",
    )


@contextmanager
def frozen_norms(body: nn.Module, guard: Callable[[], None]) -> Iterator[dict[str, FrozenNorm]]:
    """Let every norm of a bridged network be one whose calls can be frozen, for a while; by path.

    ``guard`` is called before each, and may refuse.
    """
    norms: dict[str, FrozenNorm] = {}
    with ExitStack() as stack:
        components = wrappers(body)
        for path, module in norm_modules(body):
            clean = network_path(path)
            norm = norms[clean] = FrozenNorm(clean, module, components.get(id(module)), guard)
            stack.enter_context(_called_instead(norm.called, norm))
        yield norms


@contextmanager
def refusing_other_norms(body: nn.Module, matters: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Refuse norms that read more than a stream, such as a gate, for a while: nothing here can freeze them.

    Only those that matter, when they are called.

    Raises `AllHeadsError` when one is called.
    """

    def check(path: str, module: nn.Module) -> Callable[..., None]:
        def refuse(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if matters(module) and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
                rest = args[1:]
                # Below the hooks of the module, of which this is one.
                if ignores_size(lambda rows: module.forward(rows, *rest, **kwargs), args[0].detach()):
                    raise _not_frozen(network_path(path), module, " that reads more than a stream")

        return refuse

    with ExitStack() as stack:
        for path, module in unreadable_modules(body):
            handle = module.register_forward_pre_hook(check(path, module), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def _called_instead(module: nn.Module, function: Callable[..., Tensor]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = function
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
