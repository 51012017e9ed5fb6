"""Scores and sweeps of mixtures and encoder-decoders, with sizes that fit the model."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.corpus.repeated_token_scores import repeated_tokens
from allheads_labs import zoo

#: Of different lengths, so that batches are padded.
TEXTS = [torch.randint(3, 64, (length,), generator=torch.Generator().manual_seed(length)) for length in (9, 14, 6)]


def _twin(name):
    return ah.convert(zoo.build(name, dtype=torch.float64).bridge)


def _cached(twin, names, ids, **inputs):
    with torch.no_grad():
        return twin.run_with_cache(ids, names_filter=names, **inputs)[1]


def test_defaults_fit_the_model(small_twin):
    """n_ctx is 64, half of what larger models get."""
    assert small_twin.cfg.n_ctx == 64
    assert ah.corpus.sweep(small_twin, ["word1 word2 word3"]).settings["context"] == 64
    assert torch.equal(
        ah.corpus.head_scores(small_twin).previous, ah.corpus.head_scores(small_twin, length=32).previous
    )


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Llama4ForCausalLM"])
def test_experts_are_counted_where_they_are_chosen(name):
    """By hand: from hook points and routers' weights, one text at a time."""
    twin = _twin(name)
    found = ah.corpus.sweep(twin, TEXTS, ah.corpus.SweepSettings(batch=2)).neurons().set_index("label")
    layer = next(layer for layer in twin.layers if layer.location.expert == 1)
    prefix = layer.location.prefix
    posts, opens = [], []
    for ids in TEXTS:
        cache = _cached(twin, [f"{prefix}hook_pre", f"{prefix}hook_post"], ids[None])
        posts.append(cache[f"{prefix}hook_post"][0, 1:])
        opens.append(cache[f"{prefix}hook_pre"][0, 1:] > 0)
    post, is_open = torch.cat(posts), torch.cat(opens)
    # Silu is zero nowhere else.
    chosen = post.abs().sum(1) > 0
    assert 0 < chosen.double().mean() < 1
    row = found.loc[f"{layer.location.stem}.N5"]
    assert row["chosen"] == pytest.approx(float(chosen.double().mean()))
    assert row["open"] == pytest.approx(float(is_open[chosen, 5].double().mean()))
    assert row["mean"] == pytest.approx(float(post[:, 5].mean()))
    assert row["largest"] == pytest.approx(float(post[post[:, 5].abs().argmax(), 5]))
    heads = [label for label in found.index if ".M" not in label]
    assert (found.loc[heads, "chosen"] == 1).all()


def test_which_tokens_choose_an_expert():
    """By hand, of texts in which tokens come again."""
    twin, ids = _twin("MixtralForCausalLM"), torch.tensor([5, 9, 30, 9, 9, 30, 22, 5, 9])
    table = ah.corpus.sweep(twin, [ids]).experts(k=3)
    prefix = next(layer.location.prefix for layer in twin.layers if layer.location.stem == "L1.M2")
    chosen = _cached(twin, [f"{prefix}hook_post"], ids[None])[f"{prefix}hook_post"][0, 1:].abs().sum(1) > 0
    rows = table[table["expert"] == "L1.M2"].set_index("id")
    assert len(rows) == 3 and rows["chosen"].tolist() == pytest.approx(3 * [float(chosen.double().mean())])
    for token, row in rows.iterrows():
        at = ids[1:] == token
        assert row["count"] == int(at.sum()) and row["share"] == pytest.approx(float(chosen[at].double().mean()))
    assert rows["share"].is_monotonic_decreasing and rows["share"].iloc[0] > 0
    assert not len(ah.corpus.sweep(_twin("LlamaForCausalLM"), [ids]).experts())


def test_a_decoder_reads_what_its_encoder_reads():
    twin = _twin("T5ForConditionalGeneration")
    scores = ah.corpus.head_scores(twin, length=7, batch=1)
    tokens = repeated_tokens(twin, 7, 1, 0)
    cache = _cached(twin, lambda name: name.endswith("hook_pattern"), tokens, decoder_input=tokens)
    table = scores.to_dataframe().set_index("label")
    for label, prefix in (("EL1.A2", "encoder_blocks.1.attn"), ("DL1.X2", "decoder_blocks.1.cross_attn")):
        pattern = cache[f"{prefix}.hook_pattern"][0, 2]
        assert table.loc[label, "duplicate"] == pytest.approx(float(pattern[range(7, 14), range(7)].mean()))
    assert table["copying"].isna().all()
    found = ah.corpus.sweep(twin, TEXTS, ah.corpus.SweepSettings(batch=3)).neurons().set_index("label")
    posts = [
        _cached(twin, ["decoder_blocks.1.mlp.hook_post"], ids[None], decoder_input=ids[None])[
            "decoder_blocks.1.mlp.hook_post"
        ][0, 1:]
        for ids in TEXTS
    ]
    assert found.loc["DL1.N5", "mean"] == pytest.approx(float(torch.cat(posts)[:, 5].mean()))
    assert {label.partition(".")[0] for label in found.index} == {"EL0", "EL1", "DL0", "DL1"}


def test_towers_are_left_out():
    """Nothing passes a tower for images where there is none."""
    found = ah.corpus.sweep(_twin("LlavaForConditionalGeneration"), TEXTS)
    assert {stem for stem, _ in found.settings["stems"]} == {"L0", "L1"}
    assert all(label.startswith(("L0", "L1")) for label in found.settings["heads"])


def test_copying_is_nan_where_values_are_compressed():
    found = ah.corpus.head_scores(_twin("DeepseekV2ForCausalLM"), length=7, batch=1)
    assert found.copying.isnan().all()
    assert (found.previous > 0).all()


@pytest.mark.filterwarnings("ignore:A hook on .*hook_pattern returned a modified tensor")
@pytest.mark.parametrize("seed", range(3))
def test_experts_with_rows_of_their_own_are_refused(seed):
    """Which tokens their rows are is not known: of what chose another expert, nothing would have been counted."""
    twin = ah.convert(zoo.build("SwitchTransformersForConditionalGeneration", seed=seed).bridge)
    points = [
        name for name in twin.hook_dict if name.endswith("_attn.hook_pattern") or name.endswith(".attn.hook_pattern")
    ]
    shown = twin.hooks(fwd_hooks=[(name, lambda pattern, hook: pattern.softmax(-1)) for name in points])
    with shown, pytest.raises(ah.AllHeadsError, match=r"EL1\.M\d, which reads rows of its own"):
        ah.corpus.sweep(twin, TEXTS)


def test_what_is_no_pattern_is_not_counted():
    """The bridge of Switch shows what positions add to scores where others show patterns."""
    twin = ah.convert(zoo.build("SwitchTransformersForConditionalGeneration").bridge)
    for read in (ah.corpus.head_scores, lambda twin: ah.corpus.sweep(twin, TEXTS)):
        with pytest.raises(ah.AllHeadsError, match=r"encoder_blocks.0.attn.hook_pattern, whose rows sum to .*counted"):
            read(twin)
