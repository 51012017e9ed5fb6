"""A tiny twin whose tokens look like HTML, its report, and the page as a browser would read it."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plotly.offline import get_plotlyjs

import allheads as ah
from allheads.plots.packing import unpack

WORDS = ["</script>", "<!--", "<b>bold</b>", " a & b", "\"'", "$plotly", "\n", "\x00", "x" * 40, "é"]


class Page(HTMLParser):
    """What a test wants to know of a page: its pictures, its dropdowns, and its text without plotly.js."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.own_text = text.replace(get_plotlyjs(), "")
        self.scripts: dict[str, str] = {}
        self.dropdowns: list[list[int]] = []
        self._in_script = ""
        self.feed(text)
        self.pictures = {name: data for name, (_, data) in json.loads(self.scripts["application/json"]).items()}

    def handle_starttag(self, tag, attrs):
        self._in_script = dict(attrs).get("type", "plotly") if tag == "script" else ""
        if tag == "select":
            self.dropdowns.append([])
        if tag == "option":
            self.dropdowns[-1].append(int(dict(attrs)["value"]))

    def handle_endtag(self, tag):
        self._in_script = ""

    def handle_data(self, data):
        if self._in_script:
            self.scripts[self._in_script] = self.scripts.get(self._in_script, "") + data

    def shown(self, plot: str, view: int) -> torch.Tensor:
        """The weights of one view, unpacked as the page's script does it."""
        return torch.tensor(unpack(self.pictures[plot]["views"][view]["z"])).float() / 255

    def array(self, packed: dict[str, str]) -> torch.Tensor:
        """An array as plotly packs it: base64 of the numbers in this dtype."""
        raw = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
        return torch.tensor(raw.reshape([int(size) for size in packed["shape"].split(",")]))


@pytest.fixture(scope="session")
def source(tiny):
    return tiny("llama", seed=3)


@pytest.fixture(scope="session")
def ids():
    return torch.cat([torch.arange(len(WORDS)), torch.randint(96, (13,), generator=torch.Generator().manual_seed(2))])[
        None
    ]


@pytest.fixture(scope="session")
def twin(source):
    """Its tokenizer only names tokens, and names them nastily."""
    made = ah.convert(source)
    made.tokenizer = SimpleNamespace(
        decode=lambda ids: WORDS[ids[0] % len(WORDS)],
        batch_decode=lambda rows, **_: [WORDS[row[0] % len(WORDS)] for row in rows],
    )
    return made


@pytest.fixture(scope="session")
def report(source, twin, ids):
    return ah.verify(source, twin, ids)


@pytest.fixture(scope="session")
def path(twin, report, ids, tmp_path_factory):
    return ah.plots.write_report(twin, report, ids, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="session")
def page(path):
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="session")
def cache(twin, ids):
    """Everything the pictures are made of, straight from the model."""
    names = ("attn.hook_pattern", "mlp.hook_pattern", "mlp.hook_pattern_self", "mlp.hook_post")
    with torch.no_grad():
        return twin.run_with_cache(ids, names_filter=lambda name: name.endswith(names))[1]


@pytest.fixture(scope="session")
def load_page():
    """The page at a path."""
    return lambda path: Page(path.read_text("utf-8"))


@pytest.fixture(scope="session")
def luminance():
    """Relative luminance of a colour [red, green, blue] of 0 to 255, as WCAG defines it."""

    def of(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    return of
