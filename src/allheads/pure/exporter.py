"""Write a twin down as attention and nothing else: one safetensors file that `allheads.pure.runner` executes."""

from __future__ import annotations

from pathlib import Path

import torch

from allheads.disk import checked_path
from allheads.pure.comparison import compared
from allheads.pure.packing import save
from allheads.pure.purified import purified, renamed
from allheads.twin.twin import TwinBridge, require_twin


def export(twin: TwinBridge, path: str | Path) -> None:
    """Write ``twin`` into one file, all of whose sublayers are attention.

    Each sublayer and the whole model are first compared with the twin's own on random tokens, so that what this form
    cannot say (recurrences, attention over chunks) is refused by name and nothing is written. Of a model of
    texts and images it is the model of texts; of a model of images or sounds, the layers.

    Raises `AllHeadsError` for anything but a twin, for a part that is not plain attention, and for a path that no file
    can have.

    >>> import allheads as ah
    >>> export(twin, "heads.safetensors")
    >>> ah.pure.run("heads.safetensors", twin.to_tokens("Mary and John")[0]).shape
    torch.Size([3, 49152])
    """
    require_twin(twin)
    checked_path(path)
    with torch.no_grad():
        streams, model = purified(twin)
        save(renamed(streams, compared(streams, model)), path)
