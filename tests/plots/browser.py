"""Pages opened in a real browser that reaches nothing else, and what they say and ask for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Loud: without a browser half of what this room promises is not tested.
MISSING = "NO BROWSER: chromium is not installed, no page was opened"


@dataclass
class Opened:
    """A page that is open; requests beside the page's own are refused and kept."""

    page: object
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def quiet(self) -> bool:
        return not self.said and not self.asked

    def words(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


class Browser:
    def __init__(self, chromium) -> None:
        self.chromium = chromium

    @contextmanager
    def open(self, path, *, dark=False, fragment="", width=1200, height=1000):
        scheme = "dark" if dark else "light"
        context = self.chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        opened = Opened(context.new_page())
        opened.page.set_default_navigation_timeout(120_000)  # of a busy machine
        address = path.as_uri()

        def answer(route):
            if route.request.url.split("#")[0] == address:
                return route.continue_()
            opened.asked.append(route.request.url)
            return route.abort()

        context.route("**/*", answer)
        opened.page.on("console", lambda message: opened.said.append(message.text))
        opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.page.goto(address + (f"#{fragment}" if fragment else ""))
        try:
            yield opened
        finally:
            context.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, for a while."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield Browser(started)
        started.close()
