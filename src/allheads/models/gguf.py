"""GGUF files, dequantised once into a folder that loads ten times faster.

Reading a GGUF file takes transformers 10 seconds and more for SmolLM2. The first use therefore leaves a copy in
the cache: the same float32 numbers as safetensors, the configuration and the tokenizer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import torch
import transformers.modeling_gguf_pytorch_utils as hf_gguf
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer

from allheads.errors import AllHeadsError
from allheads.models.cache import cached_folder
from allheads.models.compat import forget_quantisation, offline
from allheads.models.names import copy_name
from allheads.models.reading import explained, no_progress_bars, read_model, require_plausible


def unpacked(path: Path) -> Path:
    """The folder with the dequantised copy of a GGUF file, made on first use.

    Args:
        path: a ``.gguf`` file.

    Raises:
        AllHeadsError: the file is not a complete GGUF file of a kind that transformers reads, or the cache
            cannot be written.

    Example:
        >>> folder = unpacked(Path("model.gguf"))  # doctest: +SKIP
        >>> AutoTokenizer.from_pretrained(folder)  # doctest: +SKIP
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise AllHeadsError(
            f"a GGUF file in {path.name}",
            f"a file that begins with {magic!r}" if magic else "an empty file",
            "Fetch the file again; a Hugging Face model is given as its folder.",
        )
    return cached_folder(copy_name(path), functools.partial(_unpack, path))


def _unpack(path: Path, folder: Path) -> None:
    """Read everything from the GGUF file and write it as an ordinary model folder."""
    source = {"gguf_file": path.name, "local_files_only": True}
    where = str(path.parent)
    title = f"Unpacking {path.name}, only once"
    bar = tqdm(total=4, disable=None)
    with no_progress_bars(), offline(), _bars_on_terminals_only(), _parsed_once(), bar:
        with explained(
            f"a complete GGUF file of a supported architecture in {path.name}",
            "It may be truncated or damaged: fetch it again, or use the model's safetensors folder.",
        ):
            bar.set_description(f"{title}: header")
            config = AutoConfig.from_pretrained(where, trust_remote_code=False, **source)
            with path.open("rb") as file:
                count = int.from_bytes(file.read(16)[8:], "little")
            require_plausible(config.to_dict(), count, path.stat().st_size)
            bar.update()
            bar.set_description(f"{title}: weights")
            model = read_model(where, config, dtype=torch.float32, **source)
            bar.update()
            bar.set_description(f"{title}: tokenizer")
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **source)
            bar.update()
        with explained(
            "a cache folder with room for the unpacked model",
            "Make room, or name another folder in the environment variable ALLHEADS_CACHE.",
        ):
            bar.set_description(f"{title}: writing")
            forget_quantisation(model)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            bar.update()


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """transformers draws its dequantisation bar with a bare tqdm, which no setting of its own turns off."""
    original = hf_gguf.tqdm
    hf_gguf.tqdm = functools.partial(original, disable=None, leave=False)
    try:
        yield
    finally:
        hf_gguf.tqdm = original


@contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers parses a file once for each of configuration, weights and tokenizer, and names for every module.

    That takes most of its time: the weights themselves take two seconds of it.
    """
    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, original in originals.items():
            setattr(gguf, name, functools.cache(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)
