"""The common ground: what is kept, what is done again, how long it may take, and intervals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module

import pytest
from typer.testing import CliRunner

from allheads.cli.main import app
from allheads.errors import AllHeadsError
from allheads.plots.picture import Picture
from allheads_labs.kit import registry, results
from allheads_labs.kit.lab import Claim, Lab, Result, Unit
from allheads_labs.kit.running import perform, run
from allheads_labs.kit.statistics import interval
from allheads_labs.kit.table import count, first, frame, mean, table, where


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLHEADS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counting(cost: float = 1.0, sizes=(1, 2), fails=()):
    """A lab whose units square a number, and what it has done so far."""
    done = []

    def units(quick, seeds):
        return [Unit({"size": size}, seed, cost) for seed in range(seeds) for size in sizes]

    def square(unit):
        if (unit.setting["size"], unit.seed) in fails:
            raise KeyboardInterrupt
        done.append((unit.setting["size"], unit.seed))
        return {"square": unit.setting["size"] ** 2 + unit.seed}

    tables = {"counting": "| a |\n| --- |"}
    return Lab("counting", 1, units, square, lambda results: tables, lambda results: [Claim("c", "1", True)]), done


def test_results_come_in_order_and_are_not_made_twice():
    lab, done = counting()
    first = run(lab, quick=True, seeds=2)
    assert [each.found["square"] for each in first] == [1, 4, 2, 5]
    again = run(lab, quick=True, seeds=2)
    assert again == first
    assert done == [(1, 0), (2, 0), (1, 1), (2, 1)]


def test_more_seeds_make_only_what_is_missing():
    lab, done = counting()
    run(lab, quick=True, seeds=1)
    run(lab, quick=True, seeds=3)
    assert len(done) == len(set(done)) == 6


def test_an_interrupted_run_resumes_where_it_was():
    lab, done = counting(fails={(1, 1)})
    with pytest.raises(KeyboardInterrupt):
        run(lab, quick=True, seeds=2)
    assert done == [(1, 0), (2, 0)]
    later, more = counting()
    found = run(later, quick=True, seeds=2)
    assert more == [(1, 1), (2, 1)]
    assert [each.found["square"] for each in found] == [1, 4, 2, 5]


def test_another_version_setting_or_seed_is_another_unit():
    lab, _ = counting()
    unit = Unit({"size": 1}, 0, 1.0)
    prints = {
        lab.fingerprint(unit),
        replace(lab, version=2).fingerprint(unit),
        replace(lab, name="other").fingerprint(unit),
        lab.fingerprint(replace(unit, seed=1)),
        lab.fingerprint(replace(unit, setting={"size": 2})),
    }
    assert len(prints) == 5
    assert lab.fingerprint(replace(unit, cost=9.0, alone=True)) == lab.fingerprint(unit)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"setting": {}}'])
def test_a_damaged_result_is_made_again(damage):
    lab, done = counting(sizes=(3,))
    run(lab, quick=True, seeds=1)
    results.path_of(lab, Unit({"size": 3}, 0, 1.0)).write_text(damage)
    assert run(lab, quick=True, seeds=1)[0].found == {"square": 9}
    assert len(done) == 2


def test_nothing_half_written_is_left(cache):
    lab, _ = counting()
    run(lab, quick=True, seeds=2)
    kept = list((cache / "labs" / "counting").iterdir())
    assert len(kept) == 4
    assert all(path.suffix == ".json" for path in kept)


def test_a_result_that_json_cannot_hold_leaves_nothing(cache):
    lab, _ = counting()
    with pytest.raises(ValueError, match="JSON"):
        perform(replace(lab, run=lambda unit: {"loss": float("nan")}), Unit({"size": 1}, 0, 1.0))
    assert not list(cache.rglob("*.json"))


def test_whoever_is_stopped_while_writing_leaves_nothing(cache, monkeypatch):
    def stopped(*_):
        raise OSError("no room")

    monkeypatch.setattr("pathlib.Path.replace", stopped)
    with pytest.raises(AllHeadsError, match="no room"):
        run(counting()[0], quick=True, seeds=1)
    assert not list((cache / "labs" / "counting").iterdir())


def test_a_cache_that_cannot_be_written_is_one_error(cache):
    cache.write_text("a file")
    lab, _ = counting()
    with pytest.raises(AllHeadsError, match="ALLHEADS_CACHE"):
        run(lab, quick=True, seeds=1)


def test_more_seeds_than_time_are_refused_after_the_first_unit_which_is_kept():
    lab, done = counting()
    slow = replace(lab, run=lambda unit: time.sleep(0.05) or lab.run(unit))
    with pytest.raises(AllHeadsError, match=r"within 1 minutes, got about \d+ minutes .* 9000 seeds.* --seeds \d{3}"):
        run(slow, quick=True, seeds=9000)
    assert done == [(1, 0)]
    with pytest.raises(AllHeadsError, match="what is done is kept"):
        run(slow, quick=True, seeds=9000)
    assert done == [(1, 0)]


def test_what_is_done_costs_no_time_and_minutes_can_be_allowed():
    lab, _ = counting()
    slow = replace(lab, run=lambda unit: time.sleep(0.02) or lab.run(unit))
    with pytest.raises(AllHeadsError, match="--minutes"):
        run(slow, quick=True, seeds=2, minutes=0.0005)
    run(slow, quick=True, seeds=2, minutes=1.0)
    assert len(run(slow, quick=True, seeds=2, minutes=0.0)) == 4


def test_units_that_measure_time_come_last():
    lab, done = counting(sizes=(1, 2, 3))
    units = lab.units(True, 1)
    timed = replace(lab, units=lambda quick, seeds: [units[0], replace(units[1], alone=True), units[2]])
    run(timed, quick=True, seeds=1)
    assert done == [(1, 0), (3, 0), (2, 0)]


def test_two_processes_find_what_one_finds(cache):
    """A full run, with real processes; builtins are functions that they know, too."""
    units = [Unit({"size": size}, size, 1.0) for size in range(5)]
    lab = Lab("plain", 1, {False: units}.get, vars, dict, list)
    found = run(lab, quick=False, seeds=1)
    assert [each.found for each in found] == [vars(unit) for unit in units]
    assert len(list((cache / "labs" / "plain").iterdir())) == 5


def test_intervals():
    stats = pytest.importorskip("scipy.stats")
    values = [0.2, 0.5, 0.9, 0.4]
    low, high = stats.t.interval(0.95, 3, loc=0.5, scale=stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    # From tables of Student's t: 4.3027 with two degrees of freedom.
    assert interval([1.0, 2.0, 3.0]).half == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert interval([1.0]).half is None
    assert interval([1.0]).low == interval([1.0]).high == 1.0
    with pytest.raises(AllHeadsError):
        interval([])


def test_without_scipy_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    monkeypatch.delitem(sys.modules, "allheads_labs.kit.statistics")
    with pytest.raises(AllHeadsError, match=r"pip install 'allheads\[labs\]'"):
        import_module("allheads_labs.kit.statistics")


def table_rows():
    losses = ((3, 0, 1.0), (3, 1, 2.0), (5, 0, None))
    return [Result({"size": size}, seed, {"loss": {"end": loss}}, 1.0) for size, seed, loss in losses]


def test_a_table_has_a_row_for_every_group_and_a_column_for_every_statistic():
    made = table(
        frame(table_rows()),
        ["size"],
        {"size": first("size"), "n": count, "loss": mean("loss/end", ".1f"), "of seed 0": where(count, seed=0)},
    )
    assert made.splitlines()[2:] == ["| 3 | 2 | 1.5 ± 6.4 | 1 |", "| 5 | 1 | none | 1 |"]


def test_a_mapping_among_findings_can_be_rows():
    rows = frame(table_rows(), "loss")
    assert rows[["size", "loss"]].values.tolist() == [[3, "end"], [3, "end"], [5, "end"]]
    assert rows["value"].tolist()[:2] == [1.0, 2.0]


def invoke(*arguments):
    return CliRunner().invoke(app, ["lab", *arguments])


@pytest.fixture
def counted(monkeypatch):
    lab, done = counting()
    monkeypatch.setattr(registry, "find", lambda name: lab)
    monkeypatch.setattr(registry, "lab_figure", lambda lab, results: Picture())
    return done


def test_the_command_writes_prints_and_draws(counted, tmp_path):
    document, page = tmp_path / "labs.md", tmp_path / "figure.html"
    document.write_text("before <!-- counting --><!-- /counting --> after")
    done = invoke("recurrence", "--quick", "--write", str(document), "--figure", str(page))
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert document.read_text() == "before <!-- counting -->\n| a |\n| --- |\n<!-- /counting --> after"
    assert "<script" in page.read_text()
    facts = json.loads(invoke("recurrence", "--quick", "--json").stdout)
    assert facts["claims"] == [{"claim": "c", "measured": "1", "holds": True}]
    assert [each["found"]["square"] for each in facts["results"]] == [1, 4]
    assert invoke("recurrence", "--quick").stdout.split()[:2] == ["counting", "a"]
    assert counted == [(1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recurence"], "Did you mean recurrence?"),
        (["trainings"], "Did you mean training?"),
        (["zzz"], "There are physics, recurrence, roles, selection, training, translation."),
        (["recurrence", "--quick", "--seeds", "0"], "Expected at least one seed, got 0."),
        (["recurrence", "--quick", "--figure", "/no/such/folder/a.html"], "a path in a folder that exists"),
        (["recurrence", "--quick", "--write", "/no/such/labs.md"], "a document with markers for tables"),
    ],
)
def test_bad_input_is_one_line(counted, arguments, message):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert counted == []


def test_ctrl_c_ends_a_run_and_the_next_one_goes_on(cache):
    """A real process, interrupted after the first unit is kept."""
    script = (
        # Whoever starts tests in the background of a shell starts them deaf to Ctrl-C.
        "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from allheads_labs.kit.lab import Lab, Unit\nfrom allheads_labs.kit.running import run\n"
        "def do(unit):\n    print(unit.seed, flush=True)\n    time.sleep(0 if unit.seed < 1 else 30)\n    return {}\n"
        "lab = Lab('slow', 1, lambda q, n: [Unit({}, s, 1.0) for s in range(n)], do, lambda r: {}, lambda r: [])\n"
        "run(lab, quick=True, seeds=3, minutes=60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        # The second unit begins when the first is kept.
        assert [process.stdout.readline() for _ in range(2)] == [b"0\n", b"1\n"]
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) != 0
    assert len(list((cache / "labs" / "slow").iterdir())) == 1
