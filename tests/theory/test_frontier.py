"""The generated tables: they say what the table of fits says, and replace only what is between the markers."""

from pathlib import Path

import pytest

from allheads.theory import frontier
from allheads.theory.approximate import approximate

DOCUMENT = Path(__file__).parents[2] / "docs" / "gates.md"


@pytest.mark.parametrize("name", frontier.TABLES)
def test_tables_are_rectangular(name):
    lines = frontier.TABLES[name]().splitlines()
    assert len(lines) > 3
    assert len({line.count("|") for line in lines}) == 1


def test_cost_table_counts_slots():
    row = next(line for line in frontier.cost_table().splitlines() if line.startswith("| gelu | plain"))
    ours = approximate("gelu", tolerance=1e-6)
    assert row.split("|")[6].strip() == str(ours.heads + sum(ours.bias_tokens))


def test_only_the_marked_part_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- frontier:cost -->\nold\n<!-- /frontier:cost -->\nafter\n")
    monkeypatch.setattr("sys.argv", ["frontier", "--write", str(path)])
    frontier.main()
    text = path.read_text()
    assert text.startswith("before\n<!-- frontier:cost -->\n| activation")
    assert text.endswith("<!-- /frontier:cost -->\nafter\n")
    assert "old" not in text


def test_printing(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["frontier"])
    frontier.main()
    assert frontier.heads_table() in capsys.readouterr().out


def test_the_document_is_up_to_date():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert frontier.with_tables(text) == text
    assert all(f"<!-- frontier:{name} -->" in text for name in frontier.TABLES)
