"""A toy language: its grammar, links and scores; a run that learns, and a twin with the same pictures."""

from __future__ import annotations

import json
import random

import pytest
import torch
from typer.testing import CliRunner

from allheads.cli.main import app
from allheads_labs.kit.lab import Result
from allheads_labs.kit.small_models import END, START
from allheads_labs.translation import report
from allheads_labs.translation.alignment import diagonal, links, score
from allheads_labs.translation.figure import draw
from allheads_labs.translation.language import SentencePair, batch, corpus, pair
from allheads_labs.translation.training import N_CTX, exact, translate

PAIRS = [pair(random.Random(seed)) for seed in range(300)]


@pytest.mark.parametrize("one", PAIRS[:50])
def test_links_join_words_that_mean_the_same(one):
    for to, here in one.links:
        word, origin = one.target[to], one.source[here]
        if word == "PL":
            assert origin.startswith("noun")
            assert origin.endswith("s")
        elif origin.startswith("up"):
            assert word.endswith(origin.upper())
        elif origin.startswith("verb"):
            assert word.split("UP")[0] == origin.upper()
        else:
            assert word == origin.removesuffix("s").upper()
    assert {to for to, _ in one.links} == set(range(len(one.target)))
    unlinked = set(range(len(one.source))) - {here for _, here in one.links}
    assert {one.source[here] for here in unlinked} <= {"the", "a", "some"}


def test_everything_that_is_planted_occurs():
    to_many = [one for one in PAIRS if "PL" in one.target]
    to_one = [one for one in PAIRS if any("UP" in word for word in one.target)]
    apart = [one for one in to_one if any(abs(a - b) > 1 for a, b in _pairs_of_last(one))]
    dropped = [one for one in PAIRS if {"the", "a", "some"} & set(one.source)]
    fronted = [one for one in PAIRS if one.target[0].startswith("ADV")]
    assert min(map(len, (to_many, to_one, apart, dropped, fronted))) > 20
    assert all(one.target[-1].startswith("VERB") for one in PAIRS)
    assert max(len(one.source) + 2 for one in PAIRS) <= N_CTX


def _pairs_of_last(one):
    """The places of a verb and of its particle."""
    froms = sorted(here for to, here in one.links if to == len(one.target) - 1)
    return [tuple(froms)] if len(froms) == 2 else []


def test_held_out_sentences_are_new_and_seeds_differ():
    train, held_out = corpus(0, 300, 100)
    assert not {one.source for one in train} & {one.source for one in held_out}
    assert (len(train), len(held_out)) == (300, 100)
    assert corpus(0, 300, 100) == (train, held_out) != corpus(1, 300, 100)


def test_batches_are_padded_and_shifted():
    given = batch(PAIRS[:20])
    assert given.read[:, 0].eq(START).all()
    for row, one in enumerate(PAIRS[:20]):
        assert given.source[row, len(one.source)] == END
        assert given.mask[row].sum() == len(one.source) + 1
        assert given.read[row, 1 : len(one.target) + 1].tolist() == given.write[row, : len(one.target)].tolist()
        assert given.write[row, len(one.target)] == END


def test_scores_by_hand():
    one = SentencePair(("the", "verb0", "up1"), ("VERB0UP1",), frozenset({(0, 1), (0, 2)}))
    both = links(torch.tensor([[0.1, 0.45, 0.4, 0.05], [1.0, 0, 0, 0]]), one)
    assert both == one.links
    half = links(torch.tensor([[0.3, 0.7, 0.0, 0.0]]), one)
    assert score([half], [one.links]) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert links(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), one) == frozenset()
    assert score([frozenset()], [one.links])["f1"] == 0.0
    assert diagonal(PAIRS[0]) <= {(a, b) for a in range(20) for b in range(len(PAIRS[0].source))}


def test_translating_ends_and_pads():
    given = batch(PAIRS[:4])
    wanted = given.write

    def oracle(each):
        at = each.read.shape[1] - 1
        logits = torch.zeros(len(each.source), each.read.shape[1], 200)
        column = wanted[:, at] if at < wanted.shape[1] else torch.full((len(wanted),), END)
        logits[torch.arange(len(column)), -1, column] = 1.0
        return logits

    assert exact(translate(oracle, given), wanted) == 1.0
    assert exact(wanted.roll(1, 0), wanted) == 0.0
    never = translate(lambda each: torch.nn.functional.one_hot(each.read, 200) * 0.0 + torch.eye(200)[9], given)
    assert never.shape[1] == N_CTX - 1


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run through the command, and its page."""
    folder = tmp_path_factory.mktemp("translation")
    page = folder / "figure.html"
    done = CliRunner(env={"ALLHEADS_CACHE": str(folder)}).invoke(
        app, ["lab", "translation", "--quick", "--json", "--figure", str(page), "--minutes", "600"]
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), page.read_text()


def test_it_learns_and_aligns(quick):
    (result,) = quick[0]["results"]
    assert result["found"]["exact"] > 0.95
    assert result["found"]["alignment"]["last layer"]["f1"] > 0.75
    assert result["found"]["alignment"]["diagonal"]["f1"] < 0.3


def test_the_twin_translates_the_same_and_looks_the_same_way(quick):
    (result,) = quick[0]["results"]
    twin = result["found"]["twin"]
    assert twin["exact"] == result["found"]["exact"]
    assert set(twin["pattern_gaps"]) == {"encoder", "decoder", "cross"}
    # Not zero: the twin's neurons are softmaxes, and not the source's own formula.
    assert all(0 < gap < 1e-4 for gap in twin["pattern_gaps"].values())


def test_the_example_can_be_drawn(quick):
    (result,) = quick[0]["results"]
    example = result["found"]["example"]
    assert len(example["model"]["cross 1"][0]) == len(example["target"])
    assert len(example["model"]["encoder 0"][0]) == len(example["source"])
    for pattern in example["model"].values():
        for line in (line for head in pattern for line in head):
            assert sum(line) == pytest.approx(1.0, abs=2e-3)
    assert "Where the words come from" in quick[1]
    traces = list(draw([Result(**result)]).data)
    crossed, rings = traces[2:4]
    places = [[crossed.y.index(to), crossed.x.index(here)] for here, to in zip(rings.x, rings.y, strict=True)]
    assert places == [list(link) for link in example["links"]]


def test_a_twin_that_differs_breaks_the_claim(quick):
    rows = [Result(**each) for each in quick[0]["results"]]
    named = {claim.claim: claim.holds for claim in report.claims(rows)}
    assert named["twins translate the same, patterns within 1e-4"]
    rows[0].found["twin"]["pattern_gaps"]["cross"] = 2e-4
    named = {claim.claim: claim.holds for claim in report.claims(rows)}
    assert not named["twins translate the same, patterns within 1e-4"]


def aligned(f1, *, layers=2, heads=1, exact=1.0, seed=0):
    scores = {"precision": f1, "recall": f1, "f1": f1}
    found = {
        "training_seconds": 1.0,
        "exact": exact,
        "alignment": {"last layer": scores, "layers averaged": scores, "diagonal": dict.fromkeys(scores, 0.2)},
        "twin": {"exact": exact, "pattern_gaps": {"cross": 1e-6}, "alignment": scores},
    }
    return Result({"layers": layers, "heads": heads}, seed, found, 1.0)


def test_links_are_found_on_average_over_seeds_or_not():
    text = "cross-attention finds the links, F1 of 0.9: {0}+{0} layers, 1 cross head, last layer"
    for other, holds in ((0.95, True), (0.7, False)):
        rows = [aligned(0.89), aligned(other, seed=1), aligned(0.95, layers=1)]
        named = {claim.claim: claim for claim in report.claims(rows)}
        assert named[text.format(2)].holds == holds
        assert named[text.format(2)].measured.startswith(f"{(0.89 + other) / 2:.3f} ±")
        assert named[text.format(1)].holds
    wrong = report.claims([aligned(0.95, exact=0.98)])
    assert not wrong[0].holds


def test_tables_have_a_row_for_every_layer_and_one_for_the_diagonal():
    made = report.tables([aligned(0.8), aligned(0.9, seed=1), aligned(0.7, heads=4)])
    rows = made["translation:alignment"].splitlines()[2:]
    assert len(rows) == 5
    assert "| 2+2 | 1 | 2 | 100.0 ± 0.0 | last layer | 0.850 ± 0.635" in rows[0]
    assert rows[-1].startswith("| none |  | 3 |  | diagonal | 0.200")
    assert len(made["translation:twin"].splitlines()) == 4
