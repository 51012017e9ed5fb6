"""A static picture: a plotly figure that can be saved as HTML without a network, and as PNG and SVG."""

from __future__ import annotations

from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from allheads.disk import checked_path, write_whole
from allheads.errors import AllHeadsError
from allheads.plots.page import html_page, plot

_IMAGES = (".png", ".svg", ".pdf", ".jpg", ".webp")


class Picture(go.Figure):
    """A plotly figure: everything that plotly does with one works. Notebooks show it without a network."""

    def save(self, path: str | Path) -> Path:
        """Write .html, which holds all it needs, or .png, .svg, .pdf, .jpg, .webp; return the path.

        Raises `AllHeadsError` for another ending, a path that cannot be written (nothing is left behind then), or
        an image where kaleido, which draws images, or the browser that it draws with is missing.
        """
        target = checked_path(path)
        kind = target.suffix.lower()
        if kind in (".html", ".htm"):
            write_whole(target, html_page(unescape(self.layout.title.text or "Figure"), {"view": plot(self)}))
        elif kind in _IMAGES:
            write_whole(target, self._image(kind))
        else:
            raise AllHeadsError(f"a path that ends in .html or {', '.join(_IMAGES)}", str(target), "Name it so.")
        return target

    def _image(self, kind: str) -> bytes:
        if find_spec("kaleido") is None:
            raise AllHeadsError(
                f"kaleido, to write {kind}", "none installed", "pip install 'allheads[images]', or save it as .html."
            )
        whole: Any = go.Figure(self)
        try:
            return whole.update_layout(paper_bgcolor="white").to_image(kind[1:], scale=2, width=1000)
        except (RuntimeError, ValueError) as error:
            raise AllHeadsError(
                f"a browser that kaleido can draw {kind} with",
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
                "Install Chrome or Chromium, or save it as .html.",
            ) from error
