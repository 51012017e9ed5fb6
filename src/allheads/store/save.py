"""Write a twin into a folder: ``twin.json``, ``README.md``, and in ``twin.safetensors`` what its source does not have.

A twin shares most tensors with its source. Those are named with their SHA-256; stored are heads that were edited, and
tensors that are no longer what `ah.load` had read, or what the source was when it was converted
(`allheads.models.origin`). With ``standalone=True`` every tensor is stored, with the configuration and the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from allheads.disk import named_path
from allheads.errors import AllHeadsError
from allheads.models.compat import weights_processed
from allheads.models.descriptions import describe, write_network
from allheads.models.origin import fingerprint, state
from allheads.models.reading import explained
from allheads.store.card import write_card
from allheads.store.folder import listing, replacing
from allheads.store.record import BankRecord, Record, SourceRecord, write_record
from allheads.store.tensors import digests, write_tensor_files
from allheads.twin.twin import TwinBridge


def save(twin: TwinBridge, folder: str | Path, *, standalone: bool = False) -> Path:
    """Save a twin, for `ah.load` to give it back with the same logits.

    Args:
        twin: from `ah.convert` or `ah.load`; heads edited with ``bank.edit()`` and other changed weights are kept.
            Hooks are not.
        folder: a new folder, or one with a saved twin to replace, its model card included; it is there whole or not at
            all.
        standalone: also write what belongs to the source, so that the folder needs it no longer.

    Returns:
        The folder.

    Raises:
        AllHeadsError: this is no twin, or one in compatibility mode; its gates have no name; the folder has something
            else in it or cannot be written; or the network cannot stand alone, because transformers lacks its class.

    >>> import allheads as ah
    >>> twin = ah.convert(ah.load("smollm2-135m"))
    >>> again = ah.load(ah.save(twin, "my-twin"))
    >>> bool((again("Mary") == twin("Mary")).all())
    True
    """
    _check(twin)
    target = named_path(folder).resolve()
    stored = dict(_stored(twin, standalone))
    shared = {name: t for name, t in state(twin).items() if name in twin.origin.state and name not in stored}
    banks = [
        BankRecord(
            layer.location.name,
            layer.bank.gates,
            layer.domain,
            layer.bank.evaluation,
            layer.bank.pattern_dtype,
            layer.bank.edited is not None,
        )
        for layer in twin.layers
    ]
    origin = twin.origin
    source = SourceRecord(origin.name, origin.dtype, **describe(twin), sha256=digests(shared), revision=origin.revision)
    with replacing(target) as scratch:
        with explained("a twin that can be written", "Make room, or save it without standalone=True."):
            if standalone:
                write_network(twin, scratch)
            write_tensor_files(stored, scratch)
        record = Record(standalone, twin.tolerance, source, banks, listing(scratch))
        write_record(record, scratch)
        write_card(twin, record, scratch)
    return target


def _stored(twin: TwinBridge, everything: bool) -> Iterator[tuple[str, Tensor]]:
    """What has to be written: edited heads, and what has changed since the twin was made; or all of it."""
    known = twin.origin.state
    edited = {id(p) for bank in twin.banks if bank.edited is not None for p in bank.edited.parameters()}
    for name, tensor in state(twin).items():
        if id(tensor) in edited:
            yield name, tensor
        elif name in known:
            if everything or known[name] != fingerprint(tensor):
                yield name, tensor
        elif isinstance(tensor, nn.Parameter):
            raise AllHeadsError(
                "a twin with the parameters that it was made with", f"{name} beside them", "Remove it to save the twin."
            )


def _check(twin: TwinBridge) -> None:
    if not isinstance(twin, TwinBridge) or not hasattr(twin, "origin"):
        raise AllHeadsError("an attention-only twin", type(twin).__name__, "Save what ah.convert(model) returns.")
    if weights_processed(twin) or twin.compatibility_mode:
        raise AllHeadsError(
            "a twin with the weights it was made with",
            "one in compatibility mode",
            "Save it first, and call enable_compatibility_mode on it after.",
        )
    present = state(twin)
    edited = tuple(layer.location.prefix for layer in twin.layers if layer.bank.edited is not None)
    if lost := [name for name in twin.origin.state if name not in present and not name.startswith(edited)]:
        raise AllHeadsError(
            "a twin with the parameters that it was made with", f"one without {lost[0]}", "Convert the model again."
        )
