"""Packages that are tried with twins, in folders beside the environment, which stays as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from allheads.disk import cache_root, replaced_folder


def installed(name: str, *wanted: str) -> Path:
    """The folder of this name with what pip installs for these arguments, without dependencies: pins differ."""
    target = cache_root() / "peers" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_folder(target) as scratch:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(scratch)]
            subprocess.run([*pip, *wanted], check=True)
    return target
