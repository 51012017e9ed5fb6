"""Where in a model a bank of heads sits, and what that place is called.

    stem = [ "E" | "D" | "V" ] "L" layer [ "." ( "M" expert | "S" ) ]

``L3`` is the MLP of layer 3, ``EL3`` and ``DL3`` those of an encoder's and a decoder's layer 3 where a model has
both, ``VL3`` of a tower that sees or hears; ``L3.M5`` is expert 5 of a mixture, ``L3.S`` the expert that all tokens
share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Stacks of layers by what a bridge calls them; every other stack is a tower.
_STACKS = {"blocks": "", "encoder_blocks": "E", "decoder_blocks": "D"}


@dataclass(frozen=True)
class Place:
    """One MLP or expert, under the name ``stack.layer.part`` in the bridge.

    >>> place = Place.at("decoder_blocks.2.mlp.experts.5", expert=5)
    >>> place.stem, place.prefix
    ('DL2.M5', 'decoder_blocks.2.mlp.experts.5.')
    """

    stack: str
    layer: int
    part: str = "mlp"
    expert: int | None = None
    shared: bool = False

    @classmethod
    def at(cls, name: str, *, expert: int | None = None, shared: bool = False) -> Place:
        """Read the name of a bridge component; a component outside all layers counts as layer 0."""
        match = re.fullmatch(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<part>.*)", name)
        if match is None:
            return cls("", 0, name, expert, shared)
        return cls(match["stack"], int(match["layer"]), match["part"], expert, shared)

    @property
    def tower(self) -> str:
        """``E``, ``D`` or ``V``; empty for the layers of a model with one stack."""
        return _STACKS.get(self.stack, "V")

    @property
    def stem(self) -> str:
        """The label's beginning: ``L3``, ``EL3``, ``L3.M5``."""
        inner = f".M{self.expert}" if self.expert is not None else ".S" if self.shared else ""
        return f"{self.tower}L{self.layer}{inner}"

    @property
    def name(self) -> str:
        """What the bridge calls it."""
        return f"{self.stack}.{self.layer}.{self.part}" if self.stack else self.part

    @property
    def prefix(self) -> str:
        """What its hook points begin with."""
        return f"{self.name}."
