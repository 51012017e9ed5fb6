"""TransformerLens' own tests, on plain bridges and on twins: what fails only on twins?

1. Its source distribution is fetched with pip, and its tests are unpacked into the cache; nothing of it enters this
   repository.
2. The models that its tests load are made, small and random, under their names (`hub`).
3. The tests that make bridges run twice: on the bridges, and on a twin in place of every bridge (`twins_plugin`).
4. Tests that fail only on twins are compared with the accepted ones, `accepted.toml`: their names, and why.

Run it with ``make peers``, or by hand:

    python peers/transformer_lens_tests.py                     everything
    python peers/transformer_lens_tests.py --only-differing    what failed only on twins last time, on twins again
    python peers/transformer_lens_tests.py NAME ...            these tests on twins, with pytest's report
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from allheads.disk import cache_root, replaced_folder

# Of this folder.
import hub  # isort: skip

HERE = Path(__file__).parent
#: Tests of these files make bridges.
MAKES_BRIDGES = re.compile(r"boot_transformers|boot_native|build_bridge_from_module|gpt2_bridge")
#: Other machines, other programs, and measurements of time.
ELSEWHERE = re.compile(r"tests/(mps|benchmarks)/|multi_?gpu|vllm")

Results = dict[str, dict[str, Any]]


def main() -> int:
    """Run what the arguments ask for; 1 if tests fail only on twins that should not, or pass that should."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tests", nargs="*", help="run only these, on twins")
    parser.add_argument("--only-differing", action="store_true", help="what failed only on twins last time")
    chosen = parser.parse_args()
    folder = cache_root() / "peers" / f"transformer-lens-{version('transformer-lens')}"
    _fetch(folder)
    if chosen.tests:
        return _pytest(folder, chosen.tests, twins=True, results=None)
    files = {"plain": folder / "plain.jsonl", "twins": folder / "twins.jsonl"}
    if chosen.only_differing:
        plain, twins = (_read(path) for path in files.values())
        _pytest(folder, _only_twins(plain, twins), twins=True, results=files["twins"])
    else:
        for kind, path in files.items():
            path.unlink(missing_ok=True)
            _pytest(folder, _test_files(folder), twins=kind == "twins", results=path)
    return _compare(*(_read(path) for path in files.values()))


def _fetch(folder: Path) -> None:
    """The tests of the installed version, from its source distribution."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = f"transformer-lens=={version('transformer-lens')}"
    with replaced_folder(folder) as scratch, TemporaryDirectory() as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformer-lens"]
        subprocess.run([*pip, "--dest", downloads, wanted], check=True)
        with tarfile.open(next(Path(downloads).glob("*.tar.gz"))) as archive:
            members = [member for member in archive if "/tests/" in member.name]
            for member in members:
                member.name = member.name.split("/", 1)[1]
            archive.extractall(scratch, members, filter="data")


def _test_files(folder: Path) -> list[str]:
    names = sorted(str(path.relative_to(folder)) for path in (folder / "tests").rglob("test_*.py"))
    return [name for name in names if not ELSEWHERE.search(name) and MAKES_BRIDGES.search((folder / name).read_text())]


def _pytest(folder: Path, tests: list[str], *, twins: bool, results: Path | None) -> int:
    """Run tests in a process of their own; without a file for the results, pytest's report is shown."""
    command = [sys.executable, "-m", "pytest", "-p", "twins_plugin", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", str(folder), "-o", f"pythonpath={folder}", "--continue-on-collection-errors"]
    command += ["--tb=short", *([] if results is None else ["-q", "--no-summary", "--disable-warnings"])]
    environment = os.environ | {
        "HF_HOME": str(hub.build()),
        "HF_HUB_OFFLINE": "1",
        # TransformerLens installs torchvision, and another torch with it, where it boots a model that sees.
        "PIP_NO_INDEX": "1",
        "UV_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "ALLHEADS_PEERS_TWINS": str(int(twins)),
        "ALLHEADS_PEERS_RESULTS": str(results or os.devnull),
    }
    done = subprocess.run([*command, *tests], cwd=folder, env=environment, check=False).returncode
    if done not in (pytest_passed := (0, 1)):
        raise SystemExit(f"pytest ended with {done}, where {pytest_passed} means that it ran the tests")
    return done


def _read(path: Path) -> Results:
    """The last result of every test in the files that make bridges: some keep one for later tests, in many ways."""
    records = {record["test"]: record for record in map(json.loads, path.read_text().splitlines())}
    files = {name.split("::")[0] for name, record in records.items() if record["bridges"]}
    return {name: record for name, record in records.items() if name.split("::")[0] in files}


def _only_twins(plain: Results, twins: Results) -> list[str]:
    return [
        name
        for name, record in twins.items()
        if record["outcome"] != "passed" and plain.get(name, record)["outcome"] == "passed"
    ]


def _compare(plain: Results, twins: Results) -> int:
    print("\n| tests of the files that make bridges | passed | failed | skipped |\n| --- | --- | --- | --- |")
    for title, results in (("plain bridges", plain), ("twins", twins)):
        counts = Counter(record["outcome"] for record in results.values())
        print(f"| {title} | {counts['passed']} | {counts['failed']} | {counts['skipped']} |")
    groups = tomllib.loads((HERE / "accepted.toml").read_text())["accepted"]
    only = _only_twins(plain, twins)
    found = {name: next((group["reason"] for group in groups if _belongs(twins[name], group)), None) for name in only}
    counts = Counter(found.values())
    print(f"\n{len(only)} pass on plain bridges only:\n")
    for group in groups:
        print(f"{counts[group['reason']]:5d}  {group['reason']}")
    wrong = [f"NOT ACCEPTED  {name}\n{_first_line(twins[name])}" for name, reason in found.items() if reason is None]
    wrong += [f"ACCEPTED, BUT NOTHING FAILS SO  {each['reason']}" for each in groups if not counts[each["reason"]]]
    passed = [record for name, record in twins.items() if name not in found and record["outcome"] == "passed"]
    wrong += [
        f"ACCEPTED, BUT PASSES  {record['test']}"
        for record in passed
        if any("tests" in group and _belongs(record, group) for group in groups)
    ]
    print("\n".join(["", *wrong]))
    return int(bool(wrong))


def _belongs(record: dict[str, Any], group: dict[str, Any]) -> bool:
    """Is a test of this name, or one that failed with this error, in the group?"""
    names = any(_matches(name, record["test"]) for name in group.get("tests", ["*"]))
    return names and _matches(f"*{group.get('error', '')}*", record["message"])


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text, re.DOTALL) is not None


def _first_line(record: dict[str, Any]) -> str:
    return "              " + next(iter(record["message"].splitlines()), "")[:200]


if __name__ == "__main__":
    sys.exit(main())
