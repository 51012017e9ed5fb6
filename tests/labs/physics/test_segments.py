"""Segments: principal angles against known ones, and against chance."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import physics
from allheads_labs.physics.segments import angles, basis, random_segments


def test_a_segment_spans_what_a_head_writes(twin_of):
    twin, _ = twin_of("LlamaForCausalLM")
    found, W_O = physics.segment(twin, "L1.A2"), twin.blocks[1].attn.W_O[2].detach()
    assert found.shape == (8, 32)
    assert torch.allclose(found @ found.T, torch.eye(8).double(), atol=1e-12)
    assert torch.allclose(W_O @ found.T @ found, W_O, atol=1e-12)
    line = physics.segment(twin, "L1.N5")
    assert line.shape == (1, 32)
    w = twin.banks[1].W_out[5].detach()
    assert float((line @ w).abs()) == pytest.approx(float(w.norm()))


def test_angles_of_known_segments():
    eye = torch.eye(6).double()
    turned = torch.cat([eye[:1], (eye[1:2] * 3 + eye[4:5] * 4) / 5])
    assert angles(eye[:2], turned).tolist() == pytest.approx([1.0, 0.6])
    assert angles(eye[:2], eye[3:5]).tolist() == pytest.approx([0.0, 0.0])
    # Another basis of the same segment.
    other = basis(torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double() @ turned)
    assert angles(turned, other).tolist() == pytest.approx([1.0, 1.0])


def test_random_segments_overlap_by_rank_over_dimension():
    some = random_segments(8000, 3, 15, seed=1)
    assert float(angles(some[:4000], some[4000:]).square().mean()) == pytest.approx(3 / 15, abs=0.005)


def test_the_table_of_all_pairs(twin_of):
    twin, _ = twin_of("GPT2LMHeadModel")
    found = physics.overlaps(twin)
    assert found.label(6) == "L1.A2"
    assert found.chance == 8 / 32
    cosines = angles(physics.segment(twin, "L0.A3"), physics.segment(twin, "L1.A2"))
    for i, j in ((3, 6), (6, 3)):
        assert float(found.mean[i, j]) == pytest.approx(float(cosines.square().mean()), abs=1e-5)
        assert float(found.largest[i, j]) == pytest.approx(float(cosines[0]), abs=1e-5)
    assert found.mean.diagonal().tolist() == pytest.approx([1.0] * 8, abs=1e-5)
    assert found.pairs(0).shape == (12,)
    assert found.pairs(1).shape == (16,)
    assert float(found.pairs(1).mean()) == pytest.approx(float(found.mean[:4, 4:].mean()), abs=1e-6)
    one = physics.overlaps(twin, [1])
    assert one.label(2) == "L1.A2"
    assert torch.allclose(one.mean, found.mean[4:, 4:])
    with pytest.raises(ah.AllHeadsError, match="layers from 0 to 1"):
        physics.overlaps(twin, [2])
