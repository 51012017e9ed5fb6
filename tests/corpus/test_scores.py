"""Scores of heads: set by hand, against TransformerLens' detector, and what the real model loses without them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformer_lens.head_detector import detect_head

import allheads as ah
from allheads.corpus.head_roles import ROLES, destinations, role_masks, role_sums
from allheads.corpus.repeated_token_scores import repeated_tokens
from allheads_labs import zoo

TEXT = "The cat sat on the mat, and then the cat sat on the mat again, and the cat sat on the mat."


def test_heads_set_by_hand(by_hand):
    found = ah.corpus.head_scores(by_hand, length=12)
    expected = {"previous": "L0.A0", "duplicate": "L0.A1", "induction": "L1.A0", "copying": "L1.A0"}
    for kind, label in expected.items():
        best, score = found.top(kind, 1)[0]
        assert best == label
        # The very first token comes before itself, too: the induction head may look there once.
        assert score > 0.9
    assert found.top("induction", 2)[1] == ("L1.A1", pytest.approx(found.top("induction", 1)[0][1]))
    assert found.copying[1].tolist() == [1.0, 0.0]
    assert found.previous[0, 1] < 0.2
    assert found.duplicate[0, 0] < 0.01
    # Those without an output copy nothing and take nothing away.
    assert found.copying[0, 1] == 0.5


def test_scores_are_means_of_patterns(small_twin):
    tokens = repeated_tokens(small_twin, 9, 3, 7)
    assert tokens.shape == (3, 18)
    assert torch.equal(tokens[:, :9], tokens[:, 9:])
    assert all(len(set(row)) == 9 and not {0, 1} & set(row) for row in tokens.tolist())
    found = ah.corpus.head_scores(small_twin, length=9, batch=3, seed=7)
    with torch.no_grad():
        cache = small_twin.run_with_cache(tokens)[1]
    for layer in range(2):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        induction = pattern[:, :, range(9, 18), range(1, 10)].mean((0, 2))
        duplicate = pattern[:, :, range(9, 18), range(9)].mean((0, 2))
        previous = pattern[:, :, range(1, 18), range(17)].mean((0, 2))
        assert torch.allclose(found.induction[layer].float(), induction, atol=1e-6)
        assert torch.allclose(found.duplicate[layer].float(), duplicate, atol=1e-6)
        assert torch.allclose(found.previous[layer].float(), previous, atol=1e-6)
    table = found.to_dataframe()
    assert list(table["label"]) == [f"L{layer}.A{head}" for layer in range(2) for head in range(4)]
    assert ((table.drop(columns="label") >= 0) & (table.drop(columns="label") <= 1)).all().all()


def test_copying_is_what_the_values_write(small_twin):
    """Moving a head's attention to a token, one token at a time, and reading the logits it adds."""
    tokens = repeated_tokens(small_twin, 6, 1, 0)
    found = ah.corpus.head_scores(small_twin, length=6, batch=1)
    with torch.no_grad():
        cache = small_twin.run_with_cache(tokens)[1]
        values = cache["blocks.1.attn.hook_v"][0, 1:6, 3 // 2]
        written = values @ small_twin.head("L1.A3").W_O
        gain = small_twin.original_model.model.norm.weight
        logits = (written * gain) @ small_twin.W_U[:, tokens[0, 1:6]]
    wins = [float(logits[i, i] > logits[j, i]) for i in range(5) for j in range(5) if i != j]
    assert found.copying[1, 3] == pytest.approx(sum(wins) / len(wins))


def test_a_beginning_token_stays_in_front(opened):
    tokens = repeated_tokens(opened, 5, 2, 0)
    assert tokens.shape == (2, 11)
    assert tokens[:, 0].tolist() == [0, 0]
    assert torch.equal(tokens[:, 1:6], tokens[:, 6:])
    assert ah.corpus.head_scores(opened, length=5).induction.shape == (2, 4)


def test_the_detector_of_transformerlens(smollm_twin):
    """It divides by all destinations, we by those that have a source: the same sums."""
    ids = smollm_twin.to_tokens(TEXT)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(30)]
    with torch.no_grad():
        cache = smollm_twin.run_with_cache(ids, names_filter=names)[1]
    masks = role_masks(ids)
    ours = torch.stack([role_sums(cache[name], masks) for name in names], 1).float() / ids.shape[1]
    cache.remove_batch_dim()
    for role in ("previous", "duplicate", "induction"):
        theirs = detect_head(smollm_twin, TEXT, f"{role}{'_token' * (role != 'induction')}_head", cache=cache)
        assert theirs.max() > 0.1
        assert torch.allclose(ours[ROLES.index(role)], theirs, atol=1e-5)
        assert 0 < destinations(masks)[ROLES.index(role)] < ids.shape[1]


def test_smollm_copies_by_its_induction_heads(smollm_twin):
    """The heads that are found are the ones that repeat what came before."""
    found = ah.corpus.head_scores(smollm_twin)
    best = found.top("induction", 12)
    assert best[0][1] > 0.6
    assert sum(score > 0.3 for _, score in best) >= 6
    labels = [label for label, _ in best]
    tokens = repeated_tokens(smollm_twin, 48, 1, seed=1)

    def loss(without):
        with torch.no_grad(), ah.ablate(smollm_twin, without):
            logits = smollm_twin(tokens)
        return float(F.cross_entropy(logits[:, 48:-1].flatten(0, 1), tokens[:, 49:].flatten()))

    draw = torch.Generator().manual_seed(0)
    others = [label for row in found.labels for label in row if label not in labels]
    at_random = [loss([others[n] for n in torch.randperm(len(others), generator=draw)[:12]]) for _ in range(3)]
    own = loss([])
    assert own < 5.0
    # Nothing is left of it: the first copy costs 14.
    assert loss(labels) > 11.0
    assert max(at_random) < 6.0


def test_bad_input(small_twin, smollm):
    with pytest.raises(ah.AllHeadsError, match=r"a length of 2 to 32, and a batch, got 33 and 4"):
        ah.corpus.head_scores(small_twin, length=33)
    with pytest.raises(ah.AllHeadsError, match="an attention-only twin"):
        ah.corpus.head_scores(smollm)
    with pytest.raises(ah.AllHeadsError, match="a kind out of"):
        ah.corpus.head_scores(small_twin, length=5).top("nothing")
    with pytest.raises(ah.AllHeadsError, match="a model that reads text, got one that reads pixel_values"):
        ah.corpus.head_scores(ah.convert(zoo.build("ViTModel").bridge))
