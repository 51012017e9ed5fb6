"""Random banks of every kind of neuron."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import allheads as ah
from allheads.heads.bank import HeadBank

PLAIN = ("silu", "quick_gelu", "gelu", "gelu_tanh", "gelu_fast", "relu", "relu2")
GATED = ("silu", "gelu", "gelu_tanh", "relu", "linear")
KINDS = [(name, False) for name in PLAIN] + [(name, True) for name in GATED]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{'gated' if kind[1] else 'plain'}-{kind[0]}")
def kind(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Activation and whether it is under a gate."""
    return request.param


@pytest.fixture
def bank() -> Callable[..., HeadBank]:
    """``bank(activation, gated, dtype=..., d_model=..., d_mlp=..., seed=...)``, with preactivations of about +-10."""

    def make(
        activation: str,
        gated: bool,
        dtype: torch.dtype = torch.float64,
        d_model: int = 12,
        d_mlp: int = 20,
        seed: int = 0,
        evaluation: str = "slots",
    ) -> HeadBank:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

        gates = ah.gates.approximate(activation, gated=gated, domain=64.0 if gated or activation == "relu2" else None)
        gate = {"W_gate": normal(d_model, d_mlp), "b_gate": normal(d_mlp)} if gated else {}
        tensors = {
            "W_in": normal(d_model, d_mlp),
            "W_out": normal(d_mlp, d_model, scale=0.3),
            "b_in": normal(d_mlp),
            "b_out": normal(d_model),
        }
        return HeadBank(tensors | gate, gates, evaluation)

    return make


@pytest.fixture
def stream() -> Callable[..., torch.Tensor]:
    """``stream(dtype, shape)``: a random residual stream."""

    def make(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (2, 9, 12), seed: int = 7) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return make
