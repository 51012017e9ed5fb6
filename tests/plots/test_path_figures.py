"""The picture in space shows the paths that were measured."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import physics


@pytest.fixture(scope="module")
def found(twin, ids):
    return physics.trajectories(twin, ids)


def test_every_token_has_its_path(found, ids):
    figure = physics.plot_trajectories(found)
    assert len(figure.data) == ids.shape[1]
    for at, trace in enumerate(figure.data):
        drawn = torch.tensor([trace.x, trace.y, trace.z]).T
        assert torch.allclose(drawn, found.projected[:, at].float(), atol=1e-4)
        assert trace.type == "scatter3d"
        assert trace.marker.color == tuple(range(4))
    told = figure.data[5].customdata
    assert told[3] == "end"
    best = found.pushed(5, 1, 1)[0]
    assert told[1].startswith(f"before layer 1: step {float(found.lengths[1, 5]):.1f}, turned by")
    assert f"{best.label} {best.push:+.1f}" in told[1]
    assert "turned" not in told[0]
    assert "script>" not in figure.data[0].name
    assert figure.layout.scene.xaxis.title.text == f"direction 1: {100 * float(found.explained[0]):.0f} %"
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


@pytest.mark.parametrize("where", ["L1.A2", 1])
def test_points_in_the_colour_of_a_potential(found, where):
    figure, energy = physics.plot_trajectories(found, where), found.energy(where)
    for at, trace in enumerate(figure.data):
        assert torch.allclose(torch.tensor(trace.marker.color), energy[:, at], atol=1e-5)
        assert trace.marker.cmax == float(energy.max())
    assert ("U of L1.A2" if where == "L1.A2" else "U of layer 1") in figure.layout.title.text


def test_steps(found):
    heads, neurons, turns = physics.plot_steps(found).data
    assert torch.allclose(torch.tensor(heads.y), found.heads.sum(1).median(1).values)
    assert torch.allclose(torch.tensor(neurons.y), found.neurons.sum(1).median(1).values)
    assert torch.allclose(torch.tensor(turns.y), found.turns.median(1).values)
    assert list(turns.x) == ["L1", "L2"]


def test_no_such_head(found):
    with pytest.raises(ah.AllHeadsError, match="a head of this twin"):
        physics.plot_trajectories(found, "L9.A0")
