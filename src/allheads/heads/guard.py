"""Weights that may be read, and not written by accident."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from allheads.errors import AllHeadsError

#: Writing operations whose names do not end in a single underscore.
_WRITES = {"__setitem__", "__set__"} | {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}


class SharedWeight(Tensor):
    """A view of a source model's weights that refuses torch's writing operations, against accidents.

    Ordinary tensors come out of every operation; views of it stay guarded, and NumPy gets a copy.

    >>> import torch
    >>> guarded = torch.zeros(2).as_subclass(SharedWeight)
    >>> type(guarded + 1) is Tensor
    True
    >>> guarded[0] = 1.0
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected weights of an edited bank, got a write to weights that are shared ...
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` on plain tensors; refuse it if it would write into a guarded one."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        in_place = name in _WRITES or (name[-1:] == "_" and name[-2:] != "__") or kwargs.get("inplace", False)
        first = args[0] if args and isinstance(args[0], (list, tuple)) else args[:1]
        if (in_place and any(isinstance(item, cls) for item in first)) or isinstance(kwargs.get("out"), cls):
            raise AllHeadsError(
                "weights of an edited bank",
                "a write to weights that are shared with the source model",
                "Write inside `with bank.edit() as heads:`, which copies this layer first.",
            )
        if name in ("numpy", "__array__", "__dlpack__"):
            args = (args[0].as_subclass(Tensor).clone(), *args[1:])
        # Tensor's own dispatch, without the guard among the types, computes with guarded weights as with plain ones.
        return _marked(Tensor.__torch_function__(func, (), args, kwargs), args, cls)


def _marked(result: Any, args: Any, guard: type[Tensor]) -> Any:
    """Guard the results that share memory with a guarded argument, and no others."""
    if isinstance(result, (tuple, list)):
        return type(result)(_marked(item, args, guard) for item in result) if type(result) in (tuple, list) else result
    if not isinstance(result, Tensor):
        return result
    memory = result.untyped_storage().data_ptr()
    shared = any(isinstance(a, guard) and a.untyped_storage().data_ptr() == memory for a in args)
    return Tensor.__torch_function__(Tensor.as_subclass, (), (result, guard if shared else Tensor), {})
