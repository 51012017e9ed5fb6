"""Selection: functions as smooth as they claim, targets that read what they say, learners, and a run that learns."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from allheads.cli.main import app
from allheads.errors import AllHeadsError
from allheads_labs.kit.fitting import cosine
from allheads_labs.kit.lab import Result
from allheads_labs.selection import lab, report, targets
from allheads_labs.selection.learners import KINDS, AttentionBlock, learner
from allheads_labs.selection.targets import LAGS, WEIGHTS, Sequences, blocks, sample, smooth
from allheads_labs.selection.training import DECAY, NOISE, RATES, ROWS, clip_each, error, train


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fineness(frequency: int) -> int:
    """The dyadic block of a whole frequency: 0, then [1, 2), [2, 4), [4, 8)."""
    return 0 if frequency == 0 else int(math.log2(abs(frequency))) + 1


@pytest.mark.parametrize("kind", ["mixed", "anisotropic"])
@pytest.mark.parametrize("seed", [0, 1])
def test_functions_have_the_smoothness_that_they_claim(kind, seed):
    """By Fourier transform on a grid that holds all frequencies: the energy of every block is its norm's square."""
    size = 2 ** (targets.FINEST + 1)
    axis = torch.arange(size) / size
    points = torch.cartesian_prod(axis, axis, axis)
    values = smooth(points, kind, draw(seed)).double().view(size, size, size)
    assert abs(float(values.mean())) < 1e-6
    assert float(values.square().mean()) == pytest.approx(1, abs=1e-5)
    energy = (torch.fft.fftn(values) / size**3).abs().square()
    whole = [at if at < size // 2 else at - size for at in range(size)]
    found: dict[tuple[int, ...], float] = {}
    for at in itertools.product(range(size), repeat=3):
        block = tuple(fineness(whole[each]) for each in at)
        found[block] = found.get(block, 0.0) + float(energy[at])
    norms = blocks(kind)
    total = sum(norm**2 for norm in norms.values())
    for block, norm in norms.items():
        assert found[block] == pytest.approx(norm**2 / total, rel=1e-3, abs=1e-8)


def test_blocks_are_those_of_the_definition():
    a = targets.SMOOTHNESS["mixed"]
    assert len(blocks("mixed")) == (targets.FINEST + 1) ** 3 - 1
    assert blocks("mixed")[1, 2, 3] == pytest.approx(2 ** -(a[0] + 2 * a[1] + 3 * a[2]))
    a = targets.SMOOTHNESS["anisotropic"]
    assert blocks("anisotropic")[1, 2, 3] == pytest.approx(2 ** -max(a[0], 2 * a[1], 3 * a[2]))


@pytest.mark.parametrize("kind", ["mixed", "anisotropic"])
def test_targets_at_fixed_lags_read_these_and_nothing_else(kind):
    made = sample(kind, draw(), (200, 12, 5), seed=3)
    read = torch.stack([made.tokens[:, 11 - lag, at] for at, lag in enumerate(LAGS)], -1) / 4 + 0.5
    assert torch.allclose(smooth(read, kind, draw(3)), made.target, atol=1e-4)
    assert made.importance.sum(1).unique().tolist() == [3.0]
    assert made.importance[0].nonzero().flatten().tolist() == sorted(11 - lag for lag in LAGS)
    other = sample(kind, draw(), (200, 12, 5), seed=4)
    assert torch.equal(other.tokens, made.tokens)
    assert not torch.allclose(other.target, made.target, atol=0.1)


def test_relative_importance_orders_tokens_and_the_target_reads_the_first_three():
    made = sample("relative", draw(), (500, 20, 6), seed=5)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw(5)))[0]
    latent = made.tokens @ turn.mT
    important = latent[..., 0] + 0.5 * torch.sin(2 * latent[..., 1])
    assert torch.allclose(important.argsort(1), made.importance.argsort(1))
    first = important.topk(3, dim=1).indices
    values = torch.sin(1.5 * latent[..., 2].gather(1, first)) @ torch.tensor(WEIGHTS)
    assert torch.allclose(values / values.std(), made.target / made.target.std(), atol=1e-3)
    # It is relative: what is important here is less than what is not important there.
    lowest = important.topk(3, dim=1).values[:, -1]
    ranks = important.flatten().sort().values
    assert torch.searchsorted(ranks, lowest.quantile(0.2)) < 0.4 * len(ranks)


@pytest.mark.parametrize("kind", ["relative", "mixed", "anisotropic"])
def test_targets_have_unit_variance(kind):
    made = sample(kind, draw(), (20_000, 9, 4), seed=0)
    assert float(made.target.var()) == pytest.approx(1, abs=0.05)
    assert abs(float(made.target.mean())) < 0.05


@pytest.mark.parametrize(("kind", "length", "d"), [("relative", 3, 5), ("mixed", 7, 4), ("anisotropic", 8, 2)])
def test_what_is_too_small_is_refused(kind, length, d):
    with pytest.raises(AllHeadsError, match="tokens or more of at least 3 dimensions"):
        sample(kind, draw(), (1, length, d), seed=0)


@pytest.mark.parametrize(("d", "length", "placed"), [(5, 11, False), (5, 35, False), (4, 8, True), (20, 11, False)])
def test_learners_are_of_equal_size_and_learn_with_all_of_it(d, length, placed):
    made = {kind: learner(kind, d, length, placed=placed) for kind in KINDS}
    sizes = [sum(p.numel() for p in one.parameters()) for one in made.values()]
    assert max(sizes) < 1.12 * min(sizes)
    for kind, one in made.items():
        one(torch.randn(6, length, d, generator=draw())).square().sum().backward()
        idle = {name for name, p in one.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
        assert idle == set()
        if kind == "uniform":
            assert one.attn.weight.grad[:64].abs().sum() == 0  # no query and no key matters


def test_order_matters_only_where_positions_mean_something():
    tokens = torch.randn(4, 9, 5, generator=draw())
    turned = tokens[:, torch.randperm(9, generator=draw(1))]
    with torch.no_grad():
        for kind in ("transformer", "uniform"):
            free, placed = (learner(kind, 5, 9, placed=each) for each in (False, True))
            assert torch.allclose(free(tokens), free(turned), atol=1e-5)
            assert not torch.allclose(placed(tokens), placed(turned), atol=1e-3)


def test_the_convolution_sees_its_window():
    one = learner("convolution", 5, 30, placed=True)
    tokens = torch.randn(1, 30, 5, requires_grad=True)
    one(tokens).sum().backward()
    seen = (tokens.grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist()
    assert seen == list(range(29 - 8, 30))
    assert max(LAGS) <= 8


def test_the_shortcut_is_the_whole_block_and_the_twin_is_the_same():
    one = learner("transformer", 5, 11, placed=False)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.mul_(2)
    test = sample("relative", draw(), (64, 11, 5), seed=0)
    found = lab.compared(one, test)
    assert found["shortcut_gap"] < 1e-4
    assert 0 < found["gap"] < 1e-5
    assert found["pattern_gap"] < 1e-6
    assert found["error"] == pytest.approx(found["twin_error"], rel=1e-5)


def test_a_stack_is_trained_like_one_alone():
    """Against a plain loop, with torch's own way of cutting gradients."""
    known = sample("relative", draw(), (100, 6, 5), seed=0)
    (stacked,) = train("transformer", known, [96], steps=5, seed=0)
    torch.default_generator.manual_seed(0)
    alone = AttentionBlock(5, 0)
    chance = draw()
    goals = known.target + NOISE * torch.randn(100, generator=chance)
    optimiser = torch.optim.AdamW(alone.parameters(), lr=RATES["relative"], weight_decay=DECAY)
    for step in range(5):
        optimiser.param_groups[0]["lr"] = RATES["relative"] * cosine(step, 5)
        rows = (torch.rand(1, ROWS, generator=chance)[0] * 96).long()
        loss = F.mse_loss(alone(known.tokens[rows]), goals[rows])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
        optimiser.step()
    # Not the parameters: those without effect, biases of keys, wander with rounding.
    with torch.no_grad():
        assert torch.allclose(stacked(known.tokens), alone(known.tokens), atol=1e-4)
    assert error(stacked, known) == pytest.approx(error(alone, known), rel=1e-3)


def test_gradients_of_a_stack_are_cut_one_by_one():
    made = [nn.Parameter(torch.zeros(2, 3, 4)), nn.Parameter(torch.zeros(2, 5))]
    for each in made:
        each.grad = torch.randn(each.shape, generator=draw())
        each.grad[1] *= 0.01
    before = [each.grad.clone() for each in made]
    clip_each(made)
    norm = torch.cat([each[0].flatten() for each in before]).norm()
    for each, old in zip(made, before, strict=True):
        assert torch.allclose(each.grad[0], old[0] / norm, rtol=1e-4)
        assert torch.equal(each.grad[1], old[1])


def test_errors_are_shares_of_the_variance():
    made = sample("mixed", draw(), (5000, 8, 4), seed=0)
    scaled = Sequences("mixed", made.tokens, 7 * made.target, made.importance)
    nothing = learner("connected", 4, 8, placed=True)
    with torch.no_grad():
        for parameter in nothing.parameters():
            parameter.zero_()
    assert error(nothing, scaled) == pytest.approx(1, abs=0.01)


def test_attention_learns_to_choose():
    found = {}
    for kind in ("transformer", "uniform"):
        known, test = (sample("relative", draw(seed), (1024, 8, 5), seed=0) for seed in (0, 1))
        few, many = train(kind, known, [32, 1024], steps=250, seed=0)
        found[kind] = error(many, test)
        assert error(few, test) > error(many, test)
        if kind == "transformer":
            seen = lab.attention(many, test)
    assert found["transformer"] < 0.5 * found["uniform"]
    assert seen["correlation"] > 0.7
    assert seen["weight"] > 0.6
    assert seen["error when frozen"] > 2 * found["transformer"]


def result(name, errors, *, target="relative", length=35, correlation=0.9, seed=0, gap=0.0):
    found = {"parameters": 1, "errors": errors}
    if name == "transformer":
        seen = {"correlation": correlation, "heads": [0.5], "weight": 0.8, "error when frozen": 1.0}
        twin = {"error": 0.1, "twin_error": 0.1, "gap": gap, "pattern_gap": 0.0, "shortcut_gap": 0.0}
        found |= {"attention": dict.fromkeys(errors, seen), "twin": twin}
    setting = {"target": target, "length": length, "d_token": 5, "learner": name}
    return Result(setting, seed, found, 1.0)


def falling(power):
    return {str(n): 0.5 * (n / 512) ** power for n in (512, 2048, 4096)}


@pytest.mark.parametrize(
    ("change", "number"),
    [({}, None), ({"uniform": 0.4}, 0), ({"convolution": 0.29}, 1), ({"correlation": 0.8}, 2), ({"gap": 1e-3}, 4)],
)
def test_each_claim_can_fail(change, number):
    errors = {"transformer": 0.1, "uniform": 0.6, "convolution": 0.4, "connected": 1.0} | change
    about = {name: change[name] for name in ("correlation", "gap") if name in change}
    rows = [result(name, {"2048": errors[name]}, **about) for name in KINDS]
    rows += [result(name, falling(-1.0), target="mixed", length=8) for name in KINDS]
    assert [at for at, claim in enumerate(report.claims(rows)) if not claim.holds] == (
        [] if number is None else [number]
    )


def test_a_slope_that_is_too_flat_is_no_support_for_the_theory():
    rows = [result(name, {"2048": 0.1}) for name in KINDS]
    for power, holds in ((-1.0, True), (-0.3, False)):
        swept = [result(name, falling(power), target="mixed", length=8) for name in KINDS]
        (claim,) = [each for each in report.claims([*rows, *swept]) if "falls at least" in each.claim]
        assert claim.holds == holds
        assert f"n^{power:.2f}" in claim.measured


def test_growth_with_length_is_seen():
    for more, holds in ((0.11, True), (0.9, False)):
        rows = [
            result(name, {"2048": value + 0.005 * seed}, length=length, seed=seed)
            for length, value in ((11, 0.1), (35, more))
            for name in KINDS
            for seed in range(3)
        ]
        (claim,) = [each for each in report.claims(rows) if "stays flat" in each.claim]
        assert claim.holds == holds


def test_the_quick_command(tmp_path, monkeypatch):
    """The whole way from trained learners to a page, with fewer steps than even a quick run."""
    monkeypatch.setenv("ALLHEADS_CACHE", str(tmp_path))
    monkeypatch.setattr(lab, "QUICK", (("relative", 6, 5, (64, 128), 3, 1.0), ("mixed", 8, 4, (64, 128), 3, 1.0)))
    page = tmp_path / "figure.html"
    done = CliRunner().invoke(app, ["lab", "selection", "--quick", "--json", "--figure", str(page), "--minutes", "600"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert len(facts["results"]) == 8
    assert "who finds the tokens" in page.read_text()
    tables = report.tables([Result(**each) for each in facts["results"]])
    assert all(name.startswith("selection:") and table.count("\n") >= 2 for name, table in tables.items())
