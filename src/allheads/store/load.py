"""``ah.load``: a saved twin, or any other model."""

from __future__ import annotations

from pathlib import Path

import torch

from allheads.disk import named_path, recover
from allheads.errors import AllHeadsError
from allheads.models import pretrained
from allheads.models.bridge import TransformerBridge
from allheads.models.names import PACKAGED, hub_id
from allheads.store.hub import twin_of_hub
from allheads.store.load_twin import revive
from allheads.store.record import FILE
from allheads.store.tensors import STEM


def load(
    name_or_path: str | Path = "smollm2-135m",
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    source: TransformerBridge | None = None,
) -> TransformerBridge:
    """Load a pretrained model, ready for hooks and for conversion, or a twin that `ah.save` has written.

    Args:
        name_or_path: a packaged model's short name (``"smollm2-135m"``), a Hugging Face model folder, a ``.gguf``
            file, a saved twin's folder, or a Hugging Face id ``"org/name"`` of a model or a twin, the only kind that
            needs a network.
        dtype: float32 (the default), float64, bfloat16 or float16; the weights are cast to it. A twin has the dtype
            that its source was loaded in, and is not cast: its gates were chosen for it.
        device: where the weights go, by default the processor.
        source: for a twin, its source, where `ah.load` cannot know it or would not find it.

    Returns:
        The model in evaluation mode (a `TwinBridge` for a twin). ``to_tokens(text)`` gives the ids that the model's
        own tokenizer gives, so a beginning-of-sequence token is there only if that tokenizer adds one. A twin has
        passed the checks of `ah.convert` again, and has the logits, heads and gates that it was saved with.

    Raises:
        AllHeadsError: there is no such model; it is incomplete, damaged or holds NaN or infinite weights; its format
            is not read here (pickles, custom code, unknown architectures, twins of a newer format); the dtype or
            device cannot be used; or a twin's source is missing, changed or of another kind.

    Example:
        >>> import allheads as ah
        >>> model = ah.load("smollm2-135m")
        >>> model.to_str_tokens("Nothing but heads")
        ['Nothing', ' but', ' heads']
    """
    folder = _twin_folder(name_or_path)
    if folder is None and isinstance(name_or_path, str) and _is_of_hub(name_or_path):
        folder = twin_of_hub(name_or_path)
    if folder is not None:
        return revive(folder, dtype, device, source)
    if source is not None:
        raise AllHeadsError("a saved twin, to load with a given source", str(name_or_path), "Leave source out.")
    return pretrained.load(
        name_or_path, dtype=torch.float32 if dtype is None else dtype, device="cpu" if device is None else device
    )


def _is_of_hub(name: str) -> bool:
    """Is this a name on the hub, and of nothing on this machine?"""
    return "/" in name and hub_id(name) == name and not named_path(name).exists()


def _twin_folder(name_or_path: str | Path) -> Path | None:
    if not isinstance(name_or_path, str | Path) or name_or_path in PACKAGED:
        return None
    path = named_path(name_or_path)
    if not path.exists():
        recover(path.parent)
    if not path.is_dir() or not ((path / FILE).exists() or any(path.glob(f"{STEM}*.safetensors"))):
        return None
    return path.resolve()
