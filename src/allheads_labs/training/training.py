"""Training a small language model in one setting, always from the same start."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allheads import AllHeadsError
from allheads.progress import bar
from allheads_labs.kit.fitting import Recipe, constant, fit, seeded
from allheads_labs.training.hidden_layers import Dropout, Form
from allheads_labs.training.measures import evaluate, gate_statistics, parting
from allheads_labs.training.model import CONTEXT, ByteTransformer, batch, byte_tokens

BATCH, RATE = 16, 2e-3
#: Held-out loss is taken this often.
EVERY = 50


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    form: Form
    dropout: Dropout = "none"
    weight_decay: float = 0.0

    @property
    def name(self) -> str:
        """What it is called in tables."""
        parts = [self.form, f"dropout on {self.dropout}" if self.dropout != "none" else ""]
        return ", ".join(filter(None, [*parts, "weight decay" if self.weight_decay else ""]))


def train(setting: Setting, seed: int, steps: int) -> dict[str, Any]:
    """Train one model: its losses by step, seconds of a step, and at the end how open its gates are (shares), and more.

    Raises `AllHeadsError` for no steps.
    """
    if steps < 1:
        raise AllHeadsError("at least one step", str(steps), "The default is 600.")
    text, held_out = byte_tokens()
    model = ByteTransformer(seed).with_hidden(setting.form, setting.dropout)
    draw, losses, curve = torch.Generator().manual_seed(seed), [], {}
    evaluating = 0.0

    def measure(step: int) -> None:
        nonlocal evaluating
        started = time.perf_counter()
        curve[step] = evaluate(model, held_out)
        evaluating += time.perf_counter() - started

    def loss(step: int) -> Tensor:
        if step and step % EVERY == 0:
            measure(step)
        value = model.train().loss(batch(text, BATCH, CONTEXT, draw))
        losses.append(value.item())
        progress.update()
        return value

    recipe = Recipe(steps, RATE, constant, setting.weight_decay)
    started = time.perf_counter()
    # Dropout draws from torch's global chance.
    with bar(setting.name, total=steps) as progress, seeded(seed):
        fit([p for p in model.parameters() if p.requires_grad], loss, recipe, clip=lambda parameters: None)
    seconds = time.perf_counter() - started - evaluating
    measure(steps)
    recent = [losses[max(0, step - EVERY) : step] for step in curve]
    return {
        "setting": setting.name,
        "seed": seed,
        "steps": list(curve),
        "train": [sum(some) / len(some) for some in recent],
        "held_out": list(curve.values()),
        "seconds_per_step": seconds / steps,
        **gate_statistics(model, held_out),
        "parted": parting(model),
    }
