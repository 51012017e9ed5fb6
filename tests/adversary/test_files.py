"""A fixed selection of damaged files: each is answered rightly or refused, in time."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from tests.adversary import files

from allheads.corpus import checkpoint

COUNTS = {"sweep": 24, "pure": 24, "pure streams": 16, "pure experts": 16, "twin": 26}
COUNTS |= {"index": 13, "gguf": 12, "graph": 28, "unit": 21, "copy": 22}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLHEADS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield files.formats(tmp_path_factory.mktemp("formats"))


@pytest.mark.parametrize("name", COUNTS)
def test_damaged_files_are_answered(made, name, tmp_path):
    said = list(files.attempts(name, made[name], COUNTS[name], 1, tmp_path))
    assert [attempt for attempt in said if attempt[2] not in ("right", "refused")] == []
    assert name == "copy" or "refused" in {answer for _, _, answer in said}  # a damaged copy is made again


def test_a_reader_that_looks_at_no_checksum_is_found_out(made, tmp_path, monkeypatch):
    """Else this would be a test that cannot fail."""
    with safe_open(made["sweep"].path, "pt") as file:
        digests = json.loads(file.metadata()[checkpoint.KEY])["sha256"]
    monkeypatch.setattr(checkpoint, "unsealed", lambda content: content)
    monkeypatch.setattr(checkpoint, "tensor_digest", lambda name, tensor: digests[name])
    said = list(files.attempts("sweep", made["sweep"], 40, 1, tmp_path))
    assert "WRONG" in {answer for _, _, answer in said}


@pytest.mark.parametrize("failure", [MemoryError(), RecursionError("deep"), KeyError("x"), ValueError("x")])
def test_other_errors_are_found_out(made, tmp_path, failure):
    def read(path):
        raise failure

    assert files.answer(made["sweep"], made["sweep"].path, "", True) == "right"
    broken = files.Format(made["sweep"].path, read, {})
    assert files.answer(broken, broken.path, "", True) not in ("right", "refused")
