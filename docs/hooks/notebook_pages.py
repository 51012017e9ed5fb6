"""Pages of the notebooks: text and code from ``notebooks/``, outputs from the executed copies, where there are any.

`make executed` makes these. A copy counts as long as its code is the notebook's; a notebook without one is shown
without outputs. Views become files of their own, beside the page, so that a page is small and loads them when they are
scrolled to.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

ROOT = Path(__file__).parents[2]
#: What a page says below its title.
EXECUTED = "[The notebook]({name}), executed. Figures, which answer the pointer in a notebook, are still pictures here."
PLAIN = "[The notebook]({name}), without outputs: `make executed`, then `make site`, shows them."


def files(executed: Path = ROOT / "executed") -> dict[str, str | bytes]:
    """Pages as Markdown, and what they show, by path."""
    made: dict[str, str | bytes] = {}
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        copy = executed / path.name
        shown = copy.is_file() and _filled(notebook, nbformat.read(copy, as_version=4))
        made |= page(notebook, path.stem, (EXECUTED if shown else PLAIN).format(name=path.name))
    return made


def page(notebook: Any, stem: str, note: str) -> dict[str, str | bytes]:
    """One page, with a note below its title, and what it shows."""
    views: dict[str, str | bytes] = {}
    for cell in notebook.cells:
        for number, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "text/html" in data:
                name = f"{stem}_files/{cell.id}-{number}.html"
                data["text/html"], view = _beside(data["text/html"], name)
                views |= {f"notebooks/{name}": view} if view else {}
            if "image/svg+xml" in data:  # its letters are dark, and so may the page be
                data["image/svg+xml"] = data["image/svg+xml"].replace('style=""', 'style="background: white"', 1)
    exporter = MarkdownExporter()
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    markdown, resources = exporter.from_notebook_node(
        notebook, {"output_files_dir": f"{stem}_files", "unique_key": stem}
    )
    views |= {f"notebooks/{name}": content for name, content in resources["outputs"].items()}
    return {f"notebooks/{stem}.md": _as_page(markdown, note), **views}


def _filled(notebook: Any, copy: Any) -> bool:
    """Give the code its outputs, if the copy is of this code."""
    ours, theirs = ([cell for cell in one.cells if cell.cell_type == "code"] for one in (notebook, copy))
    if [cell.source for cell in ours] != [cell.source for cell in theirs]:
        return False
    for cell, executed in zip(ours, theirs, strict=True):
        cell.outputs = [output for output in executed.outputs if output.get("name") != "stderr"]
    return True


def _beside(html: str, name: str) -> tuple[str, str]:
    """What stands in the page for an output: a view's frame and the view, or a table as the page's own tables are."""
    if framed := re.match(r'<iframe srcdoc="([^"]*)"', html):
        return f'<iframe src="{name}" loading="lazy"{html[framed.end() :]}', unescape(framed[1])
    html = re.sub(r"<style scoped>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"<table [^>]*>", "<table data-output>", html), ""


def _as_page(markdown: str, note: str) -> str:
    """Links lead to pages, answers are Markdown inside of HTML, and pictures have words in their place."""
    markdown = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", markdown)
    markdown = markdown.replace("<details>", '<details markdown="1">').replace(
        "![svg](", "![What the code above draws]("
    )
    title, rest = markdown.lstrip().split("\n", 1)
    return f"{title}\n\n{note}\n{rest}"
