"""Names of heads, in one grammar, parsed here and nowhere else.

    label   = "L" layer "." ( "A" head | "N" neuron [ "." part ] )

``L3.A5`` is ordinary head 5 of layer 3, ``L3.N812`` neuron 812 with all its heads, ``L3.N812.0`` its first head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from allheads.errors import AllHeadsError

_GRAMMAR = re.compile(r"L(?P<layer>\d+)\.(?P<kind>[AN])(?P<index>\d+)(?:\.(?P<part>\d+))?")


@dataclass(frozen=True, order=True)
class Label:
    """A head or a neuron of a twin; ``part`` is None for an ordinary head and for a whole neuron.

    >>> Label.parse("L3.N812.0")
    Label(layer=3, kind='N', index=812, part=0)
    >>> str(Label(3, "A", 5))
    'L3.A5'
    """

    layer: int
    kind: Literal["A", "N"]
    index: int
    part: int | None = None

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read a label; raises `AllHeadsError` for anything else."""
        match = _GRAMMAR.fullmatch(text)
        if match is None or (match["kind"] == "A" and match["part"] is not None):
            raise AllHeadsError("a label such as L3.A5, L3.N812 or L3.N812.0", repr(text), "Layers count from 0.")
        kind: Literal["A", "N"] = "A" if match["kind"] == "A" else "N"
        part = None if match["part"] is None else int(match["part"])
        return cls(int(match["layer"]), kind, int(match["index"]), part)

    def __str__(self) -> str:
        stem = f"L{self.layer}.{self.kind}{self.index}"
        return stem if self.part is None else f"{stem}.{self.part}"
