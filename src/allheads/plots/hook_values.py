"""Values at hook points that pictures can be made of: finite, and precise enough."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.observe import Inputs
from allheads.twin.capture import captured
from allheads.twin.twin import TwinBridge


def hook_values(twin: TwinBridge, inputs: Int[Tensor, "1 pos"] | Inputs, names: Sequence[str]) -> dict[str, Tensor]:
    """Activations by name, from one run, in float32 or better, on the CPU.

    Raises `AllHeadsError` for a hook point that the model does not have, and for values that are not finite.
    """
    values = captured(twin, inputs, names)
    broken = [name for name in names if not values[name].isfinite().all()]
    if broken:
        raise AllHeadsError("finite activations", f"NaN or infinity at {broken[0]}", "Run ah.verify on the twin.")
    return {name: values[name].cpu().to(torch.promote_types(values[name].dtype, torch.float32)) for name in names}
