"""Pages of the site that are made when it is built, and links that lead out of ``docs/``.

README, CONTRIBUTING and CHANGELOG stay where GitHub looks for them; the site shows them. The reference, the errors, the
command line and the hook points are made from the code, so that they cannot be stale; every notebook has a page, too.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import commands
import notebook_pages
import points
import reference
import refusals

ROOT = Path(__file__).parents[2]
#: Page -> the file at the root that it shows.
SHOWN = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def generated() -> dict[str, str]:
    """Markdown by path."""
    pages = {page: _inside(ROOT.joinpath(file).read_text(encoding="utf-8")) for page, file in SHOWN.items()}
    pages |= {"errors.md": refusals.page(), "command-line.md": commands.page(), "hook-points.md": points.page()}
    return pages | reference.pages()


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs: adds the pages, what those of notebooks show, and notebooks to be fetched."""
    for path, content in (generated() | notebook_pages.files()).items():
        files.append(File.generated(config, path, content=content))
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.name}", abs_src_path=str(notebook)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs: pages link to what is beside ``docs/``, as the repository has it."""
    up = "../" * page.file.src_uri.count("/")
    for shown, file in SHOWN.items():
        markdown = markdown.replace(f"]({up}../{file})", f"]({up}{shown})")
    return re.sub(rf"\]\({up}(?:\.\./)?notebooks/(\w+)\.ipynb\)", rf"]({up}notebooks/\1.md)", markdown)


def _inside(markdown: str) -> str:
    """A page from the root, with links as they are from within ``docs/``."""
    for page, file in SHOWN.items():
        markdown = markdown.replace(f"]({file})", f"]({page})")
    return re.sub(r"\]\(docs/", "](", markdown)
