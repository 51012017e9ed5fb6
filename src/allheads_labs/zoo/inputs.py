"""Random input in the form that a bridge takes: tokens, an image, a waveform or a spectrogram."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from allheads_labs.zoo.families import IMAGE_TOKENS
from allheads_labs.zoo.settings import IMAGE_ID, SMALL

#: Tokens that a model reads, and tokens that a decoder beside an encoder has written: not the same number.
LENGTH, WRITTEN = 12, 7
#: Ordinary words; ids below are special, and some above stand for images and sounds.
WORDS = (3, 64)
#: Samples of a waveform.
SAMPLES = 400


def random_inputs(bridge: TransformerBridge, dtype: torch.dtype) -> dict[str, Tensor]:
    """Keyword arguments of ``bridge(...)``, drawn from torch's global generator; decimals are in ``dtype``."""
    config: Any = getattr(bridge.original_model, "config", None)
    if getattr(bridge.cfg, "is_visual_model", False):
        return {"input": _image(1).to(dtype)}
    if getattr(bridge.cfg, "is_audio_model", False):
        spectrogram = hasattr(config, "num_mel_bins")
        shape = (config.max_length, config.num_mel_bins) if spectrogram else (SAMPLES,)
        return {"input": torch.randn(1, *shape).to(dtype)}
    inputs = {"input": torch.randint(*WORDS, (1, LENGTH))}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input"] = torch.randint(*WORDS, (1, WRITTEN))
    if count := IMAGE_TOKENS.get(bridge.cfg.architecture):
        inputs = _illustrated(inputs["input"], count, getattr(config, "model_type", ""), dtype)
    return inputs


def _illustrated(words: Tensor, count: int, kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The words with an image after the first of them."""
    inputs = {"input": torch.cat([words[:, :1], torch.full((1, count), IMAGE_ID), words[:, 1:]], dim=1)}
    if kind in ("llava_next", "llava_onevision"):
        # An image comes as an overview and its tiles: here one.
        size = SMALL["image_size"]
        return inputs | {"pixel_values": _image(2)[None].to(dtype), "image_sizes": torch.tensor([[size, size]])}
    image = _image(1).to(dtype)
    return inputs | {"pixel_values": image[None] if kind == "idefics3" else image}


def _image(count: int) -> Tensor:
    return torch.randn(count, 3, SMALL["image_size"], SMALL["image_size"])
