"""What is read of a file in Neuronpedia's format; whatever else is in it is passed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from allheads.attribution.marks import Marks


@dataclass(frozen=True)
class FileNode:
    """A node of a file."""

    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: str
    clerp: str = ""
    token_prob: float | None = None
    is_target_logit: bool | None = None
    activation: float | None = None
    allheads: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """What it becomes; ``?`` for an error, which becomes nothing."""
        known = {"embedding": "E", "logit": "T", "bias": "C", "lorsa": "A"}
        return "?" if "error" in self.feature_type else known.get(self.feature_type, "N")


@dataclass(frozen=True)
class FileLink:
    """A link of a file."""

    source: str
    target: str
    weight: float


@dataclass(frozen=True)
class FileMetadata:
    """What a file says of the whole."""

    prompt_tokens: list[str]
    schema_version: int | None = None
    generation_settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileState:
    """What is pinned and grouped; pages also write pins as one string."""

    pinnedIds: list[str] | str | None = None
    supernodes: list[list[str]] | None = None

    @property
    def marks(self) -> Marks:
        """Pins and groups by the ids of nodes."""
        pins = self.pinnedIds.split(",") if isinstance(self.pinnedIds, str) else self.pinnedIds or []
        return Marks(pins, {group[0]: group[1:] for group in self.supernodes or [] if group})


@dataclass(frozen=True)
class GraphFile:
    """A file."""

    metadata: FileMetadata
    qParams: FileState
    nodes: list[FileNode]
    links: list[FileLink]
