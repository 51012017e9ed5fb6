"""Where a model is: a packaged file, a GGUF file, a model folder, or a name on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from allheads.errors import AllHeadsError
from allheads.models.compat import offline
from allheads.models.gguf import unpacked
from allheads.models.names import PACKAGED, cache_folder, named_model, require_reachable
from allheads.models.reading import first_line, require_plausible
from allheads.untrusted import fitted, header_size, inside, read_json

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_INDEX = ".safetensors.index.json"
#: Files that a model of the Hub is made of.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
#: Files that transformers reads as JSON, beside indices; other libraries keep lists in theirs.
_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Source:
    """A folder, or a Hub id that `fetched` makes one of, and what people call the model in it."""

    where: str
    name: str
    local: bool


def find_source(name_or_path: str | Path) -> Source:
    """Find a model by any name that `named_model` knows; a GGUF file is unpacked.

    Raises:
        AllHeadsError: there is nothing of that name, or no model that can be read safely.

    >>> find_source("org/name")
    Source(where='org/name', name='org/name', local=False)
    """
    found = named_model(name_or_path)
    if found.kind == "file":
        return Source(str(unpacked(Path(found.where))), found.name, local=True)
    if found.kind == "folder" and name_or_path not in PACKAGED:
        _check_folder(Path(found.where))
    return Source(found.where, found.name, local=found.kind == "folder")


def fetched(name: str, network: bool, revision: str | None = None) -> Path:
    """The folder in the Hugging Face cache that has a model of the Hub; what is missing there comes from the network.

    A ``revision``, a commit, is taken if it is there, and the newest one if not. Raises `AllHeadsError` if the model
    cannot be had, or is nothing that can be read safely.
    """
    there = revision and (cache_folder(name) / "snapshots" / revision).is_dir()
    if network:
        require_reachable(name)
    remedy = "Check the spelling and the network, or fetch it elsewhere and pass its folder."
    where = "from the Hugging Face Hub or a folder of that name" if network else "in the Hugging Face cache"
    try:
        with offline(not network):
            found = snapshot_download(
                name,
                revision=revision if there else None,
                local_files_only=not network,
                allow_patterns=_WANTED,
                ignore_patterns=["*/*", "consolidated*"],
            )
    except MemoryError:
        raise
    except Exception as error:
        # Not chained: a server's answer may repeat what it was sent, and with it a token.
        said = re.sub(r"(hf_|[Bb]earer )\S+", r"\1...", first_line(error))
        raise AllHeadsError(f"the model {name} {where}", said, remedy) from None
    _check_folder(Path(found))
    return Path(found)


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the Hugging Face cache shows.

    >>> commit_of(Path("models--org--name/snapshots/0a1b"))
    '0a1b'
    """
    return folder.name if folder.parent.name == "snapshots" else None


def _check_folder(path: Path) -> None:
    """Refuse a folder that is clearly not a safetensors model, before transformers says so at length."""
    names = sorted(item.name for item in path.iterdir())
    content = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "nothing"
    ggufs = [name for name in names if name.endswith(".gguf")]
    hint = f"Pass the file itself, e.g. {ggufs[0]}." if ggufs else "Save one there with save_pretrained."
    if "config.json" not in names:
        raise AllHeadsError("a model folder with config.json", f"{path.resolve().name} with {content}", hint)
    if "adapter_config.json" in names:
        hint = "Merge it into its model, and save that with save_pretrained."
        raise AllHeadsError(f"a whole model in {path.name}", "an adapter, which names a model elsewhere", hint)
    if any(name.endswith((".safetensors", _INDEX)) for name in names):
        _check_files(path, names)
        return
    if any(name.endswith(_PICKLES) for name in names):
        raise AllHeadsError(
            f"safetensors weights in {path.name}",
            f"pickled weights ({content}), which can run any code when read",
            "If you trust them, convert them once: load the model with transformers and "
            "use_safetensors=False, and call save_pretrained(new_folder) on it and on its tokenizer.",
        )
    raise AllHeadsError(f"weights (*.safetensors) in {path.name}", content, hint)


def _check_files(path: Path, names: list[str]) -> None:
    """Refuse what is not in the folder itself, or no safetensors: indices name files, and links are files elsewhere."""
    try:
        configs = {
            name: read_json(path / name, dict[str, Any]) for name in names if name in _CONFIGS or name.endswith(_INDEX)
        }
        indices = [content.get("weight_map") for name, content in configs.items() if name.endswith(_INDEX)]
        shards = {shard for index in indices for shard in fitted(index, dict[str, str]).values()}
        if pickles := sorted(shard for shard in shards if not shard.endswith(".safetensors")):
            raise ValueError(f"weights in {pickles[0]}, which is no safetensors file")
        headers = weights = 0
        for name in sorted({*names, *shards}):
            file = (path / name).resolve()
            if not inside(file, path):
                raise ValueError(f"{name}, which is elsewhere")
            if not (file.is_file() or (file.is_dir() and name not in shards)):
                raise ValueError(f"{name}, which is no file" if file.exists() else f"no {name}")
            if name.endswith(".safetensors"):
                headers, weights = headers + header_size(file), weights + file.stat().st_size
        # A tensor takes some fifty bytes in a header.
        require_plausible(configs["config.json"], headers // 50, weights)
    except (OSError, ValueError, RuntimeError) as cause:  # links may go round in circles
        raise AllHeadsError(
            f"a readable model in the folder {path.name}",
            str(cause),
            "It is damaged, or not all in this folder: fetch or save the model again.",
        ) from cause
