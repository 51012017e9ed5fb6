"""Changing what heads and neurons do, by label: the same words for ordinary heads and for neurons.

What a part writes is changed before its output weights: ``hook_z`` of an ordinary head or of one head of a neuron,
``hook_post`` of a whole neuron. What it attends to is changed at its pattern. Positions count within each prompt,
also where a layer lays prompts end to end. Nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from allheads.corpus.averages import Means
from allheads.errors import AllHeadsError
from allheads.models.observe import Inputs, run_bridge
from allheads.twin.capture import require_hook_points
from allheads.twin.heads import Head
from allheads.twin.labels import Label
from allheads.twin.prompt import Texts, named_inputs
from allheads.twin.sites import by_head, prompts_apart
from allheads.twin.twin import TwinBridge, require_twin

#: Positions in a prompt; all of them if None.
Positions = Sequence[int] | None


def ablate(
    twin: TwinBridge,
    labels: Iterable[str],
    *,
    positions: Positions = None,
    means: Means | None = None,
    resample: Texts | Inputs | None = None,
) -> AbstractContextManager[TwinBridge]:
    """Take away what heads and neurons say, for a while: write zero, a mean, or what they write on another prompt.

    Args:
        twin: from `ah.convert`.
        labels: as in `twin.heads`: ``L3.A5``, ``L10.N77``, ``L10.N77.0``.
        positions: where; everywhere if None.
        means: write these, from `ah.corpus.means`, instead of zero.
        resample: another prompt of the same length, or arguments of the twin by name: write what is written there.

    Raises:
        AllHeadsError: an unknown label, or both means and another prompt; inside, a position outside the prompt.

    >>> with ablate(twin, ["L3.A5", "L3.N812"]):
    ...     logits = twin("Mary and John")
    """
    if means is not None and resample is not None:
        raise AllHeadsError("means, or a prompt to resample from", "both", "Give one of them, or none for zero.")
    found = _points(twin, labels)
    if means is not None:
        axes = {name: -1 if name.endswith("hook_post") else -2 for name in found}
        values = {
            name: means.of(name).index_select(axes[name], torch.tensor(found[name], device=means.of(name).device))
            for name in found
        }
    elif resample is not None:
        values = _written(twin, resample, found)
    else:
        values = {name: torch.zeros(()) for name in found}
    return _hooked(twin, [(name, _writer(found[name], values[name], positions)) for name in found])


def patch(
    twin: TwinBridge, values: Mapping[str, float | Tensor], *, positions: Positions = None
) -> AbstractContextManager[TwinBridge]:
    """Let heads and neurons write these values, for a while.

    A value is a number, or a tensor that broadcasts to ``[batch pos d_head]`` for an ordinary head and to
    ``[batch pos]`` for a neuron or one of its heads.

    Raises `AllHeadsError` for an unknown label; inside, for a shape that does not fit and a position outside.

    >>> with patch(twin, {"L3.N812": 3.0}, positions=[-1]):
    ...     logits = twin("Mary and John")
    """
    hooks: list[tuple[str, Callable[..., None]]] = []
    for label, value in values.items():
        found = _points(twin, [label])
        if sum(map(len, found.values())) > 1:
            raise AllHeadsError(
                "a neuron with one activation", f"{label}, whose heads were edited", f"Name its heads: {label}.0."
            )
        for name, (index,) in found.items():
            hooks.append((name, _setter(index, torch.as_tensor(value), positions, Label.parse(label).kind == "N")))
    return _hooked(twin, hooks)


def pin(
    twin: TwinBridge, patterns: Mapping[str, float | Tensor], *, positions: Positions = None
) -> AbstractContextManager[TwinBridge]:
    """Let heads attend so, for a while: a pattern ``[destination source]``, or a neuron's gate, ``[pos]`` or a number.

    ``positions`` are destinations. A gate is the pattern on self, of one head (``L10.N77.0``) or of all of a neuron's.

    Raises `AllHeadsError` for an unknown label; inside, for a shape that does not fit and a position outside.

    >>> with pin(twin, {"L3.A5": torch.eye(3), "L3.N812.0": 1.0}):
    ...     logits = twin("Mary and John")
    """
    hooks: list[tuple[str, Callable[..., None]]] = []
    for label, pattern in patterns.items():
        for head in require_twin(twin).index.heads(label):
            name = "hook_pattern_self" if head.of_neuron else "hook_pattern"
            hooks.append((f"{head.hook_prefix}{name}", _pinner(head, torch.as_tensor(pattern), positions)))
    return _hooked(twin, hooks)


def _points(twin: TwinBridge, labels: Iterable[str]) -> dict[str, list[int]]:
    """Hook points, and which entries of their third axis these labels are."""
    if isinstance(labels, str):
        raise AllHeadsError("a list of labels", repr(labels), f"Write [{labels!r}].")
    found: dict[str, list[int]] = {}
    for label in labels:
        whole = Label.parse(label).part is None
        for head in require_twin(twin).index.heads(label):
            # Edited heads have no activation in common.
            if whole and head.of_neuron and head.module.edited is None:
                entries = found.setdefault(f"{head.hook_prefix}hook_post", [])
                number = head.label.index
            else:
                entries, number = found.setdefault(f"{head.hook_prefix}hook_z", []), head.number
            if number not in entries:
                entries.append(number)
    return found


def _written(twin: TwinBridge, prompt: Texts | Inputs, found: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """What these entries are on another prompt, or on several side by side."""
    inputs = named_inputs(twin, prompt if isinstance(prompt, Mapping) else {"input": prompt})
    values: dict[str, Tensor] = {}

    def keeper(name: str, indices: list[int]) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            values[name] = value[:, :, indices].clone()

        return keep

    with torch.no_grad(), _hooked(twin, [(name, keeper(name, indices)) for name, indices in found.items()]):
        run_bridge(twin, inputs)
    if silent := [name for name in found if name not in values]:
        raise AllHeadsError("a prompt on which all of these write", f"nothing at {silent[0]}", "Name other parts.")
    return values


def _writer(indices: list[int], new: Tensor, positions: Positions) -> Callable[..., None]:
    """Put values ``[... entry d_head]`` or ``[... entry]`` into these entries of the third axis."""

    def write(value: Tensor, hook: Any) -> None:
        at = _at(positions, value.shape[1])
        there = value[:, :, indices]
        there[:, at] = _fitting(new.to(value), there, hook)[:, at]
        value[:, :, indices] = there

    return write


def _setter(index: int, new: Tensor, positions: Positions, of_neuron: bool) -> Callable[..., None]:
    """Put a value ``[batch pos d_head]``, or ``[batch pos]`` for a neuron, into one entry."""

    def write(value: Tensor, hook: Any) -> None:
        there = value[:, :, index, 0] if of_neuron and value.ndim == 4 else value[:, :, index]
        at = _at(positions, there.shape[1])
        there[:, at] = _fitting(new.to(value), there, hook)[:, at]

    return write


def _pinner(head: Head, pattern: Tensor, positions: Positions) -> Callable[..., None]:
    def write(value: Tensor, hook: Any) -> None:
        there = value[:, head.number]
        at = _at(positions, there.shape[1])
        there[:, at] = _fitting(pattern.to(value), there, hook)[:, at]

    return write


def _at(positions: Positions, length: int) -> list[int]:
    if positions is None:
        return list(range(length))
    if outside := [position for position in positions if not -length <= position < length]:
        raise AllHeadsError(f"positions from {-length} to {length - 1}", str(outside[0]), "The last one is -1.")
    return [position % length for position in positions]


def _fitting(new: Tensor, there: Tensor, hook: Any) -> Tensor:
    try:
        return new.expand_as(there)
    except RuntimeError:
        raise AllHeadsError(
            f"values that broadcast to {tuple(there.shape)} at {hook.name}", str(tuple(new.shape)), "Change the shape."
        ) from None


@contextmanager
def _hooked(twin: TwinBridge, hooks: Sequence[tuple[str, Callable[..., None]]]) -> Iterator[TwinBridge]:
    """Let these change what passes hook points, in place: ``[batch pos head d_head]``, ``[batch pos d_mlp]``, ..."""
    require_hook_points(twin, [name for name, _ in hooks])
    counts = {f"{layer.location.prefix}hook_z": layer.n_heads for layer in twin.index.attention.values()}

    def changer(name: str, write: Callable[..., None]) -> Callable[..., Tensor]:
        def change(value: Tensor, hook: Any) -> Tensor:
            changed = value.clone(memory_format=torch.contiguous_format)
            shown = apart(changed, 2 if name.endswith("hook_pattern_self") else 1)
            if name in counts:
                shown = by_head(shown, counts[name])
                if shown.shape[2] != counts[name]:
                    raise AllHeadsError(
                        f"{counts[name]} heads at {name}",
                        f"{shown.shape[2]} columns",
                        "Its heads are not shown one by one.",
                    )
            write(shown, hook)
            return changed

        return change

    with prompts_apart(twin) as apart, twin.hooks(fwd_hooks=[(name, changer(name, write)) for name, write in hooks]):
        yield twin
