"""The bench measures what it says: its ladder, its methods, its areas, its prompts."""

from __future__ import annotations

import random

import pytest
import torch
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

import allheads as ah
from allheads_labs import zoo
from allheads_labs.faithfulness.lab import ORDERS, Outcome, areas, outcomes, tables
from allheads_labs.faithfulness.ladder import area, recovered, rungs
from allheads_labs.faithfulness.methods import METHODS, Case, Scores
from allheads_labs.faithfulness.tasks import TASKS, right_ones
from allheads_labs.kit.lab import Result
from allheads_labs.kit.statistics import bootstrap


@pytest.fixture(scope="module")
def twin():
    return ah.convert(zoo.build("GPT2LMHeadModel", dtype=torch.float64).bridge)


@pytest.fixture(scope="module")
def case(twin):
    rows = torch.randint(twin.cfg.d_vocab, (4, 6), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(twin.cfg.d_vocab_out, dtype=torch.float64)
    weights[3], weights[5] = 1.0, -1.0
    return Case(rows[:1], rows[1:2], weights, ah.corpus.means(twin, [row[None] for row in rows], by_position=True))


def _value(twin, case):
    with torch.no_grad():
        return float(twin(case.ids)[0, -1] @ case.weights)


def test_the_ladder_is_mean_ablation(twin, case):
    """The first rungs, by hand: everything at its mean but one part, but four."""
    found = ah.attribute(twin, case.ids, case.weights).relative_to(case.means)
    curve = recovered(twin, case, Scores(found.heads, found.neurons), "size")
    everything = [f"L{layer}.A{head}" for layer in (0, 1) for head in range(4)]
    everything += [f"L{layer}.N{n}" for layer in (0, 1) for n in range(twin.banks[0].d_mlp)]
    with ah.ablate(twin, everything, means=case.means):
        nothing = _value(twin, case)
    full = _value(twin, case)
    for rung, k in enumerate((1, 4)):
        kept = [(ah.Label.parse(each.label), each.position) for each in found.top(k)]
        hooks = []
        for layer in (0, 1):
            for name, kind in (("attn.hook_z", "A"), ("mlp.hook_post", "N")):
                here = [(at, label.index) for label, at in kept if (label.layer, label.kind) == (layer, kind)]

                def write(value, hook, here=here, point=f"blocks.{layer}.{name}"):
                    written = case.means.of(point)[None].clone()
                    for at, index in here:
                        written[0, at, index] = value[0, at, index]
                    return written

                hooks.append((f"blocks.{layer}.{name}", write))
        with twin.hooks(fwd_hooks=hooks):
            expected = (_value(twin, case) - nothing) / (full - nothing)
        assert float(curve[rung]) == pytest.approx(expected, abs=1e-9)
    assert float(curve[-1]) == 1.0
    assert len(curve) == len(rungs(found.heads.numel() + found.neurons.numel()))


def test_orders(twin, case):
    """By sign, what is against the answer comes last: leaving it out overshoots."""
    found = ah.attribute(twin, case.ids, case.weights).relative_to(case.means)
    scores = Scores(found.heads, found.neurons)
    size, sign = (recovered(twin, case, scores, by) for by in ORDERS)
    assert float(sign.max()) > 1.0
    assert not torch.allclose(size, sign)
    turned = recovered(twin, case, Scores(-found.heads, -found.neurons), "sign")
    assert float(turned.min()) < 0.0


def test_areas():
    ks = [1, 4, 16, 64]
    assert area(torch.ones(4), ks) == 1.0
    assert area(torch.zeros(4), ks) == 0.0
    assert area(torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]), ks) == pytest.approx(0.5)
    high = torch.tensor([0.0, 1.5, 1.5, 1.0])
    assert area(high, ks) == pytest.approx(5 / 6)
    assert area(high, ks, overshoot=True) == pytest.approx(0.5)
    assert area(torch.tensor([0.0, 3.0, -2.0, 1.0]), ks, overshoot=True) == pytest.approx(1 / 6)


def test_patching_is_transformer_lens_own(twin, case):
    mine = METHODS["patching"](twin, case)
    theirs = attribution_patch(
        twin,
        case.ids,
        case.corrupt,
        lambda logits: logits[0, -1] @ case.weights,
        config=EdgeAttributionConfig(granularity="node"),
    )
    heads = {(n.layer, n.head, n.position): v for n, v in theirs.node_scores.items() if n.kind == "attn_head_out"}
    assert len(heads) == mine.heads.numel()
    for place, value in heads.items():
        assert float(mine.heads[place]) == pytest.approx(float(value), abs=1e-9)
    layers = {(n.layer, n.position): v for n, v in theirs.node_scores.items() if n.kind == "mlp_out"}
    for place, value in layers.items():
        assert float(mine.neurons[place].sum()) == pytest.approx(float(value), abs=1e-9)


def test_integrated_gradients_are_those_of_their_steps(twin, case):
    """One neuron by finite differences on the way."""
    found = METHODS["integrated"](twin, case)
    mean, point = case.means.of("embed.hook_out"), "blocks.0.mlp.hook_post"
    with torch.no_grad():
        clean = twin.run_with_cache(case.ids)[1]
    slopes, eps = [], 1e-5
    for step in range(8):
        share = (step + 0.5) / 8
        start = [("embed.hook_out", lambda value, hook, share=share: mean + share * (value - mean))]
        values = []
        for sign in (1, -1):

            def nudge(value, hook, sign=sign):
                value = value.clone()
                value[0, 2, 7] += sign * eps
                return value

            with twin.hooks(fwd_hooks=[*start, (point, nudge)]):
                values.append(_value(twin, case))
        slopes.append((values[0] - values[1]) / (2 * eps))
    expected = sum(slopes) / 8 * float(clean[point][0, 2, 7] - case.means.of(point)[2, 7])
    assert float(found.neurons[0, 2, 7]) == pytest.approx(expected, rel=1e-4)


def test_rules_and_chance(twin, case):
    for name in ("value", "relp", "gradient"):
        found = METHODS[name](twin, case)
        plain = ah.attribute(twin, case.ids, case.weights, rule=name).relative_to(case.means)
        assert torch.equal(found.heads, plain.heads)
    once, again = (METHODS["chance"](twin, case) for _ in range(2))
    assert torch.equal(once.neurons, again.neurons)
    assert once.heads.shape == found.heads.shape and once.neurons.shape == found.neurons.shape


def test_intervals():
    mean, low, high = bootstrap([0.0, 1.0] * 50)
    assert mean == 0.5
    assert 0.38 < low < 0.45 < 0.55 < high < 0.62
    assert Outcome("t", "m", "sign", (0.5, 0.9), (0.4, 0.8)).to_dict()["mean"] == 0.7


def test_the_table_compares_methods_with_the_gradient_on_the_same_prompts():
    found = [
        Outcome("t", method, order, values, tuple(value / 2 for value in values)).to_dict()
        for method, values in (("frozen", (0.5, 0.9)), ("gradient", (0.4, 0.8)))
        for order in ORDERS
    ]
    assert areas(found).query("method == 'frozen'")["more"].tolist() == pytest.approx([0.1] * 4)
    made = tables([Result({"task": "t"}, 0, {"outcomes": found}, 1.0)])["faithfulness:t"].splitlines()
    low_high = "0.700 (0.500 to 0.900)"
    assert made[2] == f"| `frozen` | {low_high} | {low_high} | 0.350 (0.250 to 0.450) | 0.100 (0.100 to 0.100) |"
    assert made[3].startswith("| `gradient` | 0.600 (0.400 to 0.800)") and made[3].endswith("|  |")


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_of_one_form(smollm_twin, task):
    """One length, in both readings; single tokens; and what counts as right differs between the two."""
    draw = random.Random(1)
    made = [TASKS[task](draw) for _ in range(40)]
    lengths = {smollm_twin.to_tokens(text).shape[1] for each in made for text in (each.text, each.corrupt)}
    assert len(lengths) == 1
    for each in made:
        assert each.text != each.corrupt
        weights = each.target(smollm_twin)
        assert float(weights[weights > 0].sum()) == pytest.approx(1.0)
        assert float(weights.sum()) == pytest.approx(0.0, abs=1e-12)
        assert not set(each.right) & set(each.wrong)
    assert TASKS[task](random.Random(5)) == TASKS[task](random.Random(5))


def test_only_prompts_that_the_model_gets_right(smollm_twin):
    for prompt in right_ones(smollm_twin, "agreement", 3, seed=0):
        with torch.no_grad():
            assert float(smollm_twin(prompt.text)[0, -1].double() @ prompt.target(smollm_twin)) > 0


def test_what_cannot_be_benched(smollm_twin, twin):
    with pytest.raises(ah.AllHeadsError, match="a task out of objects, agreement, years"):
        right_ones(smollm_twin, "chess", 2, seed=0)
    with pytest.raises(ah.AllHeadsError, match="at least two prompts"):
        list(outcomes(smollm_twin, "objects", 1))


def test_a_small_run(smollm_twin, monkeypatch):
    """Two prompts, two methods, the real model: frozen attribution finds more than chance."""
    monkeypatch.setattr("allheads_labs.faithfulness.lab.METHODS", {k: METHODS[k] for k in ("value", "chance")})
    found = {(row.method, row.order): row for row in outcomes(smollm_twin, "objects", 2)}
    assert all(len(row.areas) == 2 for row in found.values())
    assert min(found["value", "sign"].areas) > max(found["chance", "sign"].areas) + 0.2
