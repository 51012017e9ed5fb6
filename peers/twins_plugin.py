"""A pytest plugin that gives tests written for bridges the twin of every bridge they make.

`ALLHEADS_PEERS_TWINS=1` puts the twins in; without it the plugin only notes which tests make bridges. Every test has
a time limit, and its outcome is written to `ALLHEADS_PEERS_RESULTS` at once, one line of JSON a test: a crash loses
nothing.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import allheads as ah

# After allheads, whose own names for these stay what they are.
from transformer_lens.model_bridge import TransformerBridge  # isort: skip

#: Seconds a test may take, with the making of what it needs.
LIMIT = 180
#: What makes bridges: functions of TransformerLens, and methods of the class.
MAKERS = ("boot", "build_bridge_from_module")
STATIC_MAKERS = ("boot_transformers", "boot_native")

_twins = os.environ.get("ALLHEADS_PEERS_TWINS") == "1"
_results = Path(os.environ["ALLHEADS_PEERS_RESULTS"])
_depth = 0
_made = 0


def _maker(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose outermost call returns a twin."""

    @functools.wraps(make)
    def made(*arguments: Any, **options: Any) -> Any:
        global _depth, _made
        outermost = _depth == 0
        _depth += 1
        try:
            bridge = make(*arguments, **options)
            if not outermost or not isinstance(bridge, TransformerBridge):
                return bridge
            _made += 1
            return ah.convert(bridge) if _twins else bridge
        finally:
            _depth -= 1

    return made


def pytest_configure() -> None:
    torch.set_num_threads(1)
    for name in STATIC_MAKERS:
        setattr(TransformerBridge, name, staticmethod(_maker(getattr(TransformerBridge, name))))
    for path, module in list(sys.modules.items()):
        if path.startswith("transformer_lens.model_bridge"):
            for name in MAKERS:
                if callable(make := vars(module).get(name)):
                    setattr(module, name, _maker(make))


def pytest_collection_finish() -> None:
    # What was imported stays: TransformerLens' tests collect garbage after every class.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"more than {LIMIT} seconds")

    item.stash[_BEFORE] = (_made, time.monotonic())
    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


_BEFORE = pytest.StashKey[tuple[int, float]]()
_RECORD = pytest.StashKey[dict[str, Any]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    record = item.stash.setdefault(_RECORD, {"test": item.nodeid, "outcome": "passed", "message": ""})
    if report.failed:
        record["outcome"] = "failed"
        error = call.excinfo
        record["message"] = f"{error.typename}: {error.value}"[:2000] if error else str(report.longrepr)[-2000:]
        record["trace"] = str(report.longrepr)[-3000:]
    elif report.skipped and record["outcome"] == "passed":
        record["outcome"] = "skipped"
        record["message"] = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
    if call.when == "teardown":
        before, start = item.stash[_BEFORE]
        record["bridges"] = _made - before
        record["seconds"] = round(time.monotonic() - start, 2)
        with _results.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return report
