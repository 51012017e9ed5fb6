"""What a reader has marked in a graph: pinned nodes, groups with names, notes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Marks:
    """Names of ``pins``, members of ``groups`` by the group's name, ``notes`` by node: all nodes by name.

    >>> Marks(pins=["L3.A5@7"], groups={"names": ["L3.A5@7", "embed@1"]}, notes={"embed@1": "who gives"}).nodes()
    ['L3.A5@7', 'L3.A5@7', 'embed@1', 'embed@1']
    """

    pins: list[str] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def nodes(self) -> list[str]:
        """The nodes that are marked, once for each mark."""
        return [*self.pins, *(name for members in self.groups.values() for name in members), *self.notes]

    def renamed(self, names: dict[str, str]) -> Marks:
        """The same under other names of nodes; nodes without one are left out."""
        groups = {group: [names[m] for m in members if m in names] for group, members in self.groups.items()}
        return Marks(
            [names[name] for name in self.pins if name in names],
            {group: members for group, members in groups.items() if members},
            {names[name]: note for name, note in self.notes.items() if name in names},
        )
