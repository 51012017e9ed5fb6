"""The bound on preactivations behind a norm: nothing exceeds it, and something nearly reaches it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from allheads.models.norms import measure_norm, norm_modules, unreadable_modules


def _norm(kind: str, size: int) -> nn.Module:
    torch.manual_seed(size)
    norm = nn.RMSNorm(size, eps=1e-6) if kind == "rms" else nn.LayerNorm(size)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.5)
    return norm


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("size", [32, 33])
def test_the_reach_is_a_tight_bound(kind, size):
    torch.manual_seed(0)
    module = _norm(kind, size)
    W, b = torch.randn(size, 5), torch.randn(5)
    norm = measure_norm(module, size)
    assert norm is not None
    assert norm.centred == (kind == "layer")
    reach = norm.reach(W, b)
    gain = module.weight.detach()
    # The input that drives neuron j furthest points along gain * w_j; its sign that of the offset.
    direction = gain[:, None] * W
    if kind == "layer":
        direction = direction - direction.mean(0)
    offset = (module.bias.detach() @ W if kind == "layer" else 0) + b
    x = torch.sign(offset)[:, None] * direction.T
    with torch.no_grad():
        driven = (module(1e3 * x) @ W + b).diagonal().abs()
        anything = (module(torch.randn(4000, size) * 10) @ W + b).abs().max(0).values
    assert (driven <= reach).all()
    assert (driven >= 0.995 * reach).all()
    assert (anything <= reach).all()


def test_gain_and_shift_are_those_of_the_norm():
    module = _norm("layer", 16)
    norm = measure_norm(module, 16)
    assert torch.allclose(norm.gain, module.weight.detach().double(), atol=1e-4)
    assert torch.allclose(norm.shift, module.bias.detach().double(), atol=1e-5)


@pytest.mark.parametrize("module", [nn.Identity(), nn.Tanh(), nn.Softmax(-1)])
def test_other_modules_are_not_norms(module):
    assert measure_norm(module, 16) is None


@pytest.mark.parametrize("gain", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_found_by_what_they_compute(gain, dtype):
    """Whatever they are called, and however small their gains and large their shifts are."""
    layer, rms = torch.nn.LayerNorm(32), torch.nn.RMSNorm(32)
    with torch.no_grad():
        layer.weight.fill_(gain)
        layer.bias.fill_(gain)
        rms.weight.fill_(gain)
    others = {"tanh": torch.nn.Tanh(), "silu": torch.nn.SiLU(), "identity": torch.nn.Identity()}
    others |= {"softmax": torch.nn.Softmax(-1), "linear": torch.nn.Linear(32, 32)}
    network = torch.nn.ModuleDict({"one": layer, "other": rms} | others).to(dtype)
    assert [path for path, _ in norm_modules(network)] == ["one", "other"]


class Plain(nn.Module):
    """A norm without weights, of one width."""

    def forward(self, x):
        return nn.functional.layer_norm(x, (24,))


class Gated(nn.Module):
    """A norm that wants a gate as well."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(24))

    def forward(self, x, gate):
        return self.weight * nn.functional.rms_norm(x, (24,)) * gate


def test_a_norm_without_weights_is_found_at_its_own_width():
    network = nn.ModuleDict({"in": nn.Linear(24, 40), "norm": Plain(), "act": nn.SiLU(), "gated": Gated()})
    assert [path for path, _ in norm_modules(network)] == ["norm"]
    assert [path for path, _ in unreadable_modules(network)] == ["gated"]
