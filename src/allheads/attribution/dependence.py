"""What a tensor was computed from: the leaves of its autograd graph, found without taking a gradient."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def depends_on(tensor: Tensor, leaves: Iterable[Tensor]) -> list[bool]:
    """Was the tensor computed from each of these leaves? Only leaves that want a gradient are known."""
    known = {id(tensor)} if tensor.is_leaf else _leaves(tensor)
    return [id(leaf) in known for leaf in leaves]


def _leaves(tensor: Tensor) -> set[int]:
    found, seen, rest = set(), set(), [tensor.grad_fn]
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        rest.extend(function for function, _ in node.next_functions)
    return found
