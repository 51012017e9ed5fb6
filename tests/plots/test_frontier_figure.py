"""The figure of the frontier is well-formed, shows every activation and is the committed one."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

from typer.testing import CliRunner

from allheads.cli.main import app
from allheads.gates.fitting.frontier import TABLES
from allheads.gates.table import fits
from allheads.plots.frontier_figures import frontier_svg

FIGURE = Path(__file__).parents[2] / "docs" / "img" / "frontier.svg"


def test_every_activation_has_a_line_inside_the_picture():
    root = ElementTree.fromstring(frontier_svg())
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    lines = root.findall(".//{*}polyline")
    assert len(lines) == len({(f.gate_sum.activation.name, f.gate_sum.gated) for f in fits()})
    for circle in root.findall(".//{*}circle"):
        assert 0 < float(circle.attrib["cx"]) < width / 2 - 40
        assert 40 < float(circle.attrib["cy"]) < height - 40


def test_the_figure_is_up_to_date():
    assert FIGURE.read_text(encoding="utf-8") == frontier_svg()


def test_the_command_writes_and_prints(tmp_path):
    document, figure = tmp_path / "page.md", tmp_path / "figure.svg"
    document.write_text("<!-- frontier:cost --><!-- /frontier:cost -->")
    done = CliRunner().invoke(app, ["frontier", "--write", str(document), "--figure", str(figure)])
    assert done.exit_code == 0, done.output
    assert TABLES["cost"]() in document.read_text()
    assert figure.read_text() == frontier_svg()
    drawn = CliRunner().invoke(app, ["frontier"]).output
    assert set(re.findall(r"\d\.\d+e-\d+", TABLES["heads"]())) <= set(re.findall(r"\d\.\d+e-\d+", drawn))
    printed = json.loads(CliRunner().invoke(app, ["frontier", "--json"]).output)
    assert len(printed) == len(fits()) and {row["activation"] for row in printed} >= {"gelu", "silu"}


def test_bad_paths(tmp_path):
    for option in ("--write", "--figure"):
        done = CliRunner().invoke(app, ["frontier", option, str(tmp_path / "no" / "file")])
        assert done.exit_code == 2
        assert "Expected" in done.output
