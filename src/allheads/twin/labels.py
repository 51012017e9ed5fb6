"""Names of heads, in one grammar, parsed here and nowhere else.

    label   = [ stack ] "L" layer "." ( ( "A" | "X" ) head | [ expert "." ] "N" neuron [ "." part ] | latent )
    latent  = "F" number | "R0"
    stack   = letter [ number ]
    expert  = "M" number | "S"

``L3.A5`` is ordinary head 5 of layer 3, ``L3.N812`` neuron 812 with all its heads, ``L3.N812.0`` its first head. In an
encoder-decoder ``EL3.A5`` is a head of the encoder, ``DL3.A5`` one of the decoder that attends to the decoder, and
``DL3.X5`` one that attends to the encoder; towers that see or hear are ``V``. In a mixture of experts ``L3.M2.N812`` is
a neuron of expert 2, whose values the router's weight scales: attention over experts; ``S`` is what all tokens share.
``L3.F77`` is latent 77 of a sparse autoencoder that was placed in layer 3, and ``L3.R0`` what it does not reconstruct.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, cast

from allheads.errors import AllHeadsError

Kind = Literal["A", "X", "N", "F", "R"]

_GRAMMAR = re.compile(
    r"(?P<stem>(?:[DEHPV]\d*)?L(?P<layer>\d+)(?:\.(?:M\d+|S))?)\.(?P<kind>[AXNFR])(?P<index>\d+)(?:\.(?P<part>\d+))?"
)


@dataclass(frozen=True, order=True)
class Label:
    """A head or a neuron of a twin; ``part`` is None for an ordinary head and for a whole neuron.

    ``stem`` is the beginning: ``L3``, ``EL3``, ``L3.M2``.

    >>> Label.parse("L3.N812.0")
    Label(stem='L3', kind='N', index=812, part=0)
    >>> str(Label("DL3", "X", 5)), Label("DL3", "X", 5).layer
    ('DL3.X5', 3)
    """

    stem: str
    kind: Kind
    index: int
    part: int | None = None

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read a label; raises `AllHeadsError` for anything else."""
        match = _GRAMMAR.fullmatch(text)
        if match is None or (match["kind"] != "N" and (match["part"] is not None or "." in match["stem"])):
            raise AllHeadsError("a label such as L3.A5, L3.N812 or L3.N812.0", repr(text), "Layers count from 0.")
        part = None if match["part"] is None else int(match["part"])
        return cls(match["stem"], cast(Kind, match["kind"]), int(match["index"]), part)

    @classmethod
    def of(cls, label: str | Label) -> Label:
        """A label as it is, or read from text; raises `AllHeadsError` as `parse` does."""
        if not isinstance(label, (str, Label)):
            raise AllHeadsError("a label such as L3.A5, L3.N812 or L3.N812.0", repr(label), "Layers count from 0.")
        return cls.parse(label) if isinstance(label, str) else label

    @property
    def layer(self) -> int:
        """The layer's number in its stack."""
        digits = re.search(r"L(\d+)", self.stem)
        assert digits is not None
        return int(digits[1])

    @property
    def stream(self) -> str:
        """The letters of its stack, none for that of a plain decoder."""
        return self.stem.partition("L")[0]

    @property
    def neuron(self) -> Label:
        """The whole neuron that a head is a part of."""
        return replace(self, part=None)

    def __str__(self) -> str:
        name = f"{self.stem}.{self.kind}{self.index}"
        return name if self.part is None else f"{name}.{self.part}"
