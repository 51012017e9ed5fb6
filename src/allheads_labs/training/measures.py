"""What is measured of a model that trains: held-out loss, how open its gates are, how far queries and values part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from allheads_labs.training.model import CONTEXT, ByteTransformer, batch, byte_tokens


@torch.no_grad()
def evaluate(model: ByteTransformer, tokens: Tensor) -> float:
    """Loss on fixed windows of a text."""
    return model.eval().loss(batch(tokens, 64, CONTEXT, torch.Generator().manual_seed(0))).item()


@torch.no_grad()
def gate_statistics(model: ByteTransformer, tokens: Tensor) -> dict[str, float]:
    """Mean of all patterns on self, share below 0.1, share above 0.9."""
    windows = batch(tokens, 16, CONTEXT, torch.Generator().manual_seed(1))[:, :-1]
    gates = [b.hidden.gates(b.ln2(b.mid(x))).flatten() for b, x in model.eval().stream(windows) if b is not None]
    every = torch.cat(gates)
    return {
        "gates_mean": every.mean().item(),
        "gates_shut": (every < 0.1).double().mean().item(),
        "gates_open": (every > 0.9).double().mean().item(),
    }


@torch.no_grad()
def parting(model: ByteTransformer) -> float:
    """How far queries and values of the heads have parted: the mean of ``1 - cos(W_Q, W_V)``; 0 where they are tied."""
    off = []
    for block in model.blocks:
        bank = getattr(block.hidden, "bank", None)
        if bank is not None and bank.edited is not None:
            W_Q, W_V = (weight[..., 0].double() for weight in (bank.edited.W_Q, bank.edited.W_V))
            off.append(1 - F.cosine_similarity(W_Q, W_V).mean())
    return float(sum(off) / len(off)) if off else 0.0


def gradient_gap(seed: int = 0) -> float:
    """Largest difference of a gradient of the MLP model and of its tied twin, in float64, relative to the largest.

    >>> gradient_gap() < 1e-10
    True
    """
    windows = batch(byte_tokens()[0], 4, CONTEXT, torch.Generator().manual_seed(seed))
    gradients = []
    for form in ("mlp", "tied"):
        model = ByteTransformer(seed).double().with_hidden(form, "none")
        model.loss(windows).backward()
        gradients.append({name.replace("bank.stored.", ""): p.grad for name, p in model.named_parameters()})
    size = max(float(grad.abs().max()) for grad in gradients[0].values() if grad is not None)
    assert gradients[0].keys() == gradients[1].keys()
    pairs = [(gradients[0][name], gradients[1][name]) for name in gradients[0]]
    return max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None) / size
