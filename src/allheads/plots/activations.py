"""Activations that pictures are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.twin.twin import TwinBridge


def read(twin: TwinBridge, tokens: Int[Tensor, "1 pos"], names: Sequence[str]) -> list[Tensor]:
    """Activations by name, from one run, in float32 or better, on the CPU; all exist and are finite."""
    with torch.no_grad():
        _, cache = twin.run_with_cache(tokens, names_filter=list(names), return_cache_object=False)
    missing = [name for name in names if name not in cache]
    if missing:
        raise AllHeadsError(f"a twin with {missing[0]}", "none", "Pictures need this hook point of the model.")
    broken = [name for name in names if not cache[name].isfinite().all()]
    if broken:
        raise AllHeadsError("finite activations", f"NaN or infinity at {broken[0]}", "Run ah.verify on the twin.")
    return [cache[name].cpu().to(torch.promote_types(cache[name].dtype, torch.float32)) for name in names]
