"""Gate and value in one projection, which the bridge does not split: ModernBERT's decoder."""

from __future__ import annotations

import pytest
import torch

import allheads as ah
from allheads_labs import zoo


def test_its_projection_shows_the_gates_half():
    sample = zoo.build("ModernBertDecoderForCausalLM")
    twin = ah.convert(sample.bridge)
    with torch.no_grad():
        ours = twin.run_with_cache(**sample.inputs)[1]
        theirs = sample.bridge.run_with_cache(**sample.inputs)[1]
    assert set(theirs) <= set(ours)
    gate = theirs["blocks.0.mlp.in.hook_out"].chunk(2, -1)
    assert torch.allclose(ours["blocks.0.mlp.hook_pre"], gate[0], atol=1e-5)
    assert torch.allclose(ours["blocks.0.mlp.hook_pre_linear"], gate[1], atol=1e-5)
    # What the projection reads is read by gate and value.
    moved = [("blocks.1.mlp.in.hook_in", lambda value, hook: 0.5 * value)]
    with torch.no_grad(), twin.hooks(fwd_hooks=moved), sample.bridge.hooks(fwd_hooks=moved):
        changed, same = sample.run(twin), sample.run(sample.bridge)
    assert (changed - same).abs().max() < 1e-4 < (sample.run(twin) - same).abs().max()
    without = [("blocks.0.mlp.hook_pre", lambda value, hook: torch.zeros_like(value))]
    with twin.hooks(fwd_hooks=without), torch.no_grad():
        assert float(twin.run_with_cache(**sample.inputs)[1]["blocks.0.mlp.hook_post"].abs().max()) < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_rounding_of_a_closed_gate_refuses_no_mlp(seed):
    """With seed 3 a float32 GELU at -5 is off by a rounding of 5, more than a share of what is written."""
    assert ah.convert(zoo.build("ModernBertDecoderForCausalLM", seed=seed).bridge).banks
