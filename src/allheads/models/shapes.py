"""The shape of a model without its weights: what counting heads and operations needs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from allheads.errors import AllHeadsError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """Numbers of a decoder with one MLP per layer. ``n_params`` counts every weight once, tied ones too."""

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    activation: str
    gated: bool
    n_params: int


def _gpt(name: str, n_layers: int, d_model: int, n_heads: int, n_ctx: int, n_params: int) -> Shape:
    d_head = d_model // n_heads
    return Shape(
        name, n_layers, d_model, n_heads, n_heads, d_head, 4 * d_model, 50257, n_ctx, "gelu_new", False, n_params
    )


_KNOWN = (
    Shape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 8192, "silu", True, 134_515_008),
    _gpt("gpt2-small", 12, 768, 12, 1024, 124_439_808),
    _gpt("gpt2-medium", 24, 1024, 16, 1024, 354_823_168),
    _gpt("gpt2-large", 36, 1280, 20, 1024, 774_030_080),
    _gpt("gpt2-xl", 48, 1600, 25, 1024, 1_557_611_200),
    Shape("llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256, 8192, "silu", True, 8_030_261_248),
    Shape("llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256, 8192, "silu", True, 70_553_706_496),
    _gpt("gpt3-175b", 96, 12288, 96, 2048, 174_604_259_328),
)
#: Shapes known by name; the models' configurations give the same numbers.
KNOWN = {shape.name: shape for shape in _KNOWN}


def shape_of(model: str | Shape | TransformerBridge | PretrainedConfig) -> Shape:
    """The shape of a known name, a loaded model, or a configuration (no weights are made).

    Raises `AllHeadsError` for an unknown name or a configuration without the numbers of a decoder.

    >>> shape_of("gpt3-175b").n_layers * shape_of("gpt3-175b").d_mlp
    4718592
    """
    if isinstance(model, Shape):
        return model
    if isinstance(model, str):
        if model in KNOWN:
            return KNOWN[model]
        close = difflib.get_close_matches(model, KNOWN, n=3, cutoff=0.4) or list(KNOWN)
        raise AllHeadsError("a known model, a bridge or a configuration", repr(model), f"Known: {', '.join(close)}.")
    # Imported here: a known shape needs none of them.
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig

    if isinstance(model, TransformerBridge):
        return _of_config(model.original_model.config, model.cfg.model_name)
    if isinstance(model, PretrainedConfig):
        return _of_config(model, model.name_or_path or model.model_type)
    raise AllHeadsError("a known model, a bridge or a configuration", type(model).__name__, "Give one of these.")


def _of_config(config: Any, name: str) -> Shape:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise AllHeadsError(
            "the configuration of a decoder", type(config).__name__, str(error).split("\n")[0]
        ) from error
    found = {
        "name": name,
        "n_layers": _first(config, "num_hidden_layers"),
        "d_model": _first(config, "hidden_size"),
        "n_heads": _first(config, "num_attention_heads"),
        "d_vocab": _first(config, "vocab_size"),
        "n_ctx": _first(config, "max_position_embeddings"),
        "activation": _first(config, "hidden_act", "activation_function", "hidden_activation"),
        "gated": any("gate_proj" in parameter for parameter, _ in empty.named_parameters()),
        "n_params": sum(parameter.numel() for parameter in empty.parameters()),
    }
    missing = [key for key, value in found.items() if value is None]
    if missing:
        raise AllHeadsError("a configuration of a decoder", f"one without {', '.join(missing)}", "Not supported yet.")
    found["n_kv_heads"] = _first(config, "num_key_value_heads") or found["n_heads"]
    found["d_head"] = _first(config, "head_dim") or found["d_model"] // found["n_heads"]
    found["d_mlp"] = _first(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * found["d_model"]
    return Shape(**{field.name: found[field.name] for field in fields(Shape)})


def _first(config: Any, *names: str) -> Any:
    """The first of these that a configuration has; each architecture names its own."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
