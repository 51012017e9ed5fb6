"""Where in a model a bank of heads sits, and what that place is called.

    stem = [ tower ] "L" layer [ "." ( "M" expert | "S" ) ]        tower = letter [ number ]

``L3`` is the MLP of layer 3, ``EL3`` and ``DL3`` those of an encoder's and a decoder's layer 3 where a model has
both, ``VL3`` of a tower that sees or hears (``V2`` a second one), ``PL0`` of what lies between towers. ``L3.M5`` is
expert 5 of a mixture, ``L3.S`` the expert that all tokens share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

#: Stacks of layers by what a bridge calls them; every other stack is a tower.
_STACKS = {"blocks": "", "encoder_blocks": "E", "decoder_blocks": "D", "L_blocks": "", "H_blocks": "H"}


@dataclass(frozen=True)
class Place:
    """One MLP or expert, under ``name`` in the bridge.

    >>> Place.at("decoder_blocks.2.mlp.experts.5", expert=5).stem
    'DL2.M5'
    """

    name: str
    layer: int
    tower: str = ""
    expert: int | None = None
    shared: bool = False

    @classmethod
    def at(cls, name: str, *, expert: int | None = None, shared: bool = False) -> Place:
        """Read the name of a bridge component; one outside all layers counts as layer 0 of its own."""
        stack, layer = _stack(name)
        return cls(name, layer, _STACKS.get(stack, "V" if stack != name else "P"), expert, shared)

    @property
    def stack(self) -> str:
        """The stack of layers it belongs to."""
        return _stack(self.name)[0]

    @property
    def stem(self) -> str:
        """The label's beginning: ``L3``, ``EL3``, ``L3.M5``."""
        inner = f".M{self.expert}" if self.expert is not None else ".S" if self.shared else ""
        return f"{self.tower}L{self.layer}{inner}"

    @property
    def prefix(self) -> str:
        """What its hook points begin with."""
        return f"{self.name}."


def told_apart(places: Iterable[Place]) -> dict[str, str]:
    """The tower of every stack: letters as they are, and numbers where two stacks would share one.

    >>> told_apart([Place.at("vision.layers.0.mlp"), Place.at("audio.layers.0.mlp"), Place.at("blocks.0.mlp")])
    {'vision.layers': 'V', 'audio.layers': 'V2', 'blocks': ''}
    """
    towers: dict[str, str] = {}
    for place in places:
        if place.stack not in towers:
            count = sum(tower.rstrip("0123456789") == place.tower for tower in towers.values())
            towers[place.stack] = f"{place.tower}{count + 1}" if count and place.tower else place.tower
    return towers


def numbered(place: Place, towers: dict[str, str]) -> Place:
    """The place with the tower that its stack has been given."""
    return replace(place, tower=towers[place.stack])


def _stack(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<part>.*)", name)
    return (match["stack"], int(match["layer"])) if match else (name, 0)
