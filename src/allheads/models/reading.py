"""Reading models with transformers: quietly, completely, and without running anyone's code or pickles."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from allheads.errors import AllHeadsError

#: Sizes that any model may have, whatever its weights: some layers are shared, and a context costs no weights.
_LAYERS, _NUMBERS = 100, 2**24
_SIZE = re.compile("size|dim|head|position|expert|ctx|embd|inner|ffn|width|length")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Turn transformers' progress bars off, and back on where they were on."""
    were_on = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        # Not unconditionally: a user may have turned them off.
        if were_on:
            hf_logging.enable_progress_bar()


@contextmanager
def explained(expected: str, remedy: str) -> Iterator[None]:
    """Re-raise whatever a library raises as one `AllHeadsError`, chained from its cause.

    Bad files make transformers raise OSError, ValueError, KeyError, RuntimeError, SafetensorError and more,
    with no common base, so everything is caught, except a lack of memory.

    >>> with explained("a known word", "Look it up."):
    ...     {}["seven"]
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected a known word, got KeyError: 'seven'. Look it up.
    """
    try:
        yield
    except (AllHeadsError, MemoryError):
        raise
    except Exception as cause:
        raise AllHeadsError(expected, first_line(cause), remedy) from cause


def first_line(error: BaseException) -> str:
    """An error in one line: its type and the beginning of its message."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else '(no message)'}".rstrip(".")
    return text if len(text) <= 240 else text[:237] + "..."


def read_model(where: str, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """Read a model with every one of its weights; a file that lacks some is refused.

    Left alone, transformers fills missing weights with random numbers and only logs it.
    """
    model, info = _model_class(config).from_pretrained(
        where, config=config, output_loading_info=True, trust_remote_code=False, **options
    )
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise AllHeadsError(
            "a weight for every parameter",
            f"a file without {', '.join(missing[:3])}{more}",
            "The file is incomplete or was made for another architecture: fetch or save it again.",
        )
    return model


def _model_class(config: PretrainedConfig) -> Any:
    """The class named in the configuration; without a name, the usual one for its kind."""
    names = config.architectures or []
    for name in names:
        if (found := getattr(transformers, name, None)) is not None:
            return found
    if names:
        raise AllHeadsError(
            "a model class that transformers contains",
            ", ".join(names),
            "Its own Python code is not run here; update transformers or take a model without custom code.",
        )
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def require_plausible(config: Mapping[str, Any], tensors: int, weights: int) -> None:
    """Raise `ValueError` for a configuration of more than there is: it would be built, for hours, before weights lack.

    A layer has a tensor, if it does not share those of others; a size is not beyond the bytes of all ``weights``.

    >>> require_plausible({"num_hidden_layers": 10**9}, tensors=300, weights=10**9)
    Traceback (most recent call last):
    ...
    ValueError: num_hidden_layers of 1000000000, with at most 300 tensors
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            require_plausible(value, tensors, weights)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, Mapping):
                require_plausible(number, tensors, weights)
            if not isinstance(number, int):
                continue
            if "layer" in name and number > max(_LAYERS, tensors):
                raise ValueError(f"{name} of {_short(number)}, with at most {tensors} tensors")
            if _SIZE.search(name) and number > max(_NUMBERS, weights):
                raise ValueError(f"{name} of {_short(number)}, with {weights:,} bytes of weights")
            # Some switch a size off with -1.
            if ("layer" in name or _SIZE.search(name)) and number < (0 if "vocab" in name else -1):
                raise ValueError(f"{name} of {_short(number)}")


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**15 else "a number of many digits"


def require_finite(model: nn.Module) -> None:
    """Raise an `AllHeadsError` that names the first parameter with a NaN or an infinity.

    >>> layer = nn.Linear(2, 2)
    >>> require_finite(layer)
    >>> _ = layer.bias.data.fill_(float("nan"))
    >>> require_finite(layer)
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected finite weights, got 2 NaN or infinite values in bias. The file \
is damaged, or its numbers do not fit torch.float32: fetch it again, or pass a wider dtype.
    """
    for name, weight in model.named_parameters():
        if not weight.is_floating_point():
            continue
        # A sum is finite only if every term is, and takes 0.03 s where isfinite takes 0.7 s (SmolLM2).
        # It may overflow without a bad term, so a suspicious one is looked at closely.
        if weight.detach().sum().isfinite():
            continue
        if bad := int((~weight.detach().isfinite()).sum()):
            raise AllHeadsError(
                "finite weights",
                f"{bad} NaN or infinite values in {name}",
                f"The file is damaged, or its numbers do not fit {weight.dtype}: fetch it again, "
                "or pass a wider dtype.",
            )
