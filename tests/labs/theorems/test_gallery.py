"""Every theorem on random inputs; and a theorem that is wrong is found out."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from allheads.cli.main import app
from allheads.gates.approximation import approximate
from allheads.gates.gates import Gate
from allheads_labs.theorems import cases, cases_gated
from allheads_labs.theorems.gallery import THEOREMS
from allheads_labs.theorems.gated import reach, worst_input
from allheads_labs.theorems.mlps import activation_heads, linear_heads
from allheads_labs.theorems.theorem import Theorem, Trial, judged


@pytest.mark.parametrize("claim", THEOREMS, ids=lambda claim: claim.name)
def test_claims_hold(claim):
    verdict = judged(claim, trials=8, seed=1)
    assert verdict.holds, verdict
    if claim.exact:
        assert verdict.error_float64 <= 1e-10
        assert verdict.error_float32 > 1e-9


@pytest.mark.parametrize("claim", THEOREMS, ids=lambda claim: claim.name)
def test_exact_means_that_the_error_shrinks_with_the_precision(claim):
    if claim.exact:
        verdict = judged(claim, trials=3)
        assert verdict.error_float64 < 1e-7 * verdict.error_float32


WRONG = {
    "another slope": replace(approximate("silu"), gates=(Gate((0.0,), (1.001,)),)),
    "another offset": replace(approximate("silu"), gates=(Gate((1e-6,), (1.0,)),)),
    "a value offset": replace(approximate("silu"), delta=(1e-6,)),
    "a bound that is too small": replace(approximate("gelu"), max_error=1e-8),
}


@pytest.mark.parametrize("gates", WRONG.values(), ids=WRONG)
def test_wrong_constructions_do_not_hold(gates):
    assert not judged(Theorem("wrong", False, partial(cases.neurons, gates)), trials=3).holds


def test_a_wrong_gated_sum_does_not_hold():
    good = approximate("silu", gated=True)
    wrong = replace(good, delta=(good.delta[0] * (1 + 1e-4), good.delta[1]))
    assert not judged(Theorem("wrong", False, partial(cases_gated.gated, wrong)), trials=3).holds


def test_impossibilities_are_lower_bounds():
    claim = Theorem("possible", False, lambda draw, dtype: Trial(1, 1, 0.2, 0.278), least=True)
    assert not judged(claim, trials=1).holds


@pytest.mark.parametrize(("shape", "count"), [((30, 30), 4), ((30, 5), 1), ((7, 30), 1), ((16, 20), 2)])
def test_how_many_heads_a_linear_map_takes(shape, count):
    M = torch.zeros(30, 30)
    M[: shape[0], : shape[1]] = torch.randn(shape, generator=torch.manual_seed(0))
    (heads,) = linear_heads(M, d_head=8)
    assert len(heads.W_O) == count == -(-min(shape) // 8)


def test_activations_in_place_write_exact_zeros_elsewhere():
    groups = activation_heads(approximate("gelu"), torch.tensor([1, 4]), 6)
    untouched = [0, 2, 3, 5]
    assert all(not heads.W_O[:, :, untouched].any() for heads in groups)


@pytest.mark.parametrize("centred", [False, True])
def test_the_domain_is_the_best_possible(centred):
    draw = torch.Generator().manual_seed(3)
    from allheads.pure.runner import Norm

    gain, shift, w = (torch.randn(12, generator=draw).double() for _ in range(3))
    norm = Norm(gain, shift, centred, 1e-5)
    limit = reach(norm, w, 0.7)
    nearly = float(norm(worst_input(norm, w, 0.7)) @ w) + 0.7
    assert limit * (1 - 1e-9) <= abs(nearly) <= limit * (1 + 1e-12)


def test_the_command_prints_json_and_a_table(monkeypatch):
    monkeypatch.setattr("allheads_labs.theorems.gallery.THEOREMS", THEOREMS[:2])
    done = CliRunner().invoke(app, ["theorems", "--trials", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert [row["claim"] for row in json.loads(done.output)] == [claim.name for claim in THEOREMS[:2]]
    done = CliRunner().invoke(app, ["theorems", "--trials", "1"])
    assert "neuron, SiLU: one head" in done.output


def test_the_command_fails_when_a_theorem_does(monkeypatch):
    wrong = Theorem("wrong", False, partial(cases.neurons, WRONG["another slope"]))
    monkeypatch.setattr("allheads_labs.theorems.gallery.THEOREMS", [wrong])
    done = CliRunner().invoke(app, ["theorems", "--trials", "1"])
    assert done.exit_code == 1
    assert "NO" in done.output
    assert CliRunner().invoke(app, ["theorems", "--trials", "0"]).exit_code == 2
