"""A trained transformer without norms becomes attention and nothing else, masks and all."""

from __future__ import annotations

import pydoc_data.topics

import torch
from torch import nn
from torch.nn import functional as F

from allheads.gates.approximation import approximate
from allheads.pure import run
from allheads.pure.exporter import save
from allheads.pure.runner import Heads
from allheads_labs.theorems.mlps import PlainMLP, Transformer, attention_only

CONTEXT, WIDTH = 64, 24


def trained(steps: int) -> tuple[Transformer, torch.Tensor, list[float]]:
    """Two blocks that learn the next byte of the Python documentation, in float64."""
    torch.manual_seed(0)
    text = torch.tensor(list("".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")[:100_000]))
    shapes = {"W_Q": (2, WIDTH, 8), "W_K": (2, WIDTH, 8), "W_V": (2, WIDTH, 8), "W_O": (2, 8, WIDTH)}
    attention = [{n: nn.Parameter(0.2 * torch.randn(s).double()) for n, s in shapes.items()} for _ in range(2)]
    sizes = ((WIDTH, 64), (64,), (64, WIDTH), (WIDTH,))
    mlps = [[nn.Parameter(0.2 * torch.randn(s).double()) for s in sizes] for _ in range(2)]
    ends = [nn.Parameter(0.2 * torch.randn(s).double()) for s in ((128, WIDTH), (CONTEXT, WIDTH), (WIDTH, 128))]
    silu = approximate("silu")

    def model() -> Transformer:
        layers: list = []
        for each, mlp in zip(attention, mlps, strict=True):
            layers += [Heads(mask="causal", scale=8**-0.5, **each), PlainMLP(*mlp, silu)]
        return Transformer(ends[0], ends[1], layers, ends[2])

    parameters = [*ends, *(p for mlp in mlps for p in mlp), *(p for each in attention for p in each.values())]
    optimiser, losses = torch.optim.Adam(parameters, lr=1e-2), []
    for step in range(steps):
        start = (step * 9973) % (len(text) - CONTEXT - 1)
        window = text[start : start + CONTEXT + 1]
        loss = F.cross_entropy(model()(window[:-1]), window[1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return model(), text[:CONTEXT], losses


def test_a_trained_transformer_without_norms(tmp_path):
    model, tokens, losses = trained(400)
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])
    with torch.no_grad():
        wanted = model(tokens)
        save(attention_only(model), tmp_path / "trained.safetensors")
    for masks in ("explicit", "weights"):
        got = run(tmp_path / "trained.safetensors", tokens, masks=masks)
        assert (got - wanted).abs().max() < 1e-9
    single = run(tmp_path / "trained.safetensors", tokens, masks="weights", pattern_dtype=torch.float32)
    assert 1e-8 < (single - wanted).abs().max() < 1e-2
