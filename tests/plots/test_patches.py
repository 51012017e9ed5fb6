"""Patches are drawn where they are: at the pixels that move them."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.plots.patches import pixels
from allheads.twin.capture import captured
from allheads_labs import zoo


@pytest.fixture(scope="module")
def seen():
    sample = zoo.build("ViTForImageClassification", seed=3, dtype=torch.float64)
    twin = ah.convert(sample.bridge)
    return twin, sample.inputs, ah.attribute(twin, sample.inputs, 1)


def test_a_patch_is_the_pixels_that_move_it(seen):
    twin, inputs, found = seen
    before = captured(twin, inputs, ["embed.hook_out"])["embed.hook_out"][0]
    masks = list(pixels(found.question, "embed", "input"))
    assert not masks[0].any()  # the class token
    for row, column in ((0, 0), (3, 4), (15, 15)):
        changed = inputs["input"].clone()
        changed[0, :, row, column] += 1
        after = captured(twin, {"input": changed}, ["embed.hook_out"])["embed.hook_out"][0]
        moved = (after - before).abs().amax(-1).nonzero().flatten().tolist()
        assert moved == [position for position, mask in enumerate(masks) if mask[row, column]]


def test_colours_are_effects_and_the_rest_is_said(seen):
    *_, found = seen
    drawn = ah.plots.attribution(found, "image")
    colour, patch = torch.tensor(drawn.data[1].z), torch.tensor(drawn.data[1].customdata)
    effects = found.begins["embed"]
    assert torch.allclose(colour, effects[patch], atol=1e-12)
    assert patch.unique().tolist() == list(range(1, 17))
    title = drawn.layout.title.text
    assert f"{float(effects[1:].sum()):+.2f}" in title and f"{float(effects[0]):+.2f}" in title


def test_a_text_has_no_patches(twin, ids):
    with pytest.raises(ah.AllHeadsError, match="a prompt with an image"):
        ah.plots.attribution(ah.attribute(twin, ids, 3), "image")


def test_every_stream_is_drawn_by_token():
    sample = zoo.build("LlavaForConditionalGeneration", seed=3)
    found = ah.attribute(ah.convert(sample.bridge), sample.inputs, 5)
    bars = ah.plots.attribution(found, "token").data[0]
    assert len(bars.x) == len(set(bars.x)) == sum(len(effects) for effects in found.begins.values())
    assert sum(bars.y) == pytest.approx(sum(float(effects.sum()) for effects in found.begins.values()), rel=1e-4)
    assert len(ah.plots.attribution(found, "image").data) == 2
