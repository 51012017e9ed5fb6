"""Static figures are saved as what their name says, or not at all."""

from __future__ import annotations

import importlib.util

import pytest

import allheads as ah
from allheads.errors import AllHeadsError
from allheads.plots import picture

from_kaleido = pytest.mark.skipif(importlib.util.find_spec("kaleido") is None, reason="kaleido is not installed")


@pytest.fixture(scope="module")
def figure():
    return ah.plots.frontier("gelu")


def test_html_holds_all_it_needs(figure, tmp_path, load_page):
    page = load_page(figure.save(tmp_path / "f.html"))
    assert page.pictures["view"]["figure"]["data"][0]["name"] == "1 head"
    assert "default-src 'none'" in page.own_text


@from_kaleido
@pytest.mark.parametrize(("name", "start"), [("f.png", b"\x89PNG"), ("f.svg", b"<svg")])
def test_images(figure, tmp_path, browser, name, start):
    path = figure.save(tmp_path / name)
    assert path.read_bytes().startswith(start) and path.stat().st_size > 5000


def test_what_is_missing_is_said(figure, tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    with pytest.raises(AllHeadsError, match=r"kaleido, to write \.png, got none.*pip install 'allheads\[images\]'"):
        figure.save(tmp_path / "f.png")
    with pytest.raises(AllHeadsError, match=r"a path that ends in \.html or \.png"):
        figure.save(tmp_path / "f.gif")
    with pytest.raises(AllHeadsError, match="a path in a folder that exists"):
        figure.save(tmp_path / "no" / "f.html")
    assert list(tmp_path.iterdir()) == []


@from_kaleido
def test_a_browser_that_cannot_be_started(figure, tmp_path, monkeypatch):
    def fail(self, *args, **named):
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    monkeypatch.setattr(picture.go.Figure, "to_image", fail)
    with pytest.raises(AllHeadsError, match=r"a browser that kaleido can draw \.png with, got Kaleido requires"):
        figure.save(tmp_path / "f.png")


def test_changed_figures_stay_pictures(figure):
    assert isinstance(figure.update_layout(title="x"), picture.Picture)
