"""Importing the package is cheap, and its names are where they are said to be."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import allheads as ah


def test_importing_loads_nothing_heavy():
    code = "import sys, allheads; print(sorted({'torch', 'transformers', 'plotly', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_exists():
    assert set(dir(ah)) == set(ah.__all__)
    for name in ah.__all__:
        assert getattr(ah, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ah.nothing


@pytest.mark.parametrize("room", ["weights", "corpus", "formats", "gates", "pure", "plots"])
def test_modules_never_shadow_functions(room):
    namespace = getattr(ah, room)
    assert namespace.__all__
    for _ in range(2):  # an import of a module sets an attribute of its package
        assert not any(isinstance(getattr(namespace, name), ModuleType) for name in namespace.__all__)
