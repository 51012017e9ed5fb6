"""Stacks of experts: the layout is found by running one, and every other one is held against it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import allheads as ah
from allheads.models.experts import read_experts
from allheads.models.find_mlps import MLPLocation
from allheads.models.locations import Location

LOCATION = MLPLocation(Location.at("blocks.0.mlp.experts"), "layers.0.mlp.experts", experts=True)


class Experts(torch.nn.Module):
    """Three of them, value and gate in one; expert ``clamped`` cuts its output off where only large inputs reach."""

    def __init__(self, clamped: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.first = torch.nn.Parameter(torch.randn(3, 2 * 12, 8, generator=generator))
        self.last = torch.nn.Parameter(torch.randn(3, 8, 12, generator=generator))
        self.clamped = clamped

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for expert in range(3):
            gate, value = F.linear(hidden_states, self.first[expert]).chunk(2, -1)
            value = value.clamp(-1000, 1000) if expert == self.clamped else value
            share = ((top_k_index == expert) * top_k_weights).sum(-1, keepdim=True)
            out += share * F.linear(F.silu(gate) * value, self.last[expert])
        return out


def test_every_expert_is_read():
    stack = Experts()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for number, mlp in enumerate(read_experts(LOCATION, stack).mlps):
        assert mlp.gated and mlp.activation.name == "silu"
        route = torch.full((5, 1), number)
        expected = stack.double()(x, route, torch.ones(5, 1, dtype=torch.float64))
        tensors = {name: tensor.double() for name, tensor in mlp.tensors.items()}
        ours = F.silu(x @ tensors["W_gate"]) * (x @ tensors["W_in"]) @ tensors["W_out"]
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clamped", range(3))
def test_a_clamp_that_only_large_inputs_reach_is_seen_in_any_expert(clamped):
    with pytest.raises(ah.AllHeadsError, match="L0, whose expert"):
        read_experts(LOCATION, Experts(clamped))
