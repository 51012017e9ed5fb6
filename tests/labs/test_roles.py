"""Roles: the task, what is read off heads where it is known, when something arrives, and a run that learns."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from allheads.cli.main import app
from allheads.errors import AllHeadsError
from allheads_labs.kit.fitting import Recipe, fit, linear
from allheads_labs.kit.lab import Result
from allheads_labs.kit.statistics import rank_correlation
from allheads_labs.roles import lab, report
from allheads_labs.roles.measures import accuracies, breaks, carries, clarity, halfway, looks, mutual_information
from allheads_labs.roles.model import Reader
from allheads_labs.roles.task import ATTRIBUTES, ENTITIES, LENGTH, OTHER, QUERY, VALUES, sequences


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_answer_is_told_once_and_the_kinds_say_where():
    batch = sequences(draw(), 50)
    assert batch.tokens.shape == (50, LENGTH)
    for row, answers, kinds in zip(batch.tokens.tolist(), batch.answers.tolist(), batch.kinds.tolist(), strict=True):
        key = row[-1] - QUERY
        own = {at: token for at, token in enumerate(row[:-1]) if token // (ATTRIBUTES * VALUES) == key}
        assert {token // VALUES % ATTRIBUTES: token % VALUES for token in own.values()} == dict(enumerate(answers))
        assert [OTHER if at not in own else own[at] // VALUES % ATTRIBUTES for at in range(LENGTH - 1)] == kinds
        keys = [token // (ATTRIBUTES * VALUES) for token in row[:-1]]
        assert {keys.count(each) for each in keys} == {ATTRIBUTES}
        assert len(set(keys)) == ENTITIES


def test_chosen_rows_are_these():
    batch = sequences(draw(), 9)
    some = batch.chosen(torch.tensor([4, 4, 1]))
    for name in ("tokens", "answers", "kinds"):
        assert torch.equal(getattr(some, name), getattr(batch, name)[[4, 4, 1]])
    with pytest.raises(AllHeadsError, match="at least one sequence"):
        sequences(draw(), 0)


def entropy(share: torch.Tensor) -> float:
    share = share.flatten().double()
    return float(-(share[share > 0] * share[share > 0].log2()).sum())


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_mutual_information_is_what_entropies_say(heads, attributes, seed):
    joint = torch.rand(heads, attributes, generator=draw(seed)) ** 4
    joint[torch.rand(heads, attributes, generator=draw(seed + 1)) < 0.2] = 0
    joint[0, 0] = 1.0
    share = joint.double() / joint.double().sum()
    expected = entropy(share.sum(0)) + entropy(share.sum(1)) - entropy(share)
    found = mutual_information(joint)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0 <= found <= math.log2(min(heads, attributes)) + 1e-9
    apart = share.sum(1, keepdim=True) * share.sum(0, keepdim=True)
    assert mutual_information(apart) == pytest.approx(0, abs=1e-9)


def test_looks_counts_the_weight_on_each_attribute():
    kinds = torch.tensor([[0, OTHER, 2], [OTHER, 0, 1]])
    patterns = torch.tensor([[[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]], [[0.1, 0.6, 0.3], [1.0, 0.0, 0.0]]])
    expected = torch.tensor([[0.55, 0.15, 0.1, 0.0], [0.0, 0.0, 0.5, 0.0]])
    assert torch.allclose(looks(patterns, kinds).float(), expected)


def test_carries_finds_what_is_there_and_nothing_else():
    """A head that writes one attribute down carries its 3 bits; one of noise carries none; one of both, less."""
    answers = torch.randint(VALUES, (2000, ATTRIBUTES), generator=draw())
    clean = torch.eye(VALUES)[answers[:, 2]]
    noise = torch.randn(2000, VALUES, generator=draw(1))
    outputs = torch.stack([clean + 0.01 * noise, noise, clean + 0.5 * noise], 1)
    found = carries(outputs, answers)
    assert found[0, 2] == pytest.approx(3, abs=0.01)
    assert found[1].max() < 0.05
    assert 0.5 < found[2, 2] < 2.5
    assert found[:, [0, 1, 3]].max() < 0.05
    assert found.max() <= 3 + 1e-9


@pytest.mark.parametrize("noise", [0.3, 0.6, 1.5])
def test_carries_is_close_to_what_is_known_of_a_noisy_channel_and_not_above(noise):
    answers = torch.randint(VALUES, (20_000, 1), generator=draw())
    read = torch.eye(VALUES)[answers[:, 0]] + noise * torch.randn(20_000, VALUES, generator=draw(1))
    # The posterior of equal Gaussians is a softmax of what is read over the variance.
    posterior = (read / noise**2).log_softmax(-1).gather(-1, answers).mean() / math.log(2)
    known = math.log2(VALUES) + float(posterior)
    found = float(carries(read[:, None], answers)[0, 0])
    assert known - 0.05 < found < known + 0.03


def test_what_a_head_says_makes_the_answer():
    reader, batch = Reader(16, 4, 1, 0), sequences(draw(), 40)
    seen = reader.activations(batch.tokens)
    with torch.no_grad():
        assert torch.allclose(seen.logits, reader(batch.tokens), atol=1e-5)
    assert torch.all(seen.patterns.sum(-1) < 1)  # the rest is on the question itself
    attention = reader.body.transformer.h[0].attn
    written: list[torch.Tensor] = []
    handle = attention.c_proj.register_forward_hook(lambda _, __, out: written.append(out[:, -1]))
    with torch.no_grad():
        reader(batch.tokens)
    handle.remove()
    assert torch.allclose(attention.c_proj(seen.outputs.flatten(1)), written[0], atol=1e-5)


@pytest.mark.parametrize("head", [0, 3, 5])
def test_a_silent_head_is_one_whose_output_weights_are_gone(head):
    readers, batch = [Reader(16, 4, 2, 0) for _ in range(2)], sequences(draw(), 40)
    layer, own = divmod(head, 4)
    last = readers[1].body.transformer.h[layer].attn.c_proj
    with torch.no_grad():
        with readers[0].ablated(head):
            silent = readers[0](batch.tokens)
        whole = readers[0](batch.tokens)
        keep = last.weight.clone()
        last.weight[4 * own : 4 * own + 4] = 0
        gone = readers[1](batch.tokens)
        last.weight.copy_(keep)
    assert not torch.allclose(silent, whole, atol=1e-4)
    if layer == 1:  # nobody reads other positions after the last layer
        assert torch.allclose(silent, gone, atol=1e-5)
    assert torch.allclose(whole, readers[1](batch.tokens), atol=1e-6)


def test_a_silent_head_speaks_on_elsewhere():
    reader, batch = Reader(16, 4, 2, 0), sequences(draw(), 10)
    written: list[torch.Tensor] = []
    handle = reader.body.transformer.h[0].attn.c_proj.register_forward_hook(lambda _, __, out: written.append(out))
    with torch.no_grad():
        reader(batch.tokens)
        with reader.ablated(2):
            reader(batch.tokens)
    handle.remove()
    assert torch.equal(written[0][:, :-1], written[1][:, :-1])
    assert not torch.allclose(written[0][:, -1], written[1][:, -1], atol=1e-5)


def test_breaks_is_the_accuracy_that_is_lost():
    reader, batch = Reader(16, 2, 1, 0), sequences(draw(), 200)
    fit(reader.trained_parameters(), lambda _: loss(reader, batch), Recipe(60, 1e-2))
    lost = breaks(reader, batch)
    with torch.no_grad(), reader.ablated(1):
        without = accuracies(reader(batch.tokens), batch)
    with torch.no_grad():
        whole = accuracies(reader(batch.tokens), batch)
    assert torch.allclose(lost[1], (whole - without).clamp_min(0))
    assert lost.max() > 0.02


def loss(reader, batch):
    return torch.nn.functional.cross_entropy(reader(batch.tokens).flatten(0, 1), batch.answers.flatten())


def test_clarity_is_none_where_nothing_can_be_said():
    assert clarity("looks", torch.ones(1, 4)) is None
    assert clarity("carries", torch.full((4, 4), 0.001)) is None
    assert clarity("carries", torch.eye(4)) == 2.0
    assert clarity("breaks", torch.zeros(4, 4)) is None


def test_halfway():
    assert halfway([10, 1000], [0.0, 1.0]) == pytest.approx(100)
    assert halfway([10, 20, 40], [0.5, 0.5, 0.5]) is None
    assert halfway([10, 20, 40], [0.9, 0.5, 0.1]) is None
    # What comes and goes has not arrived.
    assert halfway([1, 2, 4, 8, 16], [0.0, 0.9, 0.1, 0.2, 1.0]) > 8


def test_rank_correlation_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = torch.rand(5, 12, generator=draw()), torch.randint(4, (5, 12), generator=draw(1)).float()
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(ours, theirs, strict=True)]
    assert rank_correlation(ours, theirs).tolist() == pytest.approx(expected)
    for wrong in ((torch.rand(3), torch.rand(4)), (torch.rand(1), torch.rand(1))):
        with pytest.raises(AllHeadsError, match="two readings"):
            rank_correlation(*wrong)


def test_the_rate_warms_up_holds_and_falls():
    rates = [linear(step, 500) for step in range(500)]
    assert rates[49:251] == [1.0] * 202
    assert rates[:49] == sorted(rates[:49])
    assert rates[251:] == sorted(rates[251:], reverse=True)
    assert rates[-1] == 0.02
    assert linear(0, 1) == 1.0


def test_limited_data_is_seen_again_and_learnt_by_heart():
    test, few = sequences(draw(9), 256), sequences(draw(1), 32)
    reader = Reader(32, 4, 1, 0)
    lab.train(reader, 250, 32, 1, test)
    with torch.no_grad():
        assert accuracies(reader(few.tokens), few).mean() > 0.9
        assert accuracies(reader(test.tokens), test).mean() < 0.5


def test_ability_emerges_and_heads_find_the_entity_first():
    reader, test = Reader(32, 4, 1, 0), sequences(draw(lab.SEED), 512)
    course = lab.train(reader, 500, 0, 0, test)
    made = Result(lab.BASE | {"steps": 500}, 0, {"course": course}, 1.0)
    assert report.steps(made)[-1] == 500
    own = report.series(made)
    assert own["accuracy"][0] < 0.2
    assert own["accuracy"][-1] > 0.9
    assert own["found"][-1] > 0.7
    assert own["looks"][-1] > 0.1
    assert report.lag(made, "found") < 0


def test_a_ladder_differs_from_its_base_in_one_thing():
    units = lab.units(False, 2)
    base = units[0].setting
    assert len({json.dumps(unit.setting, sort_keys=True) for unit in units}) == len(units) // 2
    for unit in units:
        assert sum(unit.setting[name] != base[name] for name in base) <= 1
    assert [len(lab.units(True, seeds)) for seeds in (1, 3)] == [2, 6]


def course(lookings, accuracy):
    points = [8, 16, 32, 64, 128]
    return [
        {
            "step": step,
            "accuracy": [right] * 4,
            "found": right,
            "carries": [[right, 0.0], [0.0, right]],
            "clarity": {"looks": clear, "carries": clear},
        }
        for step, clear, right in zip(points, lookings, accuracy, strict=True)
    ]


def result(lookings, accuracy, *, seed=0, heads=4, width=32, gap=0.0):
    found = {
        "course": course(lookings, accuracy),
        "breaks": [[0.1]],
        "clarity of breaks": 0.5,
        "size": 1,
        "twin": {"accuracy": 1.0, "twin_accuracy": 1.0, "pattern_gap": gap},
    }
    return Result({"width": width, "heads": heads, "layers": 1, "data": 0}, seed, found, 1.0)


LATE, EARLY = [0.0, 0.0, 0.0, 0.1, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("roles", "ability", "before"), [(LATE, EARLY, False), (EARLY, LATE, True)])
def test_the_order_of_roles_and_ability_is_read_off(roles, ability, before):
    rows = [result(roles, ability, seed=seed) for seed in range(2)]
    claims = {claim.claim: claim for claim in report.claims(rows)}
    assert claims["roles come before ability, by where heads look"].holds == before
    assert report.lag(rows[0], "looks") * (1 if before else -1) < 0
    assert claims["heads find the right entity before they can say what it is like"].holds is False


def test_roles_that_go_with_ability_over_the_ladder_are_seen():
    for sign in (1, -1):
        rows = [
            result([0.0, 0.0, 0.0, 0.0, 0.2 * at], [0.1, 0.1, 0.1, 0.1, 0.5 + sign * 0.1 * at], seed=seed, width=width)
            for at, width in enumerate((8, 16, 32, 64), 1)
            for seed in range(2)
        ]
        (claim,) = [each for each in report.claims(rows) if "over the ladder" in each.claim]
        assert claim.holds == (sign == 1)
    *_, twins = report.claims([result(LATE, EARLY, gap=1.0)])
    assert not twins.holds


def test_the_quick_command(tmp_path, monkeypatch):
    """The whole way from trained networks to a page, with fewer steps than even a quick run."""
    monkeypatch.setenv("ALLHEADS_CACHE", str(tmp_path))
    monkeypatch.setattr(lab, "QUICK_STEPS", 12)
    page = tmp_path / "figure.html"
    done = CliRunner().invoke(app, ["lab", "roles", "--quick", "--json", "--figure", str(page), "--minutes", "600"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert [each["setting"]["heads"] for each in facts["results"]] == [4, 1]
    assert "Roles of heads and ability" in page.read_text()
    tables = report.tables([Result(**each) for each in facts["results"]])
    assert all(name.startswith("roles:") and table.count("\n") >= 2 for name, table in tables.items())
