"""The README's lines run as they are printed, in a fresh interpreter, and say what it says they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
WORDS = (
    *("**bias token**", "**gate**", "**Frozen**", "**rule**", "`slots` and `closed`"),
    *("**effect**", "**Certified**", "**domain**"),
)


def test_it_is_short_and_explains_its_words_first():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    words = text.partition("[start:words]")[2].partition("[end:words]")[0]
    assert all(word in words for word in WORDS)
    assert text.index("[end:words]") < text.index("```python")
    for picture in re.findall(r"\]\((docs/img/[^)]*)\)", text):
        assert README.parent.joinpath(picture).stat().st_size < 200_000
    assert len(re.findall(r"!\[", text)) == 3


def test_the_lines_run_as_printed(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    file = tmp_path / "readme.py"
    file.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run([sys.executable, file.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "source and twin are the same" in done.stdout
    assert "6.1196" in "".join(f"{float(number):.4f} " for number in re.findall(r"\d+\.\d{5,}", done.stdout))
    assert "parts; frozen twin: relative error at most" in done.stdout
    assert (tmp_path / "explore.html").is_file()
    assert (tmp_path / "my-twin" / "twin.json").is_file()
