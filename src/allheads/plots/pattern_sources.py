"""Where patterns come from: a model that is run, a cache by hook point, or plain tensors.

1. List the heads: every ordinary one; neurons' heads where named.
2. Choose among them by label and layer.
3. Pack each as it passes. A model's patterns are never held all at once.
"""

from __future__ import annotations

import difflib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.attention import attention_layers
from allheads.models.bridge import ActivationCache, TransformerBridge
from allheads.models.locations import Location
from allheads.models.observe import Inputs, run_bridge
from allheads.plots.patterns import Patterns, check_size
from allheads.plots.token_names import visible
from allheads.twin.heads import Head
from allheads.twin.labels import Kind, Label
from allheads.twin.prompt import named_inputs, one_prompt, token_texts
from allheads.twin.twin import require_twin

#: A model, patterns by hook point, or patterns of one layer or several, ``[head row column]`` each.
Source: TypeAlias = "TransformerBridge | ActivationCache | Mapping[str, Tensor] | Tensor | Sequence[Tensor]"
#: A text, its ids, or the names of its tokens where patterns are given; or arguments of a model by name.
Text = str | Tensor | Sequence[str] | Inputs

_POINT = "hook_pattern"


def read_patterns(
    source: Source,
    tokens: Text | None,
    decoder: Text | None,
    heads: str | Label | Iterable[str | Label] | None,
    layers: Iterable[int] | None,
) -> Patterns:
    """The patterns that are asked for. Raises `AllHeadsError` as `allheads.plots.attention` does."""
    labels = [heads] if isinstance(heads, (str, Label)) else heads
    wanted = None if labels is None else [str(label) for label in labels]
    if isinstance(source, TransformerBridge):
        neurons = [label for label in map(Label.parse, wanted or []) if label.kind == "N"]
        named = [head for label in neurons for head in require_twin(source).index.heads(label)]
        ordinary = _ordinary_heads({layer.location.prefix: layer.n_heads for layer in attention_layers(source)})
        found = _run(source, tokens, decoder, _chosen([*ordinary, *named], wanted, layers), wanted is None)
    else:
        given = _by_prefix(source)
        ordinary = _ordinary_heads({prefix: len(patterns) for prefix, patterns in given.items()})
        chosen = _chosen(ordinary, wanted, layers)
        found = Patterns(_names(tokens=tokens, decoder=decoder))
        largest = max((given[head.hook_prefix] for head in chosen), key=Tensor.numel)
        check_size(len(chosen), *largest.shape[-2:])
        for head in chosen:
            _add(found, head, given[head.hook_prefix])
    if found.deviation:
        warnings.warn(
            f"{found.worst} has rows that are not probabilities, off by up to {found.deviation:.3g}: "
            "weights are drawn as 0 below 0, and as 1 above 1.",
            stacklevel=3,
        )
    return found


def _ordinary_heads(counts: Mapping[str, int]) -> Iterator[Head]:
    """The heads of attention layers: how many there are, by prefix of their hook points."""
    for prefix, count in counts.items():
        kind: Kind = "X" if "cross_attn" in prefix else "A"
        stem = Location.at(prefix).stem
        yield from (Head(Label(stem, kind, number), number, None, prefix) for number in range(count))


def _add(found: Patterns, head: Head, patterns: Float[Tensor, "head row column"]) -> None:
    """Add one head's pattern under the names of its rows and columns.

    A neuron's head attends to its slots only. Towers see patches or frames. A pattern that is not square looks from a
    decoder's tokens, whatever it is called.
    """
    location = Location.at(head.hook_prefix)
    slots = 1 + head.module.gates.bias_tokens[head.label.part] if head.of_neuron else None
    pattern = patterns[head.number, :, :slots]
    if location.stack == "decoder_blocks":
        rows, columns = "decoder", "tokens" if "cross_attn" in location.name else "decoder"
    elif location.tower not in ("", "E"):
        rows = columns = "patches"
    else:
        square = slots is not None or pattern.shape[0] == pattern.shape[1]
        rows, columns = "tokens" if square else "decoder", "tokens"
    found.add(head.label, pattern, rows, columns if slots is None else "slots")


def _chosen(available: Iterable[Head], labels: list[str] | None, layers: Iterable[int] | None) -> list[Head]:
    """In the order in which they are named. Raises `AllHeadsError` for an unknown label, and for none at all."""
    by_label: dict[str, list[Head]] = {}
    for head in available:
        for name in {str(head.label), str(head.label.neuron)}:
            by_label.setdefault(name, []).append(head)
    for name in labels or []:
        if name not in by_label:
            close = difflib.get_close_matches(name, by_label, 3, 0.0)
            raise AllHeadsError(f"a head that is there, such as {', '.join(close)}", name, "Layers count from 0.")
    named = [head for name in (by_label if labels is None else labels) for head in by_label[name]]
    allowed = None if layers is None else set(layers)
    chosen = [head for head in dict.fromkeys(named) if allowed is None or head.label.layer in allowed]
    if not chosen:
        raise AllHeadsError(
            "at least one head to draw", f"heads {labels} in layers {layers}", "Leave both out for all ordinary heads."
        )
    return chosen


def _run(model: TransformerBridge, tokens: Any, decoder: Any, chosen: Sequence[Head], some: bool) -> Patterns:
    """Run the model once, and pack every pattern as it passes its hook point; ``some`` of the heads may be silent."""
    if tokens is None:
        raise AllHeadsError("a text for the model to read", "none", "Pass a string or token ids.")
    if isinstance(tokens, Mapping):
        arguments = named_inputs(model, tokens)
    elif decoder is not None:
        arguments = named_inputs(model, {"input": tokens, "decoder_input": decoder})
    else:
        arguments = one_prompt(model, tokens)
    if (count := len(next(iter(arguments.values())))) != 1:
        raise AllHeadsError("one text", f"{count}", "Pass one text at a time.")
    sides = {"tokens": arguments.get("input"), "decoder": arguments.get("decoder_input")}
    rows = {name: ids for name, ids in sides.items() if ids is not None and not ids.is_floating_point()}
    longest = max((row.shape[1] for row in rows.values()), default=0)
    check_size(sum(not head.of_neuron for head in chosen), longest, longest)
    heads_at: dict[str, list[Head]] = defaultdict(list)
    for head in chosen:
        heads_at[f"{head.hook_prefix}{_POINT}"].append(head)
    missing = [point for point in heads_at if point not in model.hook_dict]
    if missing and not (some and len(missing) < len(heads_at)):
        raise AllHeadsError(f"a model with {missing[0]}", "none", "This attention shows no pattern: name other heads.")
    found = Patterns({name: [visible(word) for word in token_texts(model, row)] for name, row in rows.items()})

    def pack(pattern: Tensor, hook: object, heads: Sequence[Head]) -> None:
        if not rows:  # how many patches or frames there are shows here
            check_size(len(chosen), *pattern.shape[-2:])
        for head in heads:
            _add(found, head, pattern[0])
        if len(found.heads) == len(chosen):
            raise _AllPacked

    hooks: Any = [(point, partial(pack, heads=heads)) for point, heads in heads_at.items() if point not in missing]
    with torch.no_grad(), suppress(_AllPacked), model.hooks(fwd_hooks=hooks):
        run_bridge(model, arguments)
    order = {str(head.label): number for number, head in enumerate(chosen)}
    silent = order.keys() - {head["label"] for head in found.heads}
    if silent and not (some and found.heads):
        raise AllHeadsError(
            "attention that shows its patterns", f"none at {min(silent)}", "Load it with attn_implementation='eager'."
        )
    found.heads.sort(key=lambda head: order[head["label"]])
    return found


class _AllPacked(Exception):  # noqa: N818 - nothing went wrong
    """Every pattern is there: the rest of the network need not run."""


def _by_prefix(source: Any) -> dict[str, Float[Tensor, "head row column"]]:
    """Patterns by prefix of their hook points. Raises `AllHeadsError` for anything else, and for a batch."""
    if isinstance(source, Tensor):
        source = [source]
    if isinstance(source, Sequence) and not isinstance(source, str):
        source = {f"blocks.{layer}.attn.{_POINT}": pattern for layer, pattern in enumerate(source)}
    if not isinstance(source, (Mapping, ActivationCache)):
        raise AllHeadsError(
            "a model, a cache, or patterns [head row column]", type(source).__name__, "See ah.plots.attention."
        )
    given = {name: value for name, value in source.items() if name.endswith(f"attn.{_POINT}")}
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.ndim not in (3, 4) or (value.ndim == 4 and value.shape[0] != 1):
            shape = list(getattr(value, "shape", [])) or type(value).__name__
            raise AllHeadsError("patterns [head row column] of one text", f"{shape} at {name}", "Take one of a batch.")
    if not given:
        raise AllHeadsError(
            "a cache with attn.hook_pattern", f"{len(list(source.keys()))} other names", "Cache patterns, too."
        )
    return {name.removesuffix(_POINT): value.reshape(value.shape[-3:]) for name, value in given.items()}


def _names(**texts: Text | None) -> dict[str, list[str]]:
    """Names along the sides, where they are given. Raises `AllHeadsError` for a text: there is no model to cut it."""
    for text in texts.values():
        if isinstance(text, (str, Tensor)):
            raise AllHeadsError("a list of token names", type(text).__name__, "model.to_str_tokens(text) makes one.")
    return {name: [visible(str(word)) for word in text] for name, text in texts.items() if text is not None}
