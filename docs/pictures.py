"""Photograph every view and figure in Chromium: desk and phone, light and dark. `make pictures` runs it.

What the documentation shows goes to docs/img; the rest to the folder that is named, to be looked at.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

import allheads as ah

PROMPT, PAIR = "When Mary and John went to the store, John gave a drink to", (" Mary", " John")
SIZES = {"desk": (1440, 900), "phone": (390, 844)}
#: What is clicked before the picture is taken, and the picture in the documentation.
CLICKED = {"attention": '[data-label="L23.A3"]', "graph": ".legend", "explore": '[data-label="L23.A3"]'}
SHOWN = {"attention": "attention.png", "graph": "graph.png", "explore": "explore.png"}


def views(twin: ah.TwinBridge) -> dict[str, Callable[[], Any]]:
    """Every picture by name, made when it is asked for."""
    found = ah.attribute(twin, PROMPT, PAIR)
    return {
        "attention": lambda: ah.plots.attention(twin, PROMPT),
        "neurons": lambda: ah.plots.attention(twin, PROMPT, heads=["L26.N1262", "L23.A3"]),
        "graph": lambda: ah.plots.graph(found.graph(budget=60)),
        "explore": lambda: ah.plots.explore(twin, PROMPT),
        "gates": lambda: ah.plots.gates(twin, PROMPT, 26),
        "tokens": lambda: ah.plots.attribution(found, "token"),
        "heads": lambda: ah.plots.attribution(found, "head"),
        "waterfall": lambda: ah.plots.attribution(found, "waterfall"),
        "residual": lambda: ah.plots.residual(twin, PROMPT),
    }


def photograph(browser: Browser, page: Path, folder: Path) -> None:
    """One page in every size and theme; whatever it says on the console is printed."""
    name = page.stem
    for theme in ("light", "dark"):
        for size, (width, height) in SIZES.items():
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
            opened = context.new_page()
            opened.on("console", lambda message: print(name, message.text))
            opened.on("pageerror", lambda error: print(name, error))
            opened.goto(page.as_uri())
            opened.wait_for_timeout(1500)
            if name in CLICKED:
                opened.locator(CLICKED[name]).first.click()
                opened.wait_for_timeout(500)
            opened.screenshot(path=folder / f"{name}-{size}-{theme}.png")
            context.close()


def main(folder: Path) -> None:
    """Make every page, then its photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    twin = ah.convert(ah.load("smollm2-135m"))
    pages = [make().save(folder / f"{name}.html") for name, make in views(twin).items()]
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for page in pages:
            photograph(browser, page, folder)
        browser.close()
    for name, picture in SHOWN.items():
        shutil.copy(folder / f"{name}-desk-light.png", Path(__file__).parent / "img" / picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
