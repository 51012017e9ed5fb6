"""The real SmolLM2: a twin of a few kilobytes."""

from __future__ import annotations

import torch

import allheads as ah
from allheads.models.origin import state


def test_a_twin_takes_kilobytes(smollm_twin, tmp_path):
    path = ah.save(smollm_twin, tmp_path / "twin")
    assert sum(file.stat().st_size for file in path.iterdir()) < 100_000
    again = ah.load(path)
    tokens = smollm_twin.to_tokens("The twin gives the same logits.")
    assert torch.equal(again.to_tokens("The twin gives the same logits."), tokens)
    with torch.no_grad():
        assert torch.equal(again(tokens), smollm_twin(tokens))
    assert [bank.gates for bank in again.banks] == [bank.gates for bank in smollm_twin.banks]
    kept = [[(layer.location, layer.domain) for layer in twin.layers] for twin in (again, smollm_twin)]
    assert kept[0] == kept[1]
    # Nothing is in memory twice.
    memory = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state(again).values()
    }
    assert sum(memory.values()) < 1.01 * 538e6
    with again.banks[3].edit() as heads:
        heads.W_O[812] = 0.0
    ah.save(again, path)
    assert 30e6 < sum(file.stat().st_size for file in path.iterdir()) < 40e6
