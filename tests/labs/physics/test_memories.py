"""M against dense pseudo-inverses, and a head that moves along its gradient because it was made to."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads.models.attention import rotated
from allheads_labs import physics
from allheads_labs.physics.climbing import explained, share_of_variance
from allheads_labs.physics.memories import key_share, memories


def _dense(twin, layer, number):
    attn = twin.blocks[layer].attn
    heads = {name: getattr(attn, name).detach() for name in ("W_Q", "W_K", "W_V", "W_O")}
    many = len(heads["W_Q"])
    W_Q, W_K, W_V, W_O = (W[number * len(W) // many] for W in heads.values())
    return W_K @ W_Q.T, W_V @ W_O


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM"])
def test_it_is_the_pseudo_inverse_and_its_share_what_that_explains(twin_of, family):
    twin, _ = twin_of(family)
    for found in memories(twin, [1]):
        QK, OV = _dense(twin, 1, int(found.label[-1]))
        inverse = torch.linalg.pinv(QK)
        M = inverse @ OV
        assert torch.allclose(found.left @ found.right, M, atol=1e-9 * float(M.abs().max()))
        assert found.share == pytest.approx(float((QK @ M).norm() ** 2 / OV.norm() ** 2), abs=1e-10)
        # The part that is left is orthogonal to what M explains.
        assert float((OV - QK @ M).norm() ** 2 / OV.norm() ** 2) == pytest.approx(1 - found.share, abs=1e-10)
        assert found.left.shape[1] == found.right.shape[0] == 8
        assert found.chance == 8 / 32
        sizes = torch.linalg.svdvals(QK)
        assert found.condition == pytest.approx(float(sizes[0] / sizes[7]), rel=1e-8)
        assert 0.02 < found.share < 0.98


def test_a_rotation_between_queries_and_keys_leaves_the_share(twin_of):
    twin, _ = twin_of("LlamaForCausalLM")
    attn = twin.blocks[1].attn
    W_Q, W_K, W_V, W_O = (getattr(attn, name)[0].detach() for name in ("W_Q", "W_K", "W_V", "W_O"))
    QK, OV = rotated(W_K, [3], torch.tensor([1.0, 0.3, 0.1, 0.03])) @ W_Q.T, W_V @ W_O
    share = (QK @ torch.linalg.pinv(QK) @ OV).norm() ** 2 / OV.norm() ** 2
    assert physics.memory(twin, "L1.A0").share == pytest.approx(float(share), abs=1e-10)


def test_random_heads_have_their_part_of_the_stream():
    draw = torch.Generator().manual_seed(0)
    W_K, W_V, W_O = (torch.randn(400, *shape, generator=draw) for shape in ((24, 6), (24, 6), (6, 24)))
    shares = key_share(W_K, W_V, W_O)
    assert float(shares.mean()) == pytest.approx(6 / 24, abs=4 * float(shares.std()) / 20)
    # The same for a spectrum that is far from flat.
    peaked = key_share(W_K, W_V * torch.logspace(0, -2, 6), W_O)
    assert float(peaked.mean()) == pytest.approx(6 / 24, abs=4 * float(peaked.std()) / 20)


def _motion_by_construction(source, number=1):
    """Values are a linear image of keys: what this head writes follows from its gradient."""
    weight = source.original_model.transformer.h[1].attn.c_attn.original_component.weight
    columns = [slice(part * 32 + number * 8, part * 32 + number * 8 + 8) for part in (1, 2)]
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(4)).double()
    with torch.no_grad():
        weight[:, columns[1]] = weight[:, columns[0]] @ mix
    return ah.convert(source)


def test_a_head_whose_values_are_keys_is_moved_along_its_gradient_by_m(gpt2):
    source, ids = gpt2
    twin = _motion_by_construction(source)
    found = physics.memory(twin, "L1.A1")
    assert found.share == pytest.approx(1.0, abs=1e-12)
    z = twin.run_with_cache(ids, names_filter=["blocks.1.attn.hook_z"])[1]["blocks.1.attn.hook_z"][0].detach()
    write = z.reshape(12, 4, 8)[:, 1] @ twin.blocks[1].attn.W_O[1].detach()
    said = found.write(physics.potential(twin, ids, "L1.A1").gradient)
    assert torch.allclose(said, write, atol=1e-9)
    other = physics.memory(twin, "L1.A2")
    assert other.share < 0.9
    wrong = other.write(physics.potential(twin, ids, "L1.A2").gradient)
    assert not torch.allclose(wrong, z.reshape(12, 4, 8)[:, 2] @ twin.blocks[1].attn.W_O[2].detach(), atol=1e-3)


def test_on_text_that_head_is_explained_and_others_are_not(gpt2):
    source, _ = gpt2
    twin = _motion_by_construction(source)
    ids = torch.randint(96, (8, 20), generator=torch.Generator().manual_seed(2))
    found = explained(twin, ids, [1], 2)
    assert found.memory.shape == found.gradient.shape == (1, 4)
    assert found.chance.shape == (2, 1, 4)
    assert found.memory[0, 1] > 0.999
    assert found.gradient[0, 1] > 0.99
    others = torch.tensor([0, 2, 3])
    assert found.memory[0, others].max() < 0.9
    assert found.gradient[0, others].max() < 0.95
    assert found.chance[:, 0].max() < 0.95


def test_shares_of_variance_are_of_windows_that_were_not_seen():
    draw = torch.Generator().manual_seed(0)
    X, noise = torch.randn(20, 30, 3, generator=draw), torch.randn(20, 30, 3, generator=draw)
    assert float(share_of_variance(X, X @ torch.randn(3, 3, generator=draw) + 2)) > 0.999
    assert float(share_of_variance(X, X + noise)) == pytest.approx(0.5, abs=0.1)
    # As many features as tokens would fit what was seen without error.
    assert float(share_of_variance(torch.randn(4, 8, 14, generator=draw), noise[:4, :8])) < 0


def test_what_has_no_memory(twin_of):
    twin, _ = twin_of("LlamaForCausalLM")
    with pytest.raises(ah.AllHeadsError, match=r"an ordinary head, got L1\.N3\.0"):
        physics.memory(twin, "L1.N3.0")
    with pytest.raises(ah.AllHeadsError, match="a head of this twin"):
        physics.memory(twin, "L9.A0")
    with pytest.raises(ah.AllHeadsError, match="scores that are x W_Q R W_K"):
        physics.memory(twin_of("Qwen3ForCausalLM")[0], "L0.A0")
