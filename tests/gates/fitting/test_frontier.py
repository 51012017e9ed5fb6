"""The generated tables: they say what the table of fits says, and replace only what is between the markers."""

from dataclasses import replace
from pathlib import Path

import pytest

from allheads.cli.documents import between
from allheads.errors import AllHeadsError
from allheads.gates.approximation import approximate
from allheads.gates.fitting import frontier
from allheads.gates.table import fits

DOCUMENT = Path(__file__).parents[3] / "docs" / "frontier.md"


@pytest.mark.parametrize("name", frontier.TABLES)
def test_tables_are_rectangular(name):
    lines = frontier.TABLES[name]().splitlines()
    assert len(lines) > 3
    assert len({line.count("|") for line in lines}) == 1


def test_cost_table_counts_slots():
    row = next(line for line in frontier.cost_table().splitlines() if line.startswith("| gelu | plain"))
    ours = approximate("gelu", tolerance=1e-6)
    assert row.split("|")[6].strip() == str(ours.heads + sum(ours.bias_tokens))


def test_only_the_marked_part_is_replaced():
    text = between("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n", "a", "new")
    assert text == "before\n<!-- a -->\nnew\n<!-- /a -->\nafter\n"
    with pytest.raises(AllHeadsError, match="the markers <!-- b -->"):
        between(text, "b", "new")


def test_a_fit_that_a_special_case_of_it_beats_is_named(monkeypatch):
    plain = [fit for fit in fits() if fit.family == "symmetric" and fit.gate_sum.activation.name == "gelu"]
    small = next(fit for fit in plain if fit.gate_sum.heads == 2)
    large = next(fit for fit in plain if fit.gate_sum.heads == 3)
    stuck = replace(large, gate_sum=replace(large.gate_sum, max_error=2 * small.gate_sum.max_error))
    monkeypatch.setattr(frontier, "fits", lambda: (small, stuck))
    assert frontier.beaten() == [(stuck, small)]
    monkeypatch.setattr(frontier, "fits", lambda: (small, large))
    assert frontier.beaten() == []


def test_the_document_is_up_to_date():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in frontier.TABLES.items():
        assert between(text, f"frontier:{name}", table()) == text
