"""Attention is told from what is called so."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from allheads.models.read_mlps import untouched_modules


class LinearAttention(nn.Module):
    """A recurrent mixer, whatever its name."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(2, 2)


class TowerMixer(nn.Module):
    """Attention that no bridge knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling, self.q_proj = 2**-0.5, nn.Linear(2, 2)


class AttentionDecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.self_attn, self.router = LinearAttention(), TowerMixer(), nn.Linear(2, 2)


def test_what_stays_is_told_by_what_it_is_not_by_its_name():
    layers = nn.ModuleList([AttentionDecoderLayer(), AttentionDecoderLayer()])
    model = SimpleNamespace(original_model=nn.ModuleDict({"layers": layers}), named_children=lambda: iter(()))
    assert untouched_modules(model) == ["mixer.in_proj", "router"]
