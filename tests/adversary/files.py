"""Files damaged in every way, and how each is answered: rightly or with one `AllHeadsError`, within 5 s and 1 GB.

    python -m tests.adversary.files --count 8000 --seed 0

prints attempts, answers and failures by format and kind of damage. *Right* is bit for bit what the whole file gives.
Where a format has no checksums (a configuration, GGUF) or somebody has sealed a forgery, any answer will do that is not
another error.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.models.test_gguf import write_gguf
from transformers import LlamaConfig, LlamaForCausalLM

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.corpus import checkpoint
from allheads.disk import tensor_digest
from allheads.models import pretrained
from allheads.models.cache import MANIFEST, cached_folder
from allheads.pure import runner
from allheads.untrusted import sealed
from allheads_labs import zoo
from allheads_labs.kit import results
from allheads_labs.kit.lab import Lab, Result, Unit

SECONDS, BYTES = 5.0, 2**30
Damage = Callable[[bytes, random.Random], bytes]
#: Stands for lists in lists, which Python would not write.
DEEP = "nested a thousand times"
HOSTILE = [
    None, True, 0, -1, -3, 1, 7, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, -1e308, "", "x" * 10_000, "nul\0",
    "../../etc/passwd", "/etc/passwd", "weights.bin", "org/name", "\ud800", [], [[]], {}, {"a": 1}, [0] * 100_000, DEEP,
]  # fmt: skip


# --- damages


def flipped(data: bytes, rng: random.Random) -> bytes:
    place, changed = rng.randrange(8 * len(data)), bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def flipped_early(data: bytes, rng: random.Random) -> bytes:
    return flipped(data[:2048], rng) + data[2048:]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def overwritten(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice([1, 4, 8, 100])
    filling = rng.choice([b"\0", b"\xff", b"[", b'"', rng.randbytes(1)])
    return data[:start] + (filling * length)[: len(data) - start] + data[start + length :]


def inserted(data: bytes, rng: random.Random) -> bytes:
    start = rng.choice([0, 8, rng.randrange(len(data)), len(data)])
    return data[:start] + rng.choice([b"\0", b"[" * 5000, b" " * 70, rng.randbytes(9)]) + data[start:]


def number_overwritten(data: bytes, rng: random.Random) -> bytes:
    """Somewhere among the first fields, 4 or 8 bytes become a number."""
    start, size = rng.randrange(min(len(data), 1500)), rng.choice([4, 8])
    number = rng.choice([0, 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]) % 2 ** (8 * size)
    return data[:start] + number.to_bytes(size, "little") + data[start + size :]


BYTEWISE: dict[str, Damage] = {
    "bit flipped": flipped,
    "bit flipped early": flipped_early,
    "cut": cut,
    "overwritten": overwritten,
    "inserted": inserted,
}


def edited(content: Any, rng: random.Random) -> Any:
    """A copy of JSON with one value replaced, removed or renamed."""
    content = copy.deepcopy(content)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            visit(node[key])

    visit(content)
    node, key = rng.choice(places[:20] if rng.random() < 0.3 else places)
    action = rng.random()
    if action < 0.1:
        del node[key]
    elif action < 0.15 and isinstance(node, dict):
        node[rng.choice(["", "more", "\ud800", "../x"])] = node.pop(key)
    elif action < 0.2 and isinstance(node, list):
        node.append(node[key])
    else:
        node[key] = rng.choice(HOSTILE)
    return content


def as_text(content: Any) -> bytes:
    return json.dumps(content).replace(json.dumps(DEEP), "[" * 1000 + "]" * 1000).encode()


def json_edited(data: bytes, rng: random.Random) -> bytes:
    return as_text(edited(json.loads(data), rng))


def json_forged(data: bytes, rng: random.Random) -> bytes:
    """Edited and sealed again."""
    content = json.loads(data)
    del content["checksum"]
    changed = edited(content, rng)
    return as_text(sealed(changed) if isinstance(changed, dict) else changed)


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _whole(header: Any, body: bytes) -> bytes:
    text = as_text(header)
    return len(text).to_bytes(8, "little") + text + body


def header_edited(data: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file: names, dtypes, shapes, offsets."""
    header, body = _parts(data)
    return _whole(edited(header, rng), body)


def metadata_edited(key: str, seal: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Damage:
    """The JSON in a safetensors file's metadata; sealed again if there is a ``seal``."""

    def damage(data: bytes, rng: random.Random) -> bytes:
        header, body = _parts(data)
        content = json.loads(header["__metadata__"][key])
        if seal is not None:
            del content["checksum"]
        changed = edited(content, rng)
        if seal is not None and isinstance(changed, dict):
            changed = seal(changed)
        header["__metadata__"][key] = as_text(changed).decode()
        return _whole(header, body)

    return damage


def _seal_pure(header: dict[str, Any]) -> dict[str, Any]:
    return header | {"checksum": zlib.crc32(json.dumps(header).encode())}


# --- formats


@dataclass(frozen=True)
class Format:
    """A whole file or folder, how it is read, and how which of its files are damaged; ``free`` damages may pass."""

    path: Path
    read: Callable[[Path], str]
    damages: dict[str, tuple[str, Damage]]
    free: frozenset[str] = field(default_factory=frozenset)


def _digest(*parts: Any) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.numpy().tobytes() if isinstance(part, torch.Tensor) else repr(part).encode())
    return whole.hexdigest()


def formats(folder: Path) -> dict[str, Format]:
    """Every format, from one small model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=32, **sizes)).eval()
    model.save_pretrained(folder / "model", max_shard_size="4KB")
    source = ah.load(folder / "model")
    twin, ids = ah.convert(source), torch.arange(12)[None]
    texts = [torch.arange(20) % 32, torch.arange(9)]
    ah.corpus.sweep(twin, texts, ah.corpus.SweepSettings(context=8, batch=2, every=1), out=folder / "sweep.safetensors")
    ah.pure.export(twin, folder / "pure.safetensors")
    for name, family in PURE.items():
        ah.pure.export(ah.convert(zoo.build(family).bridge), folder / f"{name}.safetensors")
    ah.graph(twin, ids, (3, 5), budget=6).save(folder / "graph.json")
    with twin.banks[1].edit() as heads:
        heads.W_O[3] *= 2.0
    ah.save(twin, folder / "twin")
    write_gguf(folder / "tiny.gguf")
    kept = _unit(folder / "unit")
    with _cache(folder / "copy"):
        cached_folder("tiny", lambda made: (made / "weights").write_text("weights"))

    def logits(bridge: Any) -> str:
        with torch.no_grad():
            return _digest(bridge(ids))

    def read_sweep(path: Path) -> str:
        found = ah.corpus.Sweep.load(path)
        tensors = [tensor_digest(*item) for item in found.statistics.tensors().items()]
        found.neurons(), found.heads()
        return _digest(found.settings, found.done, found.groups, *tensors)

    def bytewise(file: str) -> dict[str, tuple[str, Damage]]:
        return {f"{file or 'file'}: {name}": (file, damage) for name, damage in BYTEWISE.items()}

    def read_graph(path: Path) -> str:
        found = AttributionGraph.load(path)
        ah.plots.graph(found)
        return _digest(found.to_dict())

    def read_copy(path: Path) -> str:
        with _cache(path):
            found = cached_folder("tiny", lambda made: (made / "weights").write_text("weights"))
            return _digest((found / "weights").read_bytes())

    index, gguf = "model.safetensors.index.json", {**bytewise(""), "file: number": ("", number_overwritten)}
    return {
        "sweep": Format(
            folder / "sweep.safetensors",
            read_sweep,
            {
                **bytewise(""),
                "header edited": ("", header_edited),
                "settings edited": ("", metadata_edited(checkpoint.KEY)),
                "settings forged": ("", metadata_edited(checkpoint.KEY, sealed)),
            },
            frozenset({"settings forged"}),
        ),
        "pure": _pure(folder / "pure.safetensors", ids),
        "pure streams": _pure(folder / "pure streams.safetensors", ids, ids + 3),
        "pure experts": _pure(folder / "pure experts.safetensors", ids),
        "twin": Format(
            folder / "twin",
            lambda path: logits(ah.load(path, source=source)),
            {
                **bytewise("twin.json"),
                **bytewise("twin.safetensors"),
                "twin.safetensors: header edited": ("twin.safetensors", header_edited),
                "twin.json: edited": ("twin.json", json_edited),
                "twin.json: forged": ("twin.json", json_forged),
            },
            frozenset({"twin.json: forged"}),
        ),
        "index": Format(
            folder / "model",
            lambda path: logits(pretrained.load(path)),
            {
                **bytewise(index),
                f"{index}: edited": (index, json_edited),
                **bytewise("config.json"),
                "config.json: edited": ("config.json", json_edited),
            },
            frozenset({f"config.json: {name}" for name in (*BYTEWISE, "edited")}),
        ),
        "gguf": Format(folder / "tiny.gguf", lambda path: logits(pretrained.load(path)), gguf, frozenset(gguf)),
        "graph": Format(
            folder / "graph.json",
            read_graph,
            {**bytewise(""), "edited": ("", json_edited), "forged": ("", json_forged)},
            frozenset({"forged"}),
        ),
        "unit": Format(
            folder / "unit",
            _read_unit,
            {**bytewise(kept), "edited": (kept, json_edited), "forged": (kept, unit_forged)},
            frozenset({"forged"}),
        ),
        "copy": Format(
            folder / "copy",
            read_copy,
            {**bytewise(f"tiny/{MANIFEST}"), f"{MANIFEST}: edited": (f"tiny/{MANIFEST}", json_edited)}
            | bytewise("tiny/weights"),
        ),
    }


def _pure(path: Path, *ids: torch.Tensor) -> Format:
    return Format(
        path,
        lambda path: _digest(ah.pure.run(path, *ids)),
        {
            **{f"file: {name}": ("", damage) for name, damage in BYTEWISE.items()},
            "header edited": ("", header_edited),
            "model edited": ("", metadata_edited(runner.FORMAT)),
            "model forged": ("", metadata_edited(runner.FORMAT, _seal_pure)),
        },
        frozenset({"model forged"}),
    )


#: Families with what the first pure file has not: two streams and tables by distance, routers.
PURE = {"pure streams": "T5ForConditionalGeneration", "pure experts": "MixtralForCausalLM"}
#: A lab that nobody runs, and its unit.
_LAB = Lab("adversary", 1, lambda quick, seeds: [], lambda unit: {}, lambda found: {})
_UNIT = Unit({"width": 3}, 0, 1.0)


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("ALLHEADS_CACHE", "")
    os.environ["ALLHEADS_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ["ALLHEADS_CACHE"] = before


def _unit(folder: Path) -> str:
    """Keep what a unit of a lab has found, and tell where."""
    with _cache(folder):
        results.keep(_LAB, _UNIT, Result(_UNIT.setting, 0, {"loss": [0.5, 0.25], "name": "narrow"}, 1.5))
        return str(results.path_of(_LAB, _UNIT).relative_to(folder))


def _read_unit(folder: Path) -> str:
    """What is damaged is done again: here that is a refusal."""
    with _cache(folder), redirect_stderr(io.StringIO()):
        found = results.fetch(_LAB, _UNIT)
    if found is None:
        raise ah.AllHeadsError("a unit that is kept", "a damaged one", "Do it again.")
    return _digest(found)


def unit_forged(data: bytes, rng: random.Random) -> bytes:
    """Edited, with its checksum."""
    return results.with_checksum(as_text(edited(json.loads(data)["result"], rng)).decode())


# --- attempts


@contextmanager
def bounded() -> Iterator[None]:
    """Memory may grow by `BYTES` at most, and nothing takes for ever."""

    def late(*_: object) -> None:
        raise TimeoutError("two minutes")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    alarm = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        resource.setrlimit(resource.RLIMIT_AS, before)


def answer(kind: Format, path: Path, whole: str, may_differ: bool) -> str:
    """``right`` or ``refused``, or what else it was."""
    started = time.process_time()
    try:
        with bounded():
            said = "right" if kind.read(path) == whole or may_differ else "WRONG"
    except ah.AllHeadsError as error:
        cause = str(error.__cause__)
        said = "MEMORY" if isinstance(error.__cause__, MemoryError) or "allocate memory" in cause else "refused"
    except ValueError as error:  # the runner knows no AllHeadsError
        said = "refused" if str(error).startswith("Expected a file written by allheads.pure.export") else repr(error)
    except (Exception, RecursionError) as error:
        said = repr(error)[:150]
    seconds = time.process_time() - started
    return said if seconds <= SECONDS else f"SLOW ({seconds:.0f} s), {said}"


def attempts(name: str, kind: Format, count: int, seed: int, where: Path) -> Iterator[tuple[str, int, str]]:
    """Damage, number and answer of so many attempts; the same ones for the same seed."""
    whole = kind.read(kind.path)
    for number in range(count):
        rng = random.Random(f"{name} {seed} {number}")
        damage = sorted(kind.damages)[number % len(kind.damages)]
        file, change = kind.damages[damage]
        copied = where / kind.path.name
        if kind.path.is_dir():
            shutil.copytree(kind.path, copied)
        else:
            shutil.copy(kind.path, copied)
        victim = copied / file if file else copied
        victim.write_bytes(change(victim.read_bytes(), rng))
        yield damage, number, answer(kind, copied, whole, damage in kind.free)
        shutil.rmtree(copied) if copied.is_dir() else copied.unlink()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=8000, help="attempts, over all formats")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", nargs="*", help="formats; all of them if left out")
    chosen = options.parse_args()
    logging.disable()  # that copies in the cache are damaged
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ALLHEADS_CACHE"] = f"{folder}/cache"
        scratch = Path(folder, "scratch")
        scratch.mkdir()
        made = {name: kind for name, kind in formats(Path(folder)).items() if not chosen.only or name in chosen.only}
        for name, kind in made.items():
            table: Counter[tuple[str, str]] = Counter()
            for damage, number, said in attempts(name, kind, chosen.count // len(made), chosen.seed, scratch):
                fine = said in ("right", "refused")
                table[damage, said if fine else "failed"] += 1
                if not fine:
                    failures += 1
                    print(f"{name}, {damage}, number {number}: {said}", flush=True)
                shutil.rmtree(f"{folder}/cache", ignore_errors=True)
            for damage in sorted(kind.damages):
                figures = [table[damage, outcome] for outcome in ("right", "refused", "failed")]
                print(f"| {name} | {damage} | {sum(figures)} | " + " | ".join(map(str, figures)) + " |", flush=True)
    print(f"{failures} failures")
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main()))
