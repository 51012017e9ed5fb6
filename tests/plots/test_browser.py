"""The page in a real browser, without a network: everything is drawn, dropdowns work, the console is silent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
import torch

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
console.log("the probe ran");
const [layer, head] = document.querySelectorAll('[data-plot="attention"] select');
layer.selectedIndex = 2; head.selectedIndex = 1;
head.dispatchEvent(new Event("change", { bubbles: true }));
const probe = document.createElement("pre");
probe.id = "probe";
const drawn = document.getElementById("attention");
probe.textContent = JSON.stringify({ z: drawn.data[0].z, title: drawn.layout.title.text });
document.body.append(probe);
</script></body>"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER: chromium is not installed, the page was not opened"
)


@pytest.fixture(scope="module")
def opened(path, tmp_path_factory):
    """The DOM of the page after its scripts ran, and what the browser wrote to its log."""
    folder = tmp_path_factory.mktemp("browser")
    probed = folder / "page.html"
    probed.write_text(path.read_text("utf-8").replace("</body>", PROBE), "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += ["--disable-component-update", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command = [CHROMIUM, *flags, "--dump-dom", probed.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return run.stdout, run.stderr


def test_every_plot_is_drawn(opened):
    dom, _ = opened
    for name in ("attention", "gates", "neurons"):
        drawn = dom.split(f'id="{name}"')[1].split("<script")[0]
        assert re.search(r'<image[^>]+href="data:image/png', drawn), name
    assert len(re.findall(r'class="point[ "]', dom.split('id="errors"')[1])) == 6


def test_nothing_can_be_sent_away(opened):
    """plotly offers to upload a chart unless told otherwise."""
    buttons = set(re.findall(r'data-title="([^"]*)"', opened[0]))
    assert buttons == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}


def test_the_console_is_silent(opened):
    """Errors are logged there as the probe's own message is."""
    said = [line for line in opened[1].splitlines() if "CONSOLE" in line]
    assert len(said) == 1 and "the probe ran" in said[0]


def test_choosing_a_head_shows_its_pattern(opened, cache):
    probe = json.loads(unescape(re.search(r'<pre id="probe">(.*?)</pre>', opened[0], re.S)[1]))
    assert probe["title"] == "L2.A1"
    assert (torch.tensor(probe["z"]) - cache["blocks.2.attn.hook_pattern"][0, 1]).abs().max() <= 0.005


def test_tokens_are_shown_as_they_are(opened):
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", opened[0])
    assert any("&lt;/script&gt;" in label for label in labels)
    assert any("&lt;b&gt;bold&lt;/b&gt;" in label for label in labels)
