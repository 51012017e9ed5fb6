"""Where patterns come from: a model that is run, a cache by hook point, or plain tensors.

1. List what is there: every ordinary head, with the hook point that shows its pattern; neurons' heads where named.
2. Choose among them by label and layer.
3. Pack each as it passes. A model's patterns are never held all at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import attention_layers
from allheads.models.bridge import ActivationCache, TransformerBridge
from allheads.models.locations import Location
from allheads.plots.patterns import Patterns, check_size
from allheads.plots.texts import one_row, visible, words
from allheads.twin.labels import Kind, Label
from allheads.twin.twin import require_twin
from allheads.verification.inputs import input_runs

#: A model, patterns by hook point, or patterns of one layer or several, ``[head row column]`` each.
Source: TypeAlias = "TransformerBridge | ActivationCache | Mapping[str, Tensor] | Tensor | Sequence[Tensor]"
#: A text, its ids, or the names of its tokens where patterns are given.
Text = str | Tensor | Sequence[str]

_POINT = "hook_pattern"


@dataclass(frozen=True)
class Candidate:
    """A head whose pattern can be drawn: where it is shown, under which number, and what its sides are.

    A neuron's head has so many ``slots``, and looks at these only.
    """

    label: Label
    point: str
    number: int
    rows: str
    columns: str
    slots: int | None = None


def read_patterns(
    source: Source,
    tokens: Text | None,
    decoder: Text | None,
    heads: str | Label | Iterable[str | Label] | None,
    layers: Iterable[int] | None,
) -> Patterns:
    """The patterns that are asked for. Raises `AllHeadsError` as `allheads.plots.attention` does."""
    wanted = [str(each) for each in ([heads] if isinstance(heads, (str, Label)) else heads or [])]
    if isinstance(source, TransformerBridge):
        here = [*_ordinary(attention_layers(source)), *_named_neurons(source, wanted)]
        chosen = _chosen(here, None if heads is None else wanted, layers)
        found = _run(source, tokens, decoder, chosen)
    else:
        given = _by_point(source)
        chosen = _chosen(_shown(given), None if heads is None else wanted, layers)
        found = Patterns(_names(tokens=tokens, decoder=decoder))
        largest = max((given[each.point] for each in chosen), key=Tensor.numel)
        check_size(len(chosen), *largest.shape[-2:])
        for each in chosen:
            found.add(each.label, given[each.point][each.number], each.rows, each.columns)
    found.warn()
    return found


def _ordinary(components: Iterable[Any]) -> Iterable[Candidate]:
    for each in components:
        rows, columns = _sides(each.location)
        for index in range(each.n_heads):
            yield Candidate(
                Label(each.location.stem, each.kind, index), f"{each.location.prefix}{_POINT}", index, rows, columns
            )


def _named_neurons(model: TransformerBridge, labels: Iterable[str]) -> Iterable[Candidate]:
    """The heads of those neurons that are named."""
    neurons = [label for label in map(Label.parse, labels) if label.kind == "N"]
    for each in (head for label in neurons for head in require_twin(model).index.heads(label)):
        slots = 1 + each.module.gates.bias_tokens[each.label.part]
        rows = _sides(Location.at(each.hook_prefix))[0]
        yield Candidate(each.label, f"{each.hook_prefix}{_POINT}", each.number, rows, "slots", slots)


def _sides(location: Location) -> tuple[str, str]:
    """Which texts the rows and columns of a component are; towers see patches or frames."""
    if location.stack == "decoder_blocks":
        return "decoder", "tokens" if "cross_attn" in location.name else "decoder"
    return ("tokens", "tokens") if location.tower in ("", "E") else ("patches", "patches")


def _chosen(here: Iterable[Candidate], labels: list[str] | None, layers: Iterable[int] | None) -> list[Candidate]:
    """In the order in which they are named. Raises `AllHeadsError` for an unknown label, and for none at all."""
    by_label: dict[str, list[Candidate]] = {}
    for each in here:
        for name in {str(each.label), str(each.label.neuron)}:
            by_label.setdefault(name, []).append(each)
    for name in labels or []:
        if name not in by_label:
            close = difflib.get_close_matches(name, by_label, 3, 0.0)
            raise AllHeadsError(f"a head that is there, such as {', '.join(close)}", name, "Layers count from 0.")
    named = [each for name in (by_label if labels is None else labels) for each in by_label[name]]
    allowed = None if layers is None else set(layers)
    chosen = [each for each in dict.fromkeys(named) if allowed is None or each.label.layer in allowed]
    if not chosen:
        raise AllHeadsError(
            "at least one head to draw", f"heads {labels} in layers {layers}", "Leave both out for all ordinary heads."
        )
    return chosen


def _run(model: Any, tokens: Any, decoder: Any, chosen: Sequence[Candidate]) -> Patterns:
    """Run the model once, and pack every pattern as it passes its hook point."""
    if tokens is None:
        raise AllHeadsError("a text for the model to read", "none", "Pass a string or token ids.")
    texts = {"tokens": tokens} if decoder is None else {"tokens": tokens, "decoder": decoder}
    rows = {name: one_row(model, text) for name, text in texts.items()}
    found = Patterns({name: [visible(word) for word in words(model, row)] for name, row in rows.items()})
    inputs = dict(zip(("input", "decoder_input"), rows.values(), strict=False))
    (arguments,) = input_runs(model, inputs)
    ordinary = [each for each in chosen if each.slots is None]
    check_size(len(ordinary), *(max(row.shape[1] for row in rows.values()),) * 2)
    points = dict.fromkeys(each.point for each in chosen)
    missing = [name for name in points if name not in model.hook_dict]
    if missing:
        raise AllHeadsError(f"a model with {missing[0]}", "none", "This attention shows no pattern: name other heads.")
    hooks = [(point, _packer(found, [each for each in chosen if each.point == point], len(chosen))) for point in points]
    with torch.no_grad(), suppress(_Enough), model.hooks(fwd_hooks=hooks):
        model(**arguments)
    silent = {str(each.label) for each in chosen} - {str(each.label) for each in found.found}
    if silent:
        raise AllHeadsError(
            "attention that shows its patterns", f"none at {min(silent)}", "Load it with attn_implementation='eager'."
        )
    order = {each.label: number for number, each in enumerate(chosen)}
    found.found.sort(key=lambda pattern: order[pattern.label])
    return found


class _Enough(Exception):  # noqa: N818 - nothing went wrong
    """Every pattern is there: the rest of the network need not run."""


def _packer(found: Patterns, chosen: Sequence[Candidate], wanted: int) -> Callable[..., None]:
    def keep(pattern: Tensor, hook: object) -> None:
        for each in chosen:
            found.add(each.label, pattern[0, each.number, :, : each.slots], each.rows, each.columns)
        if len(found.found) == wanted:
            raise _Enough

    return keep


def _by_point(source: Any) -> dict[str, Tensor]:
    """Patterns ``[head row column]`` by hook point. Raises `AllHeadsError` for anything else, and for a batch."""
    if isinstance(source, Tensor):
        source = [source]
    if isinstance(source, Sequence) and not isinstance(source, str):
        source = {f"blocks.{layer}.attn.{_POINT}": each for layer, each in enumerate(source)}
    if not isinstance(source, (Mapping, ActivationCache)):
        raise AllHeadsError(
            "a model, a cache, or patterns [head row column]", type(source).__name__, "See ah.plots.attention."
        )
    given = {name: each for name, each in source.items() if name.endswith(f"attn.{_POINT}")}
    for name, each in given.items():
        if not isinstance(each, Tensor) or each.ndim not in (3, 4) or (each.ndim == 4 and each.shape[0] != 1):
            shape = list(getattr(each, "shape", [])) or type(each).__name__
            raise AllHeadsError("patterns [head row column] of one text", f"{shape} at {name}", "Take one of a batch.")
    if not given:
        raise AllHeadsError(
            "a cache with attn.hook_pattern", f"{len(list(source.keys()))} other names", "Cache patterns, too."
        )
    return {name: each[0] if each.ndim == 4 else each for name, each in given.items()}


def _shown(given: Mapping[str, Tensor]) -> Iterable[Candidate]:
    """What a cache shows. A pattern that is not square looks from a decoder's tokens, whatever it is called."""
    for point, pattern in given.items():
        location = Location.at(point.removesuffix(f".{_POINT}"))
        rows, columns = _sides(location)
        if rows == columns == "tokens" and pattern.shape[1] != pattern.shape[2]:
            rows = "decoder"
        kind: Kind = "X" if "cross_attn" in point else "A"
        for index in range(pattern.shape[0]):
            yield Candidate(Label(location.stem, kind, index), point, index, rows, columns)


def _names(**texts: Text | None) -> dict[str, list[str]]:
    """Names along the sides, where they are given. Raises `AllHeadsError` for a text: there is no model to cut it."""
    for text in texts.values():
        if isinstance(text, (str, Tensor)):
            raise AllHeadsError("a list of token names", type(text).__name__, "model.to_str_tokens(text) makes one.")
    return {name: [visible(str(word)) for word in text] for name, text in texts.items() if text is not None}
