"""The README's lines run as they are printed, one block after the other, and say what it says they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_lines_run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "source and twin are the same" in printed
    assert "100 parts; frozen twin: relative error at most" in printed
    found = names["found"]
    assert f"{found.total:.4f}" == f"{found.target_value:.4f}" == "6.1196"
    assert (tmp_path / "explore.html").is_file()
    assert found.embeddings.sum() != pytest.approx(0.0)
