"""What can be refused before a model is loaded: names, rules, dtypes, devices, texts, targets and positions.

Loading takes ten seconds and more; none of this takes one. Nothing here imports torch or transformers. What needs the
model itself is checked again, by what uses it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from allheads.attribution.rules import rule_named
from allheads.errors import AllHeadsError, printable
from allheads.models.names import named_model, require_reachable
from allheads.twin.labels import Label

DTYPES = ("float32", "float64", "bfloat16", "float16")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


def check_model(model: str, device: str | None = None, dtype: str | None = None) -> None:
    """Raise `AllHeadsError` for a name that nothing has, a text in its place, or a device or dtype that none is."""
    if not model.strip() or (re.search(r"\s", model) and not _names_a_model(model)):
        example = "The model is --model, smollm2-135m unless said; the text is the argument."
        raise AllHeadsError("the name of a model", repr(model[:60]), example)
    named = named_model(model)
    if named.kind == "hub":
        require_reachable(named.where)
    if device is not None and not _DEVICE.fullmatch(device):
        raise AllHeadsError("a device: cpu, cuda, cuda:1, mps or xpu", repr(device), "Leave it out for the processor.")
    if dtype is not None and dtype not in DTYPES:
        raise AllHeadsError(f"a dtype out of {', '.join(DTYPES)}", repr(dtype), "Leave it out for float32.")


def check_text(text: str) -> None:
    """Raise `AllHeadsError` for an empty text, and for the name of a model where a text belongs."""
    if not text.strip():
        raise AllHeadsError("text", f"the empty string {text!r}", "Pass at least one word.")
    if not re.search(r"\s", text) and _names_a_model(text):
        raise AllHeadsError("text", f"{text!r}, which names a model or a file", f"For a model: --model {text}.")


def check_files(files: Sequence[Path], expected: str) -> None:
    """Raise `AllHeadsError` for what is no file."""
    for file in files:
        if not file.is_file():
            raise AllHeadsError(expected, f"{file}, which is none", "Check the path.")


def check_labels(labels: Sequence[str] | None) -> None:
    """Raise `AllHeadsError` for what is no label."""
    for label in labels or ():
        Label.parse(label)


def check_rule(rule: str) -> None:
    """Raise `AllHeadsError` for a rule of an unknown name."""
    rule_named(rule)


def check_targets(model: str, prompt: str, tokens: list[str], position: int = -1) -> None:
    """Raise `AllHeadsError` for targets that are not one token, and a position outside the prompt.

    Says on standard error when a word without its space is asked for. Silent where the tokenizer is not at hand yet.
    """
    for token in tokens:
        if not token:
            raise AllHeadsError("a token", "the empty string", "Words inside a text begin with a space: ' Mary'.")
    if len(tokens) == 2 and tokens[0] == tokens[1]:
        raise AllHeadsError("two different tokens", f"{tokens[0]!r} twice", "Leave out --versus for one.")
    tokenizer = _tokenizer(model)
    if tokenizer is None:
        return
    length = len(tokenizer.encode(prompt).ids)
    if not -length <= position < length:
        raise AllHeadsError(f"a position from {-length} to {length - 1}", str(position), "The last one is -1.")
    for token in tokens:
        parts, spaced = (tokenizer.encode(text, add_special_tokens=False).tokens for text in (token, f" {token}"))
        word = token[0].isalpha() and len(spaced) == 1
        if len(parts) != 1:
            remedy = f"Did you mean {f' {token}'!r}, with its space?" if word else "Words begin with a space: ' Mary'."
            raise AllHeadsError("one token", f"{token!r}, which is {len(parts)} tokens", remedy)
        if word and prompt[-1:].isalnum():
            note = f"allheads: {token!r} goes on with the word before it; the word of its own is {f' {token}'!r}"
            typer.echo(printable(note), err=True)


def _names_a_model(text: str) -> bool:
    """Is this a file, a folder or a short name? Of "and/or" nobody knows, so ids of the Hub do not count."""
    try:
        named = named_model(text)
    except AllHeadsError:
        return False
    return named.kind != "hub" or "/" not in text


def _tokenizer(model: str) -> Any:
    """Its tokenizer, read without transformers; None where there is none on this machine."""
    file = named_model(model).tokenizer_file()
    if file is None:
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # the Rust library raises nothing narrower; loading says what is wrong with the file
        return None
