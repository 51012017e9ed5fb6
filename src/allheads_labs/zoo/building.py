"""The smallest random model of every family that TransformerLens knows.

1. A name is a class of transformers, or stands for one (`allheads_labs.zoo.families`).
2. Its configuration is made small (`allheads_labs.zoo.settings`).
3. Its weights are drawn so that activations are really used (`allheads_labs.zoo.weights`).
4. TransformerLens wraps it, and random input in its form comes along (`allheads_labs.zoo.inputs`).

Nothing is downloaded, and no random state outside is touched.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.model_bridge.sources.native import NativeModel
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from allheads import AllHeadsError
from allheads_labs.kit.fitting import seeded
from allheads_labs.zoo.families import BARE, CHANGES, CLASSES, NATIVE, NOT_IN_FLOAT64, WITHOUT_CLASS
from allheads_labs.zoo.inputs import random_inputs
from allheads_labs.zoo.settings import POSITIONS, SMALL, VOCABULARY, small
from allheads_labs.zoo.weights import randomise


@dataclass(frozen=True)
class Sample:
    """The smallest random model of a family.

    ``inputs`` are keyword arguments for this and any other bridge of the architecture. ``generates`` says that
    ``bridge.original_model.generate`` works, with and without a cache; ``output`` what `run` gives.
    """

    name: str
    bridge: TransformerBridge
    inputs: dict[str, Any]
    generates: bool
    output: Literal["logits", "last_hidden_state"]

    def run(self, bridge: TransformerBridge) -> Float[Tensor, "batch *positions out"]:
        """What a bridge of this architecture gives for the inputs."""
        with torch.no_grad():
            return bridge(**self.inputs)


class NotBuilt(AllHeadsError):  # noqa: N818 - it says what happened
    """A family that is known and has no sample, with the reason in a sentence.

    >>> raise NotBuilt("DreamModel", "its code would have to be downloaded")
    Traceback (most recent call last):
    ...
    allheads_labs.zoo.building.NotBuilt: Expected a family that can be built from a configuration, got \
DreamModel: its code would have to be downloaded. Take another of zoo.names().
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            "a family that can be built from a configuration", f"{name}: {reason}", "Take another of zoo.names()."
        )
        self.name, self.reason = name, reason


def names() -> list[str]:
    """Every name that TransformerLens has an adapter for, in order.

    >>> len(names()), names()[:2]
    (162, ['ASTForAudioClassification', 'AfmoeForCausalLM'])
    """
    return sorted(name for name, adapter in SUPPORTED_ARCHITECTURES.items() if "allheads" not in adapter.__module__)


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Sample:
    """The smallest random model of a family, with input for it.

    The weights depend on ``name`` and ``seed`` only: other dtypes round or extend those of float32. Where a family's
    adapter asks for a library that prepares images or sounds, it no longer does so in this process.

    Raises `NotBuilt` where that is impossible, saying why, and `AllHeadsError` for an unknown name.

    >>> sample = build("LlamaForCausalLM")
    >>> sample.run(sample.bridge).shape
    torch.Size([1, 12, 96])
    """
    if name not in SUPPORTED_ARCHITECTURES:
        close = difflib.get_close_matches(name, names(), n=3, cutoff=0.4) or ["LlamaForCausalLM"]
        raise AllHeadsError("a name that TransformerLens knows", repr(name), f"Close: {', '.join(close)}.")
    if name in WITHOUT_CLASS:
        raise NotBuilt(name, WITHOUT_CLASS[name])
    if name in NOT_IN_FLOAT64 and dtype == torch.float64:
        raise NotBuilt(name, "its attention in transformers does not run in float64")
    with _quiet(), seeded(seed):
        try:
            bridge = _native(dtype) if name == NATIVE else _bridge(name, _model(name, dtype), dtype)
        except (AllHeadsError, MemoryError):
            raise
        except Exception as cause:
            raise NotBuilt(name, f"it does not come up: {_first_line(cause)}") from cause
        # Again: how much chance the bridge used up depends on the family and on the dtype.
        torch.default_generator.manual_seed(seed)
        model = bridge.original_model
        return Sample(
            name,
            bridge.eval(),
            random_inputs(bridge, dtype),
            generates=isinstance(model, PreTrainedModel) and model.can_generate(),
            output="last_hidden_state" if name in BARE else "logits",
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["(no message)"]
    return f"{type(error).__name__}: {lines[0]}".rstrip(".")[:240]


def _model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    model_class = getattr(transformers, CLASSES.get(name, name), None)
    if model_class is None:
        raise NotBuilt(name, f"transformers {transformers.__version__} has no class of this name")
    config = small(model_class.config_class(), CHANGES.get(model_class.__name__, {}))
    # TransformerLens shows patterns of eager attention only; fused experts know no float64.
    config._attn_implementation = config._experts_implementation = "eager"
    model = model_class(config)
    randomise(model)
    return model.to(dtype).eval()


def _bridge(name: str, model: PreTrainedModel, dtype: torch.dtype) -> TransformerBridge:
    # What prepares real images is not needed for tensors; a twin meets the same adapter again, so it stays off.
    SUPPORTED_ARCHITECTURES[name].required_libraries = []
    return build_bridge_from_module(model, name, hf_config=model.config, model_name=name, dtype=dtype)


def _native(dtype: torch.dtype) -> TransformerBridge:
    config = TransformerBridgeConfig(
        architecture=NATIVE,
        d_model=SMALL["hidden_size"],
        d_mlp=SMALL["intermediate_size"],
        n_heads=SMALL["num_attention_heads"],
        d_head=SMALL["head_dim"],
        n_layers=SMALL["num_hidden_layers"],
        n_ctx=POSITIONS,
        d_vocab=VOCABULARY,
        act_fn="gelu",
        normalization_type="LN",
    )
    model: nn.Module = NativeModel(config)
    randomise(model)
    model = model.to(dtype).eval()
    return build_bridge_from_module(model, NATIVE, tl_config=config, model_name=NATIVE, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what libraries say about odd configurations: these are odd on purpose."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
