"""``allheads sweep`` as users run it: killed and resumed, in two processes, with an honest word on mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import allheads as ah
from allheads.cli.main import app
from allheads.corpus import processes, run_sweep

SIZES = {"context": 16, "batch": 2, "every": 2}
OPTIONS = [f"--{name}={value}" for name, value in SIZES.items()]
#: The package that is under test, with one thread: sums are then rounded alike.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(ah.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def reference(small_twin, corpus, tmp_path_factory):
    """The file that one process writes in one go."""
    import torch

    path, threads = tmp_path_factory.mktemp("reference") / "sweep.safetensors", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ah.corpus.sweep(small_twin, ah.corpus.TextFiles([corpus]), ah.corpus.SweepSettings(**SIZES), out=path)
    finally:
        torch.set_num_threads(threads)
    return path.read_bytes()


def _command(small, corpus, out, *more):
    return ["-m", "allheads", "sweep", str(corpus), "--model", str(small), "--out", str(out), *OPTIONS, *more]


def test_killed_and_resumed(small, corpus, tmp_path, reference):
    out = tmp_path / "sweep.safetensors"
    process = subprocess.Popen([sys.executable, *_command(small, corpus, out)], env=ENVIRONMENT)
    started = time.monotonic()
    while not out.exists() and time.monotonic() - started < 60:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    checkpoint = ah.corpus.Sweep.load(out)
    assert 0 < checkpoint.done < checkpoint.settings["parts"]
    command = [sys.executable, *_command(small, corpus, out, "--resume", "--json")]
    resumed = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert json.loads(resumed.stdout)["positions"] == 300 * 15
    assert out.read_bytes() == reference
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.safetensors"]


def test_two_processes(small, corpus, tmp_path, reference):
    out = tmp_path / "sweep.safetensors"
    # Without GPUs accelerate starts several processes only if told so.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    more = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, *more, *_command(small, corpus, out, "--json")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    facts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["positions"] for each in facts] == [300 * 15]
    assert out.read_bytes() == reference


@pytest.fixture(scope="module")
def short(corpus, tmp_path_factory):
    """Its first 20 lines."""
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_text("".join(corpus.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    return path


def _run(small, corpus, out, *more):
    return CliRunner().invoke(app, _command(small, corpus, out, *more)[2:])


def test_tables(small, short, tmp_path):
    out = tmp_path / "sweep.safetensors"
    shown = _run(small, short, out, "--lines")
    assert shown.exit_code == 0
    assert "at 300 positions of 20 texts. Of 96 neurons" in shown.stdout
    for title in ("driven most by the token", "driven most by the position", "attention to each role"):
        assert title in shown.stdout
    best = ah.corpus.Sweep.load(out).neurons().nlargest(1, "token").iloc[0]
    assert best["label"] in shown.stdout
    assert f"{best['token']:.3f}" in shown.stdout


def test_bad_input_is_one_line(small, short, tmp_path):
    out = tmp_path / "sweep.safetensors"
    out.write_bytes(b"something")
    for more, message in (
        ([], "a new file, or resume=True (--resume)"),
        (["--resume"], "that ah.corpus.sweep has written"),
    ):
        result = _run(small, short, out, *more)
        assert result.exit_code == 2
        assert result.stderr.startswith("allheads: Expected ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_interrupted(small, short, tmp_path, monkeypatch):
    count, seen = run_sweep.count_batch, []

    def interrupted(twin, batch, *rest):
        seen.append(batch)
        if len(seen) == 6:
            raise KeyboardInterrupt
        count(twin, batch, *rest)

    monkeypatch.setattr(run_sweep, "count_batch", interrupted)
    result = _run(small, short, tmp_path / "sweep.safetensors")
    assert result.exit_code == 130
    assert result.stderr == "allheads: interrupted\n"
    assert ah.corpus.Sweep.load(tmp_path / "sweep.safetensors").done == 2


def test_fewer_processes_than_asked(small, short, tmp_path, monkeypatch):
    """What ``accelerate launch --num_processes 2`` does on processors."""
    for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert processes.fewer_than_asked()
    assert processes.join() == (0, 1)
    result = _run(small, short, tmp_path / "sweep.safetensors")
    assert result.exit_code == 0
    assert result.stderr == "allheads: accelerate has started one process; add --multi_gpu for several\n"
