"""Sparse autoencoders as SAELens keeps them: ``cfg.json`` and ``sae_weights.safetensors`` in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allheads.disk import named_path
from allheads.errors import AllHeadsError
from allheads.twin.autoencoder import SparseAutoencoder
from allheads.untrusted import fitted, read_json, read_tensors


@dataclass(frozen=True)
class _Config:
    """What is read of a configuration, of SAELens from version 3 on."""

    d_in: int
    d_sae: int
    architecture: str = "standard"
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    hook_name: str | None = None
    activation_fn: str = "relu"
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    k: int | None = None
    rescale_acts_by_decoder_norm: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def point(self) -> str:
        """Where it was trained."""
        return str(self.hook_name or self.metadata.get("hook_name") or "")


def read_autoencoder(folder: str | Path) -> SparseAutoencoder:
    """A sparse autoencoder that SAELens has saved: standard, JumpReLU, top-k or gated.

    ``ah.attribute(..).through(autoencoder)`` splits what passes its hook point.

    Raises `AllHeadsError` for files that are missing, damaged or of another kind, and for what is not read: activations
    that are normalised first, hook points inside attention, other architectures.
    """
    where = named_path(folder)
    try:
        config = fitted(read_json(where / "cfg.json", dict[str, Any]), _Config, others=True)
        _, tensors = read_tensors(where / "sae_weights.safetensors")
        _check(config, tensors)
    except AllHeadsError:
        raise
    except (OSError, ValueError) as error:
        reason = f"{where.name}: {getattr(error, 'strerror', None) or error}"
        raise AllHeadsError(
            "a folder of SAELens: cfg.json, sae_weights.safetensors", reason, "Save it again."
        ) from None
    return _READERS[_architecture(config)](config, tensors)


def _architecture(config: _Config) -> str:
    """Older versions call a standard autoencoder so whose activation is top-k."""
    return "topk" if "topk" in (config.activation_fn, config.activation_fn_str) else config.architecture


def _check(config: _Config, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` for what is damaged, and `AllHeadsError` for what is not read."""
    kind = _architecture(config)
    for known, what, got in (
        (kind in _READERS, f"an architecture out of {', '.join(_READERS)}", kind),
        (config.normalize_activations == "none", "activations as they are", config.normalize_activations),
        (config.reshape_activations == "none", "a hook point of the stream", config.reshape_activations),
        (config.activation_fn in ("relu", "topk"), "the activation relu or topk", config.activation_fn),
        (config.activation_fn_str in ("relu", "topk"), "the activation relu or topk", config.activation_fn_str),
    ):
        if not known:
            raise AllHeadsError(what, repr(got), "Fold it in with SAELens, or use another autoencoder.")
    shapes = {"W_enc": (config.d_in, config.d_sae), "W_dec": (config.d_sae, config.d_in), "b_dec": (config.d_in,)}
    shapes |= dict.fromkeys(_VECTORS[kind], (config.d_sae,))
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"no tensor {name}")
        if tuple(tensors[name].shape) != shape or tensors[name].dtype not in _DTYPES:
            raise ValueError(f"{name} {tuple(tensors[name].shape)} instead of {shape}")
        if not tensors[name].isfinite().all():
            raise ValueError(f"{name} with numbers that are not finite")
    if kind == "topk" and not 0 < _k(config) <= config.d_sae:
        raise ValueError(f"k {_k(config)}, which is not from 1 to {config.d_sae}")


def _k(config: _Config) -> int:
    return fitted(config.k or config.activation_fn_kwargs.get("k", 0), int)


def _common(config: _Config, tensors: Mapping[str, Tensor], scale: Tensor, bias: str) -> dict[str, Any]:
    """Weights, with what the decoder's bias takes from the input in the encoder's."""
    W_enc, b_dec = tensors["W_enc"].float() * scale, tensors["b_dec"].float()
    b_enc = tensors[bias].float() - (b_dec @ W_enc if config.apply_b_dec_to_input else 0.0)
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": tensors["W_dec"].float(), "b_dec": b_dec}


def _standard(config: _Config, tensors: Mapping[str, Tensor]) -> SparseAutoencoder:
    return SparseAutoencoder(config.point, "standard", **_common(config, tensors, torch.ones(1), "b_enc"))


def _jumprelu(config: _Config, tensors: Mapping[str, Tensor]) -> SparseAutoencoder:
    weights = _common(config, tensors, torch.ones(1), "b_enc")
    return SparseAutoencoder(config.point, "jumprelu", **weights, threshold=tensors["threshold"].float())


def _topk(config: _Config, tensors: Mapping[str, Tensor]) -> SparseAutoencoder:
    """Where latents are rescaled, they are chosen, and told, in units of what they write."""
    weights = _common(config, tensors, torch.ones(1), "b_enc")
    if config.rescale_acts_by_decoder_norm:
        size = weights["W_dec"].norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        weights |= {"W_enc": weights["W_enc"] * size, "b_enc": weights["b_enc"] * size}
        weights["W_dec"] = weights["W_dec"] / size[:, None]
    return SparseAutoencoder(config.point, "topk", **weights, k=_k(config))


def _gated(config: _Config, tensors: Mapping[str, Tensor]) -> SparseAutoencoder:
    """Gate and magnitude share their directions."""
    weights = _common(config, tensors, tensors["r_mag"].float().exp(), "b_mag")
    gate = _common(config, tensors, torch.ones(1), "b_gate")
    return SparseAutoencoder(config.point, "gated", **weights, gate=(gate["W_enc"], gate["b_enc"]))


_READERS: dict[str, Callable[[_Config, Mapping[str, Tensor]], SparseAutoencoder]] = {
    "standard": _standard,
    "jumprelu": _jumprelu,
    "topk": _topk,
    "gated": _gated,
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_VECTORS = {
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "gated": ("r_mag", "b_mag", "b_gate"),
}
