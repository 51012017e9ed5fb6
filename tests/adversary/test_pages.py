"""The worst words on pages of five kinds that share all their scripts: they stay words, and nothing runs."""

from __future__ import annotations

import pytest
from tests.adversary import pages

from allheads.plots import page, report_page

#: At the places of the prompt's tokens: each has once broken a page, or is the shortest of its kind.
WORDS = ["</script>", "<svg/onload=h=1>", "$x^2$", "\ud83d", "\u202eevil", "&amp;lt;", "%{x}", "__proto__", "\u2028"]
WORST = pages.Names(
    ["calm", "\0", "<b>", *WORDS, *["'\"><img src=x onerror=h=1>"] * 84],
    "\ud800\u202e</title><script>h=1</script>",
    "<img src=x onerror=h=1>\x07\udc80",
)
KINDS = ("attention", "graph from a file", "explorer", "report", "attribution")


@pytest.fixture(scope="module")
def calm(browser, tmp_path_factory):
    return pages.Calm(browser, tmp_path_factory.mktemp("calm"))


def faults(browser, calm, kind, path, word):
    names, (file, found) = WORST.for_page(kind), calm[kind]
    pages.KINDS[kind](names, path)
    return [*pages.file_faults(path, file), *pages.browser_faults(browser, path, found, names, word)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_worst_words_stay_words(browser, calm, kind, tmp_path):
    assert faults(browser, calm, kind, tmp_path / "page.html", "%") == []


def test_links_to_what_every_object_has(browser, calm, tmp_path):
    assert faults(browser, calm, "explorer", tmp_path / "page.html", "__proto__") == []


def test_what_is_not_escaped_is_found_out(browser, calm, tmp_path, monkeypatch):
    """Else this would be a test that cannot fail."""
    calm["report"]
    for module in (page, report_page):
        monkeypatch.setattr(module, "as_html", lambda text: text.encode(errors="replace").decode())
    found = "\n".join(faults(browser, calm, "report", tmp_path / "page.html", ""))
    assert all(fault in found for fault in ("other elements", "a script ran", "control characters"))


def test_scripts_that_take_words_for_markup_are_found_out(browser, calm, tmp_path, monkeypatch):
    calm["attention"]
    taken = (
        "children.map((each) => each.nodeType ? element.append(each) : element.insertAdjacentHTML('beforeend', each))"
    )
    read = page.web.read
    monkeypatch.setattr(page.web, "read", lambda *names: read(*names).replace("element.append(...children)", taken))
    found = "\n".join(faults(browser, calm, "attention", tmp_path / "page.html", ""))
    assert all(fault in found for fault in ("other elements", "another script", "tokens that are not there"))
