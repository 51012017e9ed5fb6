"""Recall against recurrence: the task, equal sizes, what is counted, the twin, and a run that learns."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from allheads.cli.main import app
from allheads.errors import AllHeadsError
from allheads_labs.kit.fitting import Recipe
from allheads_labs.kit.lab import Result
from allheads_labs.recurrence import costs, lab, measures, report
from allheads_labs.recurrence.learners import HIDDEN, KINDS, Learner
from allheads_labs.recurrence.measures import compared
from allheads_labs.recurrence.task import FILLER, QUERY, VALUES, recall
from allheads_labs.recurrence.training import STAGES, Curriculum, train


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def looked_up(row: list[int], query: int) -> int:
    """By hand: the value of the pair whose key is asked for."""
    (found,) = [token % VALUES for token in row if token < QUERY and token // VALUES == query - QUERY]
    return found


@pytest.mark.parametrize(("pairs", "length", "queries"), [(1, 1, 3), (4, 16, 4), (64, 64, 16), (64, 100, 2)])
def test_every_query_has_one_answer_in_the_sequence(pairs, length, queries):
    batch = recall(draw(), (20, length), pairs, queries=queries)
    for row, answers in zip(batch.tokens.tolist(), batch.answers.tolist(), strict=True):
        assert sum(token < QUERY for token in row[:length]) == pairs
        assert row[:length].count(FILLER) == length - pairs
        assert [looked_up(row, query) for query in row[length:]] == answers


@pytest.mark.parametrize(("pairs", "length", "distances"), [(4, 256, (8, 64, 256)), (64, 64, (1, 64)), (2, 9, (9, 3))])
def test_distances_are_what_they_say(pairs, length, distances):
    batch = recall(draw(), (20, length), pairs, distances=distances)
    for row, answers in zip(batch.tokens.tolist(), batch.answers.tolist(), strict=True):
        for query, distance in enumerate(distances):
            at = length + query
            assert row[at] >= QUERY
            assert row[at - distance] // VALUES == row[at] - QUERY
            assert row[at - distance] % VALUES == answers[query]


def test_other_pairs_stand_anywhere():
    batch = recall(draw(), (400, 32), 4, distances=[8])
    places = (batch.tokens[:, :32] < QUERY).float().mean(0)
    others = places[torch.arange(32) != 32 - 8]
    assert places[32 - 8] == 1.0
    assert others.min() > 0.03
    assert others.max() < 0.2


@pytest.mark.parametrize("wrong", [{"pairs": 65}, {"pairs": 0}, {"pairs": 9}, {"distances": [9]}, {"distances": [0]}])
def test_what_does_not_fit_is_refused(wrong):
    given = {"pairs": 2, "length": 8} | wrong
    with pytest.raises(AllHeadsError):
        recall(draw(), (1, given["length"]), given["pairs"], distances=given.get("distances", ()))
    with pytest.raises(AllHeadsError, match="at most 2 different distances"):
        recall(draw(), (1, 8), 2, distances=[1, 2, 3, 4])


def test_learners_are_of_equal_size():
    sizes = {kind: Learner(kind, 0).size() for kind in KINDS}
    assert max(sizes.values()) < 1.02 * min(sizes.values())
    assert sizes["lstm"] == sum(p.numel() for p in Learner("lstm", 0).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_learned_parameter_is_learned(kind):
    learner = Learner(kind, 0)
    learner(recall(draw(), (8, 8), 4).tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.trained_parameters())


def test_a_transformer_without_positions_sees_no_order_before_the_query():
    learner = Learner("transformer", 0)
    tokens = recall(draw(), (4, 12), 4).tokens
    # The first layer looks at the past only, so what a token becomes depends on its place; with one layer it would not.
    learner.body.transformer.h = nn.ModuleList([learner.body.transformer.h[0]])
    shuffled = torch.cat([tokens[:, torch.randperm(12, generator=draw(1))], tokens[:, 12:]], 1)
    with torch.no_grad():
        assert torch.allclose(learner(tokens), learner(shuffled), atol=1e-5)


def test_the_curriculum_goes_on_when_answers_are_right_and_at_the_latest_in_time():
    fast, slow = Curriculum(1000, 0), Curriculum(1000, 0)
    for step in range(700):
        fast.batch(step), slow.batch(step)
        fast.record(1.0), slow.record(0.5)
    assert (fast.stage, slow.stage) == (len(STAGES), 0)
    assert slow.batch(700).tokens.shape[1] > 0
    assert slow.stage == len(STAGES)
    lengths = {slow.batch(step).tokens.shape[1] for step in range(700, 1000)}
    assert max(lengths) >= 256


def test_no_steps_are_refused():
    with pytest.raises(AllHeadsError, match="at least one step"):
        train("gru", Recipe(0, 1e-3), 0)


def test_the_transformer_learns_and_its_twin_is_the_same():
    learner, _ = train("transformer", Recipe(160, 3e-3), 0)
    (share,) = measures.recalled(learner, 16, 64, (64,), 64)
    assert share > 0.9
    twin = compared(learner)
    assert twin["accuracy"] == twin["twin_accuracy"] > 0.8
    assert 0 < twin["pattern_gap"] < 1e-4
    assert 0 < twin["logit_gap"] < 1e-3
    assert max(map(max, twin["looks"])) > 0.3


def test_a_twin_that_looks_elsewhere_is_seen(monkeypatch):
    from allheads_labs.kit import twins

    def moved(source):
        twin = convert(source)
        with twin.banks[0].edit(), torch.no_grad():
            twin.banks[0].edited.W_O *= 1.5
        return twin

    convert = twins.ah.convert
    monkeypatch.setattr(twins.ah, "convert", moved, raising=False)
    assert compared(Learner("transformer", 0))["pattern_gap"] > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind, monkeypatch):
    monkeypatch.setattr(measures, "GRADIENT_LENGTH", 12)
    monkeypatch.setattr(measures, "GRADIENT_DISTANCES", (3, 12))
    learner = Learner(kind, 0)
    found = measures.gradients(learner, count=1)
    precise = Learner(kind, 0).double()
    batch = recall(draw(measures.SEED), (1, 12), 4, distances=[12])
    embedded = precise.embed(batch.tokens).detach()

    def value(change):
        moved = embedded.clone()
        moved[0, 0] += change
        with torch.no_grad():
            return precise.read(moved).log_softmax(-1)[0, 0, batch.answers[0, 0]]

    steps = 1e-5 * torch.eye(embedded.shape[-1]).double()
    norm = torch.stack([(value(step) - value(-step)) / 2e-5 for step in steps]).norm()
    assert found["12"] == pytest.approx(float(norm), rel=1e-4)
    assert next(learner.parameters()).dtype == torch.float32


def test_arithmetic_is_what_torch_counts():
    """Forward of the transformer as it is, and of one step of each recurrent cell."""
    length, plain = 32, Learner("transformer", 0)
    plain.body.set_attn_implementation("eager")  # fused kernels are not counted
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(recall(draw(), (1, length - 1), 4).tokens)
    assert 3 * counter.get_total_flops() == pytest.approx(costs.flops("transformer", length, 1), rel=1e-9)
    for kind, cell in (("lstm", nn.LSTMCell), ("gru", nn.GRUCell)):
        made = cell(64, HIDDEN[kind])
        products = 2 * sum(p.numel() for p in made.parameters() if p.ndim == 2)
        assert costs.flops(kind, 5, 1) == 3 * (5 * products + 2 * VALUES * HIDDEN[kind])


def test_steps_in_sequence():
    assert costs.sequential_steps("transformer", 64) == costs.sequential_steps("transformer", 2048)
    assert costs.sequential_steps("gru", 2048) - costs.sequential_steps("gru", 64) == 2048 - 64


def result(kind, steps, shares, seed=0):
    cells = {measures.cell(pairs, 256, 256): share for pairs, share in shares.items()}
    gradients = {"start": {"256": 1e-3}, "end": {"256": 1e-3}}
    twin = {"accuracy": 1.0, "twin_accuracy": 1.0, "pattern_gap": 1e-6, "logit_gap": 1e-6}
    found = {"size": 1, "training_seconds": 1.0, "accuracies": cells, "gradients": gradients}
    return Result(
        {"kind": kind, "steps": steps, "rate": 1e-2},
        seed,
        found | ({"twin": twin} if kind == "transformer" else {}),
        1.0,
    )


def costing(kind):
    return Result(
        {"cost of": kind, "lengths": [64]}, 0, {"seconds": {"64": 1.0 if kind == "transformer" else 2.0}}, 1.0
    )


def test_one_setting_of_the_sweep_is_enough_to_break_a_claim():
    base = [result("transformer", 1, {4: 1.0, 64: 1.0}), result("gru", 1, {4: 0.95, 64: 0.2}), *map(costing, KINDS)]
    good = [result("lstm", 1, {4: 0.95, 64: 0.2}), result("lstm", 2, {4: 0.5, 64: 0.3})]
    spoilt = [good[0], result("lstm", 2, {4: 0.5, 64: 0.7})]
    for rows, holds in ((good, True), (spoilt, False)):
        made = report.claims([*base, *rows])
        assert [claim.holds for claim in made[:4]] == [True, holds, True, True]
    assert report.best([*base, *good]).query("kind == 'lstm'")["steps"].tolist() == [1]


def test_the_best_setting_is_one_with_all_seeds():
    everywhere = [result("lstm", 1, {4: 0.95, 64: 0.2}, seed) for seed in range(2)]
    once = [result("lstm", 2, {4: 0.99, 64: 0.2})]
    assert report.best([*everywhere, *once])["steps"].tolist() == [1, 1]


def test_the_quick_command(tmp_path, monkeypatch):
    """The whole way from a trained learner to a page, with fewer steps than even a quick run."""
    monkeypatch.setenv("ALLHEADS_CACHE", str(tmp_path))
    monkeypatch.setattr(lab, "QUICK", tuple((kind, 4, 1e-3, 1, 1.0) for kind in KINDS))
    monkeypatch.setattr(measures, "SEQUENCES", 64)
    page = tmp_path / "figure.html"
    done = CliRunner().invoke(
        app, ["lab", "recurrence", "--quick", "--json", "--figure", str(page), "--minutes", "600"]
    )
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert len(facts["results"]) == 6
    assert not facts["claims"][0]["holds"]
    assert "Recall of key-value pairs" in page.read_text()
    tables = report.tables([Result(**each) for each in facts["results"]])
    assert all(name.startswith("recurrence:") and table.count("\n") >= 2 for name, table in tables.items())
