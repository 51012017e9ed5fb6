"""docs/api.md has every public name, as the docstrings say it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import allheads as ah

DOCS = Path(__file__).parents[1] / "docs"


def _page() -> str:
    spec = importlib.util.spec_from_file_location("api", DOCS / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def test_the_page_is_the_docstrings():
    assert (DOCS / "api.md").read_text(encoding="utf-8") == _page(), "run `make docs`"


def test_no_public_function_takes_more_than_five_arguments():
    import inspect

    namespaces = [ah, *(getattr(ah, name) for name in ("weights", "corpus", "gates", "pure", "plots"))]
    functions = [
        value for room in namespaces for name in room.__all__ if inspect.isfunction(value := getattr(room, name))
    ]
    assert len(functions) > 20
    long = {value.__name__ for value in functions if len(inspect.signature(value).parameters) > 5}
    assert long == set()
