"""A network described well enough to be made again without its weights, and made again."""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from allheads.errors import AllHeadsError
from allheads.models.compat import attention_kernel, experts_kernel, make_network, offline
from allheads.models.origin import state
from allheads.models.reading import explained, no_progress_bars

#: What a configuration says about the file that it came from, and not about the network.
_INCIDENTAL = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_OTHERS = "Save without standalone=True, and give the source: ah.load(folder, source=...)."
_TOKENIZER, _GENERATION = "tokenizer_config.json", "generation_config.json"


def describe(model: TransformerBridge) -> dict[str, Any]:
    """What a bridge is besides its tensors: classes, names, configuration, and with which kernels it computes."""
    config: Any = getattr(model.original_model, "config", None)
    return {
        "architecture": model.cfg.architecture,
        "network": type(model.original_model).__name__,
        "model_name": model.cfg.model_name,
        "kernels": {"attn_implementation": attention_kernel(config), "experts_implementation": experts_kernel(config)},
        "prepends_bos": bool(model.cfg.default_prepend_bos),
        "config": _plain(config),
    }


def differing(saved: Mapping[str, Any], model: TransformerBridge) -> list[str]:
    """The settings in which ``model`` differs from a description, as far as both have them."""

    def visit(a: Any, b: Any, path: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return [name for key in a if key in b and key not in _INCIDENTAL for name in visit(a[key], b[key], key)]
        return [] if a == b else [path]

    now = describe(model)
    return visit(saved["config"], now["config"], "config") + visit(saved["kernels"], now["kernels"], "kernel")


def write_network(model: TransformerBridge, folder: Path) -> None:
    """Write ``config.json``, how it generates, and the tokenizer's files.

    Raises `AllHeadsError` for a network that transformers does not contain: it could not be made again.
    """
    network: Any = model.original_model
    name = type(network).__name__
    if _class(name) is not type(network):
        raise AllHeadsError("a network of a class in transformers", f"another {name}", _OTHERS)
    config = copy.deepcopy(network.config)
    config.architectures = [name]
    config.save_pretrained(folder)
    if network.can_generate():
        network.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def bridge_like(
    described: Mapping[str, Any], folder: Path, dtype: torch.dtype, device: str | torch.device
) -> TransformerBridge:
    """A bridge as `describe` says, of the network that `write_network` wrote into a folder, with any weights.

    Code that comes with the network, if there is any, is not run.

    Raises `AllHeadsError` if the class is not in transformers or a file there is damaged.
    """
    expected = f"a configuration and a tokenizer in {folder}"
    with explained(expected, "Save the twin again."), no_progress_bars(), offline():
        safe = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(folder, **safe)
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe) if (folder / _TOKENIZER).exists() else None
        options = {name: kernel for name, kernel in described["kernels"].items() if kernel is not None}
        model = make_network(_class(described["network"]), config, dtype=dtype, **options)
        if (folder / _GENERATION).exists():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        model.tie_weights()
        model.to(device)
        return build_bridge_from_module(
            model.eval(),
            described["architecture"],
            hf_config=model.config,
            tokenizer=tokenizer,
            model_name=described["model_name"],
            dtype=dtype,
        )


def fill(model: TransformerBridge, known: Container[str]) -> None:
    """Draw every parameter whose name is not known: small numbers that no two units share."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in state(model).items():
            if name not in known and isinstance(tensor, nn.Parameter):
                tensor.copy_(torch.empty(tensor.shape).normal_(std=tensor.shape[-1] ** -0.5, generator=generator))


def _class(name: str) -> Any:
    """The class of networks that transformers has under a name."""
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise AllHeadsError("a network of a class in transformers", name, _OTHERS)
    return found


def _plain(config: Any) -> dict[str, Any] | None:
    """A configuration as JSON gives it back."""
    if config is None:
        return None
    # Strict JSON knows no infinities, and some configurations have them.
    settings: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str), parse_constant=str)
    return {name: value for name, value in settings.items() if name not in _INCIDENTAL}
