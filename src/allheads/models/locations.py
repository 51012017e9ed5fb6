"""Where in a model a bank of heads sits, and what that location is called.

    stem = [ tower ] "L" layer [ "." ( "M" expert | "S" ) ]        tower = letter [ number ]

``L3`` is the MLP of layer 3, ``EL3`` and ``DL3`` those of an encoder's and a decoder's layer 3 where a model has
both, ``VL3`` of a tower that sees or hears (``V2`` a second one), ``PL0`` of what lies between towers. ``L3.M5`` is
expert 5 of a mixture, ``L3.S`` the expert that all tokens share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

#: Stacks of layers by what a bridge calls them; every other stack is a tower.
_STACKS = {"blocks": "", "encoder_blocks": "E", "decoder_blocks": "D", "L_blocks": "", "H_blocks": "H"}


@dataclass(frozen=True)
class Location:
    """One MLP or expert, under ``name`` in the bridge.

    >>> Location.at("decoder_blocks.2.mlp.experts.5", expert=5).stem
    'DL2.M5'
    """

    name: str
    layer: int
    tower: str = ""
    expert: int | None = None
    shared: bool = False

    @classmethod
    def at(cls, name: str, *, expert: int | None = None, shared: bool = False) -> Location:
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


def tower_names(locations: Iterable[Location]) -> dict[str, str]:
    """The tower of every stack: letters as they are, and numbers where two stacks would share one.

    >>> names = ["vision.layers.0.mlp", "audio.layers.0.mlp", "blocks.0.mlp"]
    >>> tower_names([Location.at(name) for name in names])
    {'vision.layers': 'V', 'audio.layers': 'V2', 'blocks': ''}
    """
    towers: dict[str, str] = {}
    for location in locations:
        if location.stack not in towers:
            count = sum(tower.rstrip("0123456789") == location.tower for tower in towers.values())
            towers[location.stack] = f"{location.tower}{count + 1}" if count and location.tower else location.tower
    return towers


def numbered(location: Location, towers: dict[str, str]) -> Location:
    """The location with the tower that its stack has been given."""
    return replace(location, tower=towers[location.stack])


@cache
def _stack(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<part>.*)", name)
    return (match["stack"], int(match["layer"])) if match else (name, 0)
