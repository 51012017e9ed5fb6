"""Attention widgets as standalone HTML, all 270 heads of SmolLM2: build, size, first paint, and what they need.

bertviz and circuitsvis have to be installed (``pip install --no-deps bertviz circuitsvis importlib-metadata zipp``),
and Chromium. No network is reached: what a page asks for is answered from ``--cdn FOLDER`` by file name where it is
there (require.min.js, d3.min.js, jquery.min.js), and counted; without it the page stays as it is. Every page is built
in a process of its own, which may take 12 GB and 5 minutes, and opened for 60 seconds at most.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOLS = ("allheads", "bertviz", "circuitsvis")
MEMORY, BUILDING, OPENING = 12 * 2**30, 300, 60
#: What is there once a pattern is drawn.
DRAWN = {
    "allheads": ".pattern canvas[aria-label]",
    "bertviz": "svg #attention line, svg line",
    "circuitsvis": "canvas, img",
}


def html(tool: str, patterns: list, words: list[str]) -> str:
    """The widget's own standalone page."""
    if tool == "allheads":
        import allheads as ah

        return ah.plots.attention(patterns, words).html
    if tool == "bertviz":
        from bertviz import head_view

        return head_view(patterns, words, html_action="return").data
    import torch
    from circuitsvis.attention import attention_patterns

    heads = torch.cat([layer[0] for layer in patterns])
    return attention_patterns(words, heads).local_src  # its default, cdn_src, is empty without a network


def build(tool: str, length: int, target: Path) -> None:
    """Run the model, build the page, and say on standard output how long that took."""
    import pydoc_data.topics

    import torch

    import allheads as ah

    source = ah.load("smollm2-135m")
    text = " ".join(text for _, text in sorted(pydoc_data.topics.topics.items()))[:9000]
    ids = source.to_tokens(text)[:, :length]
    with torch.no_grad():
        cache = source.run_with_cache(ids, names_filter=lambda name: name.endswith("attn.hook_pattern"))[1]
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(30)]
    words = source.to_str_tokens(ids[0])
    started = time.perf_counter()
    page = html(tool, patterns, words)
    seconds = time.perf_counter() - started
    if "<html" not in page:
        page = f'<!DOCTYPE html><html><head><meta charset="utf-8"></head><body>{page}</body></html>'
    target.write_text(page, encoding="utf-8")
    print(json.dumps({"build_s": round(seconds, 2)}))


def built(tool: str, length: int, target: Path) -> dict:
    """`build` in a process that may fail."""
    command = [sys.executable, __file__, "--one", tool, str(length), str(target)]
    limit = (MEMORY, MEMORY)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=BUILDING,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
        )
    except subprocess.TimeoutExpired:
        return {"fails": f"not built in {BUILDING} s"}
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "killed"
        return {"fails": f"building: {why[:80]}"}
    return json.loads(done.stdout.splitlines()[-1]) | {"MB": round(target.stat().st_size / 1e6, 2)}


def opened(tool: str, path: Path, cdn: Path | None) -> dict:
    """Seconds to the first picture, what the page asks for, and for ours how long a hover takes to be answered."""
    from playwright.sync_api import Error, sync_playwright

    asked: list[str] = []

    def answer(route) -> None:
        name = route.request.url.rpartition("/")[2]
        if route.request.url == path.as_uri():
            route.continue_()
            return
        asked.append(name)
        local = cdn / name if cdn else None
        route.fulfill(path=local) if local and local.is_file() else route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.route("**/*", answer)
        found: dict = {}
        try:
            page.goto(path.as_uri(), wait_until="commit", timeout=1000 * OPENING)
            page.wait_for_selector(DRAWN[tool], state="attached", timeout=1000 * OPENING)
            page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            found["paint_s"] = round(page.evaluate("performance.now()") / 1000, 2)
            if tool == "allheads":
                found["hover_ms"] = round(page.evaluate(_HOVER))
        except Error as error:
            found["fails"] = f"opening: {str(error).splitlines()[0][:80]}"
        browser.close()
    return found | {"asks_for": sorted(set(asked))}


#: From the pointer on a token to the next two frames after its lists are there.
_HOVER = """() => new Promise((done) => {
  const tokens = document.querySelectorAll('.strip [data-at]');
  const started = performance.now();
  tokens[Math.floor(tokens.length / 2)].dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
  const wait = () => document.querySelector('.lists section')
    ? requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - started)))
    : requestAnimationFrame(wait);
  wait();
})"""


def main() -> None:
    """Every widget at every length, one JSON line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--cdn", type=Path)
    asked = parser.parse_args()
    if asked.one:
        tool, length, target = asked.one
        build(tool, int(length), Path(target))
        return
    with tempfile.TemporaryDirectory() as folder:
        for length in asked.lengths:
            for tool in TOOLS:
                path = Path(folder) / f"{tool}.html"
                found = built(tool, length, path)
                if "fails" not in found:
                    found |= opened(tool, path, asked.cdn and asked.cdn.absolute())
                print(json.dumps({"tool": tool, "tokens": length} | found), flush=True)
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
