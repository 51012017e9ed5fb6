"""The training lab: equal gradients, equal starts, and what dropout on patterns, keys and neurons is."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from allheads.cli.main import app
from allheads.errors import AllHeadsError
from allheads_labs.training import lab, model
from allheads_labs.training.hidden_layers import MLP, hidden_layer
from allheads_labs.training.measures import gradient_gap
from allheads_labs.training.training import Setting, train


def start(dtype: torch.dtype = torch.float64) -> MLP:
    draw = torch.Generator().manual_seed(0)
    shapes = ((6, 10), (10,), (10, 6), (6,))
    return MLP(*(torch.randn(shape, generator=draw).to(dtype) for shape in shapes))


X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)).double()


def test_gradients_of_the_tied_twin_are_those_of_the_mlp():
    assert gradient_gap() < 1e-10


def test_a_gradient_that_is_off_is_seen(monkeypatch):
    def wrong(form, *args):
        layer = hidden_layer(form, *args)
        if form == "tied":
            layer.bank.hooks.hook_pattern_self.add_hook(lambda pattern, hook: pattern * (1 + 1e-8))
        return layer

    monkeypatch.setattr(model, "hidden_layer", wrong)
    assert gradient_gap() > 1e-10


@pytest.mark.parametrize("form", ["mlp", "tied", "untied"])
def test_all_forms_start_alike_and_are_trained_apart(form):
    source = start()
    layer = hidden_layer(form, source)
    assert torch.allclose(layer(X), source(X), atol=1e-12)
    assert torch.allclose(layer.gates(X), source.gates(X), atol=1e-12)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 1.0
    assert not torch.allclose(layer(X), source(X))
    assert torch.equal(source(X), start()(X))


def test_untied_heads_learn_queries_and_values_apart():
    layer = hidden_layer("untied", start())
    layer(X).square().sum().backward()
    learned = {name for name, p in layer.bank.edited.named_parameters() if p.grad is not None}
    assert learned == {"W_Q", "b_Q", "W_V", "b_V", "W_O", "b_O"}
    assert not torch.allclose(layer.bank.edited.W_Q.grad, layer.bank.edited.W_V.grad)


def means(layer, draws: int = 4000):
    torch.manual_seed(0)
    layer.train()
    with torch.no_grad():
        every = layer(X[:1, :1].expand(draws, 1, -1))[:, 0]
    return every.mean(0), every.var(0)


def test_dropping_patterns_is_dropping_neurons_and_dropping_keys_is_not():
    """A bias token has value zero, so only the entry on self counts: same mean, same variance."""
    source = start()
    mean, variance = means(hidden_layer("mlp", source, "hidden", 0.3))
    for form in ("tied", "untied"):
        for place in ("hidden", "pattern"):
            ours = means(hidden_layer(form, source, place, 0.3))
            assert torch.allclose(ours[0], mean, rtol=0.1, atol=0.15)
            assert torch.allclose(ours[1], variance, rtol=0.15)
    exact = source(X[:1, :1])[0, 0]
    assert torch.allclose(mean, exact, rtol=0.1, atol=0.15)
    keys = means(hidden_layer("tied", source, "key", 0.3))
    assert not torch.allclose(keys[1], variance, rtol=0.15)


@pytest.mark.parametrize("place", ["hidden", "pattern", "key"])
def test_dropout_ends_with_training(place):
    layer = hidden_layer("tied", start(), place, 0.5).eval()
    assert torch.allclose(layer(X), start()(X), atol=1e-12)
    assert not torch.allclose(layer.train()(X), start()(X), atol=1e-3)
    assert layer(X).isfinite().all()


def test_training_learns_and_the_tied_twin_learns_the_same():
    mlp, tied, untied = (train(Setting(form), seed=0, steps=30) for form in ("mlp", "tied", "untied"))
    assert mlp["held_out"][-1] < 3.6
    assert tied["held_out"][-1] == pytest.approx(mlp["held_out"][-1], abs=1e-2)
    assert tied["parted"] == mlp["parted"] == 0.0 < untied["parted"]
    assert 0.3 < mlp["gates_mean"] < 0.7
    assert mlp["steps"] == [30]
    assert mlp["seconds_per_step"] > 0


def test_dropout_is_that_of_the_seed():
    """Whatever chance was used up before in this process."""
    torch.manual_seed(5)
    runs = [train(Setting("tied", "key"), seed=seed, steps=3)["held_out"] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("form", "dropout", "rate"),
    [("mlp", "pattern", 0.1), ("mlp", "key", 0.1), ("conv", "none", 0.1), ("tied", "all", 0.1), ("tied", "key", 1.0)],
)
def test_what_there_is_not_is_refused(form, dropout, rate):
    with pytest.raises(AllHeadsError):
        hidden_layer(form, start(), dropout, rate)


def test_no_steps_are_refused():
    with pytest.raises(AllHeadsError, match="at least one step"):
        train(Setting("mlp"), seed=0, steps=0)


def test_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("ALLHEADS_CACHE", str(tmp_path))
    monkeypatch.setattr(lab, "SETTINGS", (Setting("mlp", weight_decay=0.3), Setting("untied", "key")))
    done = CliRunner().invoke(app, ["lab", "training", "--steps", "2", "--seeds", "1", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert report["gradient_gap"] < 1e-10
    assert [run["setting"] for run in report["runs"]] == ["mlp, weight decay", "untied, dropout on key"]
    assert (
        "untied, dropout on key" in CliRunner().invoke(app, ["lab", "training", "--steps", "1", "--seeds", "1"]).output
    )
    assert CliRunner().invoke(app, ["lab", "training", "--seeds", "0"]).exit_code == 2
    monkeypatch.setattr(lab, "train", lambda *_: pytest.fail("trained again"))
    again = CliRunner().invoke(app, ["lab", "training", "--steps", "2", "--seeds", "1", "--json"])
    assert json.loads(again.output)["runs"] == report["runs"]
