"""A view, which answers to pointer and keys: HTML that holds its data, its style and its script, and loads nothing.

In a notebook it stands in a frame of its own, so that neither disturbs the other; no server and no network is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from allheads.disk import checked_path, write_whole
from allheads.errors import AllHeadsError
from allheads.plots.page import Drawing, Kind, as_html, html_page


@dataclass(frozen=True, repr=False)
class View:
    """An interactive picture. It shows itself where it is the last line of a cell.

    ``data`` is what its script draws; ``height`` is that of its frame in a notebook, in pixels.

    >>> View("attention", {}, "nothing")
    View('nothing', 0.0 MB: view.save('nothing.html') writes it)
    """

    kind: Kind
    data: Mapping[str, Any]
    title: str
    height: int = 720

    @property
    def drawing(self) -> Drawing:
        """What a page is given to draw it."""
        return self.kind, self.data

    @property
    def html(self) -> str:
        """The whole page."""
        return html_page(self.title, {"view": self.drawing})

    def save(self, path: str | Path) -> Path:
        """Write one HTML file that opens anywhere, and return its path.

        Raises `AllHeadsError` for a path that cannot be written (nothing is left behind then), or one that does not
        end in .html: what is interactive is no image.
        """
        target = checked_path(path)
        if target.suffix.lower() not in (".html", ".htm"):
            raise AllHeadsError("a path that ends in .html", str(target), "Static figures can be saved as PNG and SVG.")
        write_whole(target, self.html)
        return target

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html)}" title="{as_html(self.title)}" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )

    def __repr__(self) -> str:
        size = len(self.html.encode()) / 1e6
        return f"View({self.title!r}, {size:.1f} MB: view.save({self.title + '.html'!r}) writes it)"
