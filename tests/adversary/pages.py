"""Every page and view with hostile tokens, names, labels and prompts, read by a parser and opened in a browser.

    python -m tests.adversary.pages --count 204 --seed 0

prints attempts and failures by kind of page. Each page is made twice, of hostile words and of calm ones: both have the
same elements with the same attributes, in the file and in the browser, where everything is hovered, clicked, searched
and linked to. Nothing runs, nothing is asked for, the console is silent, and words are shown as they are.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import torch
from plotly.offline import get_plotlyjs
from tests.adversary import hostile
from tests.plots.browser import Browser, chromium

import allheads as ah
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.errors import printable
from allheads.plots.token_names import visible
from allheads.untrusted import sealed, unsealed
from allheads_labs import zoo

#: Positions of a prompt, and seconds after which a page hangs, on a machine that is busy with much else.
LENGTH, SECONDS = 9, 600.0
IDS = torch.arange(3, 3 + LENGTH)[None]


_CALM = "calm model", "calm label"


@dataclass(frozen=True)
class Names:
    """What a page is made of that others chose: words of the vocabulary, the model's name, and one word more."""

    vocabulary: list[str]
    model: str
    label: str

    @classmethod
    def hostile(cls, rng: random.Random) -> Names:
        return cls(hostile.words(96, rng), *hostile.words(2, rng))

    @classmethod
    def calm(cls) -> Names:
        return cls([f"w{number}" for number in range(96)], *_CALM)

    @property
    def tokens(self) -> list[str]:
        """Those of the prompt."""
        return [self.vocabulary[number] for number in IDS[0].tolist()]

    def for_page(self, kind: str) -> Names:
        """No file has halves of letters: such a graph is refused."""
        if kind != "graph from a file":
            return self
        whole = [word.encode(errors="replace").decode() for word in (*self.vocabulary, self.model, self.label)]
        return Names(whole[:-2], *whole[-2:])


class _Tokenizer:
    """It only names tokens; a bridge takes no other one later, so that its names are changed."""

    vocabulary: ClassVar[list[str]] = []

    def decode(self, ids: Any, **_: Any) -> str:
        return self.vocabulary[int(ids[0])]

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return [self.decode(row) for row in rows]


@cache
def _pair() -> tuple[Any, ah.TwinBridge, ah.TwinBridge]:
    source = zoo.build("LlamaForCausalLM", seed=3).bridge
    twin, crossed = ah.convert(source), ah.convert(zoo.build("T5ForConditionalGeneration", seed=3).bridge)
    twin.tokenizer = crossed.tokenizer = _Tokenizer()
    return source, twin, crossed


@cache
def _report() -> Any:
    source, twin, _ = _pair()
    return ah.verify(source, twin, IDS)


def _named(names: Names) -> ah.TwinBridge:
    """The twin of a decoder, with these names."""
    _Tokenizer.vocabulary, twin = names.vocabulary, _pair()[1]
    twin.cfg.model_name = names.model
    return twin


def _crossed(names: Names) -> ah.plots.View:
    _Tokenizer.vocabulary = names.vocabulary
    return ah.plots.attention(_pair()[2], IDS, decoder=IDS)


def _given(names: Names) -> Any:
    pattern = torch.rand(2, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)).softmax(-1)
    return ah.plots.attention([pattern, pattern], names.tokens)


def _flows(names: Names) -> AttributionGraph:
    return ah.graph(_named(names), IDS, (3, 5), budget=6)


def _forged(names: Names, path: Path) -> None:
    """A graph that was read from a file in which every text that may be anything is somebody else's, then the rest."""
    file = _flows(Names.calm()).save(path.parent / "graph.json")
    facts = unsealed(json.loads(file.read_text()))
    facts |= {"target": names.label, "rule": names.model, "tokens": names.tokens}
    file.write_text(json.dumps(sealed(facts)))
    ah.plots.graph(AttributionGraph.load(file)).save(path)
    for field in ("name", "label", "kind"):
        facts["nodes"][2][field] = names.label
        file.write_text(json.dumps(sealed(facts)))
        try:
            AttributionGraph.load(file)
        except ah.AllHeadsError:
            continue
        raise AssertionError(f"a node whose {field} is {names.label!r}")


def _attribution_page(names: Names, path: Path) -> None:
    twin = _named(names)
    target = ah.attribute(twin, IDS, (3, 5)).target
    found = ah.attribute(twin, IDS, replace(target, name=names.label))
    ah.plots.write_attribution(found, found.graph(budget=6), path)


def _report_page(names: Names, path: Path) -> None:
    twin = _named(names)
    report = replace(_report(), model=names.model, differences=[names.label], max_logit_error=7.0)
    ah.plots.write_report(twin, report, IDS, path)


def _framed(names: Names, path: Path) -> None:
    """As notebooks show a view."""
    view = replace(ah.plots.attention(_named(names), IDS), title=names.label)
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><title>notebook</title>{view._repr_html_()}', "utf-8")


def _saved(make: Callable[[Names], Any]) -> Callable[[Names, Path], None]:
    return lambda names, path: make(names).save(path)


def _attributed(by: str) -> Callable[[Names, Path], None]:
    def write(names: Names, path: Path) -> None:
        twin = _named(names)
        ah.plots.attribution(ah.attribute(twin, IDS, (3, 5)), by).save(path)

    return write


#: What writes each kind of page.
KINDS: dict[str, Callable[[Names, Path], Any]] = {
    "attention": _saved(lambda names: ah.plots.attention(_named(names), IDS)),
    "attention of neurons": _saved(lambda names: ah.plots.attention(_named(names), IDS, heads=["L0.N3", "L1.A1"])),
    "cross-attention": _saved(_crossed),
    "attention of tensors": _saved(_given),
    "graph": _saved(lambda names: ah.plots.graph(_flows(names))),
    "graph from a file": _forged,
    "explorer": _saved(lambda names: ah.plots.explore(_named(names), IDS, budget=6)),
    "report": _report_page,
    "attribution": _attribution_page,
    "view in a notebook": _framed,
    "gates": _saved(lambda names: ah.plots.gates(_named(names), IDS)),
    "gates of a layer": _saved(lambda names: ah.plots.gates(_named(names), IDS, 1)),
    "residual stream": _saved(lambda names: ah.plots.residual(_named(names), IDS)),
    **{f"attribution by {by}": _attributed(by) for by in ("token", "head", "layer", "waterfall")},
}


# --- as a file


class _Elements(HTMLParser):
    """The elements of a page with the names of their attributes, its scripts, and its title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.scripts: list[str] = []
        self.title, self._inside = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.elements.append((tag, *(name for name, _ in attrs)))
        if tag == "script":
            self.scripts.append("data" if ("type", "application/json") in attrs else "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        self.elements.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", data))

    def unknown_decl(self, data: str) -> None:
        self.elements.append(("declaration", data))

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self.scripts[-1] != "data":
            self.scripts[-1] += data
        if self._inside == "title":
            self.title += data


def _moves_cursors(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in "\n\t"


def file_faults(path: Path, calm: Path) -> Iterator[str]:
    """What a parser finds in a page that is not in a calm one."""
    # What is written as bytes is read as bytes: a lone surrogate is not UTF-8.
    plotly = get_plotlyjs()
    text, other = (file.read_bytes().decode("utf-8").replace(plotly, "") for file in (path, calm))
    found, expected = _Elements(text), _Elements(other)
    if found.elements != expected.elements:
        strange = Counter(found.elements) - Counter(expected.elements)
        yield f"other elements: {[*strange][:3]}"
    if found.scripts != expected.scripts:
        yield "another script"
    if control := sorted({letter for letter in text if _moves_cursors(letter)}):
        yield f"control characters {control[:5]} in the file"


# --- in a browser

_LOOK = """() => {
  const frames = [document, ...[...document.querySelectorAll("iframe")].map((frame) => frame.contentDocument)];
  const all = frames.flatMap((each) => [...each.querySelectorAll("*")]);
  const names = (each) => [...each.attributes].map((attribute) => `${each.localName} ${attribute.name}`);
  return {
    ran: frames.some((each) => each.defaultView.h !== undefined) || ({}).h !== undefined,
    title: document.title,
    elements: [...new Set(all.flatMap((each) => [each.localName, ...names(each)]))],
    tokens: frames.flatMap((each) => [...each.querySelectorAll(".strip [data-at], .text .token, .flow .axis title")])
      .filter((each) => !each.closest(".card")).map((each) => each.textContent),
    ticks: [...document.querySelectorAll(".xtick text, .legendtext, .hovertext .name")].map((each) => each.textContent),
    text: frames.map((each) => each.body.innerText.slice(0, 400000)).join("\\n"),
  };
}"""

_SIZE = """() => [document, ...[...document.querySelectorAll("iframe")].map((frame) => frame.contentDocument)]
  .reduce((size, each) => size + each.documentElement.innerHTML.length, 0)"""

_TOUCH = """async (word) => {
  const frames = [document, ...[...document.querySelectorAll("iframe")].map((frame) => frame.contentDocument)];
  const some = (list) => [...list].filter((_, at) => list.length < 40 || at % Math.ceil(list.length / 40) === 0);
  const shown = (list) => some([...list].filter((item) => item.checkVisibility()));
  const wait = () => new Promise((done) => setTimeout(done, 20));
  // Everything that was there for a moment: what is there at the end is a matter of timing.
  const seen = new Set();
  const note = (each) => {
    if (each.nodeType !== 1) return;
    for (const one of [each, ...each.querySelectorAll("*")]) {
      seen.add(one.localName);
      for (const attribute of one.attributes) seen.add(`${one.localName} ${attribute.name}`);
    }
  };
  const observers = frames.map((each) => {
    const observer = new each.defaultView.MutationObserver((changes) =>
      changes.forEach((change) => (change.type === "attributes" ? [change.target] : change.addedNodes).forEach(note)));
    observer.observe(each, { subtree: true, childList: true, attributes: true });
    return observer;
  });
  for (const each of frames) {
    const { MouseEvent, KeyboardEvent, Event } = each.defaultView;
    for (const select of shown(each.querySelectorAll("select"))) {
      for (const option of some(select.options)) {
        select.value = option.value;
        select.dispatchEvent(new Event("change", { bubbles: true }));
      }
      select.selectedIndex = 0;
      select.dispatchEvent(new Event("change", { bubbles: true }));
    }
    const items = each.querySelectorAll("[data-at], [data-name], [role=option], button, .ranked tr, canvas");
    for (const item of shown(items)) {
      for (const name of ["pointerover", "mouseover", "mouseenter", "pointermove", "mousemove", "click"]) {
        const { left, top, width, height } = item.getBoundingClientRect();
        const middle = { clientX: left + width / 2, clientY: top + height / 2 };
        item.dispatchEvent(new MouseEvent(name, { bubbles: true, ...middle }));
      }
    }
    await wait();
    for (const search of shown(each.querySelectorAll("input[type=search]"))) {
      search.value = word;
      search.dispatchEvent(new Event("input", { bubbles: true }));
      search.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
      search.value = "";
      search.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const { z } = plot.data[0];
    for (const at of [0, 1]) {
      Plotly.Fx.hover(plot, [{ curveNumber: 0, pointNumber: z ? [0, at] : at }]);
      await new Promise((done) => setTimeout(done, 60)); // it takes no two at once
    }
  }
  await wait();
  observers.forEach((observer) => observer.disconnect());
  return [...seen];
}"""


def browser_faults(browser: Browser, path: Path, calm: dict[str, Any], names: Names, word: str) -> Iterator[str]:
    """What a browser does with a page, and shows, that it should not."""
    started = time.monotonic()
    found = look(browser, path, word)
    if (seconds := time.monotonic() - started) > SECONDS:
        yield f"{seconds:.0f} s"
    if found["ran"]:
        yield "a script ran"
    if found["said"] or found["asked"]:
        yield f"said {found['said'][:2]}, asked for {found['asked'][:2]}"
    if strange := sorted(set(found["elements"]) - set(calm["elements"])):
        yield f"other elements: {strange[:3]}"
    tokens = {visible(word) for word in names.tokens}
    placed = {f"{at} {visible(token)}" for at, token in enumerate(names.tokens)}
    if lost := set(found["tokens"]) - tokens - placed - set(calm["tokens"]):
        yield f"tokens that are not there: {[*lost][:2]}"
    if len(found["tokens"]) != len(calm["tokens"]):
        yield f"{len(found['tokens'])} tokens, where there are {len(calm['tokens'])}"
    target = f"{names.vocabulary[3]!r} - {names.vocabulary[5]!r}"
    for tick in found["ticks"]:
        if tick not in placed and tick not in calm["ticks"] and tick not in (target, printable(names.label)):
            yield f"a name that is not there: {tick!r}"
    for calm_word, own in zip(_CALM, (names.model, names.label), strict=True):
        wanted, text = (re.sub(r"\s+", "", each) for each in (printable(own), found["title"] + found["text"]))
        if calm_word in calm["title"] + calm["text"] and wanted[:200] not in text:
            yield f"{calm_word} {wanted[:40]!r} is not shown"


def look(browser: Browser, path: Path, word: str) -> dict[str, Any]:
    """Open a page at a link, touch everything, and tell what is there before and after, and what it said."""
    with browser.open(path, fragment=quote(word, errors="replace") if len(word) % 2 else word[:50]) as opened:
        _wait(opened.page)
        before = opened.page.evaluate(_LOOK)
        between = opened.page.evaluate(_TOUCH, word)
        after = opened.page.evaluate(_LOOK)
        return {
            "ran": before["ran"] or after["ran"],
            "title": after["title"],
            "elements": sorted({*before["elements"], *between, *after["elements"]}),
            "tokens": before["tokens"],
            "ticks": [*before["ticks"], *after["ticks"]],
            "text": before["text"],
            "said": opened.said,
            "asked": opened.asked,
        }


def _wait(page: Any) -> None:
    """Until the page no longer changes by itself."""
    size, before = 0, -1
    while size != before:
        page.wait_for_timeout(60)
        size, before = page.evaluate(_SIZE), size


# --- attempts


@dataclass(frozen=True)
class Attempt:
    kind: str
    number: int
    faults: list[str]


class Calm:
    """The calm page of each kind: its file, and what a browser finds there."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self.kept: dict[str, tuple[Path, dict[str, Any]]] = {}

    def __getitem__(self, kind: str) -> tuple[Path, dict[str, Any]]:
        if kind not in self.kept:
            path = self.folder / f"{kind}.html"
            KINDS[kind](Names.calm(), path)
            found = look(self.browser, path, "L0.A1")
            assert not found["said"] and not found["asked"], (kind, found["said"], found["asked"])
            self.kept[kind] = path, found
        return self.kept[kind]


def attempts(browser: Browser, numbers: Iterable[int], seed: int, folder: Path) -> Iterator[Attempt]:
    """Pages by number, each of words of its own; the same ones for the same seed."""
    calm = Calm(browser, folder)
    for number in numbers:
        kind = list(KINDS)[number % len(KINDS)]
        rng = random.Random(f"{kind} {seed} {number}")
        names, word = Names.hostile(rng).for_page(kind), hostile.words(1, rng)[0]
        path = folder / f"{number}.html"
        expected_file, expected = calm[kind]
        try:
            KINDS[kind](names, path)
            faults = [*file_faults(path, expected_file), *browser_faults(browser, path, expected, names, word)]
        except Exception as error:
            faults = [f"{type(error).__name__}: {str(error)[:200]}"]
        path.unlink(missing_ok=True)
        yield Attempt(kind, number, faults)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=204)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    made: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for attempt in attempts(browser, range(chosen.count), chosen.seed, Path(folder)):
            made[attempt.kind] += 1
            failed[attempt.kind] += bool(attempt.faults)
            for fault in attempt.faults:
                print(f"{attempt.kind}, number {attempt.number}: {fault!r}", flush=True)
    print("| page | attempts | failures |\n| --- | --- | --- |")
    for kind in made:
        print(f"| {kind} | {made[kind]} | {failed[kind]} |")
    print(f"| all | {made.total()} | {failed.total()} |")
    return int(bool(failed.total()))


if __name__ == "__main__":
    sys.exit(main())
