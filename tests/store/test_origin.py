"""Fingerprints tell what has changed since a model was loaded or converted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import allheads as ah
from allheads.models.origin import fingerprint, state

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool)
#: Larger and smaller than a row of words, and than a block of rows.
SHAPES = ((), (3,), (5000,), (64, 64), (300, 1030), (2, 70, 90))


def _tensor(shape, dtype, seed=0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn > 0 if dtype == torch.bool else (100 * drawn).to(dtype)


CHANGES = {
    "negated": lambda t: -t,
    "flipped": lambda t: t.flip(0),
    "rolled": lambda t: t.roll(1, -1),
    "one row negated": lambda t: torch.cat([-t[:1], t[1:]]),
    "two entries swapped": lambda t: torch.cat([t.flatten()[:2].flip(0), t.flatten()[2:]]).view_as(t),
    "transposed": lambda t: t.T if t.ndim == 2 and t.shape[0] == t.shape[1] else t + 1,
    "transposed and laid out": lambda t: t.T.contiguous() if t.ndim == 2 and t.shape[0] == t.shape[1] else t + 1,
    "zero": torch.zeros_like,
    "halved": lambda t: t / 2,
}


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(shape, dtype, change):
    tensor = _tensor(shape, dtype).abs() + 1  # no sign may make up for another
    assert fingerprint(CHANGES[change](tensor)) != fingerprint(tensor)


@given(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.data())
def test_one_entry_is_enough(shape, dtype, data):
    tensor = _tensor(shape, dtype)
    changed = tensor.clone()
    where = data.draw(st.integers(0, tensor.numel() - 1))
    entry = changed.view(-1)[where]
    changed.view(-1)[where] = ~entry if dtype == torch.bool else -entry - 1
    assert fingerprint(changed) != fingerprint(tensor)
    assert fingerprint(tensor.clone()) == fingerprint(tensor)


def test_slices_and_transposes_have_one_too():
    tensor = _tensor((40, 50), torch.float32)
    for view in (tensor[1:, 1:], tensor.T, tensor[:, ::2].T, tensor[3, 1:]):
        before = fingerprint(view)
        assert fingerprint(view.clone(memory_format=torch.preserve_format)) == before
        tensor[3, 7] += 1
        assert fingerprint(view) != before or not bool((view == tensor[3, 7]).any())


def test_the_bridge_does_not_show_in_names(any_kind):
    source = any_kind("llama")
    twin = ah.convert(source)
    names = set(state(twin))
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.gate_proj.weight"} <= names
    assert names == set(state(source))
    with twin.banks[1].edit():
        pass
    assert "blocks.1.mlp.edited.W_Q" in state(twin)


def test_loading_and_converting_remember(model_folder, monkeypatch):
    folder = model_folder()
    monkeypatch.chdir(folder.parent)
    source = ah.load(folder.name)
    assert source.loaded_from.name == str(folder)  # found again from anywhere
    with torch.no_grad():
        source.blocks[0].mlp.original_component.up_proj.weight.data[0, 0] += 1.0
    twin = ah.convert(source)
    now = state(twin)
    changed = {name for name, known in twin.origin.state.items() if known != fingerprint(now[name])}
    assert changed == {"model.layers.0.mlp.up_proj.weight"}
    assert twin.origin.name == str(folder)


def test_other_bridges_have_no_name(any_kind):
    twin = ah.convert(any_kind("llama", torch.bfloat16))
    assert (twin.origin.name, twin.origin.dtype) == (None, torch.bfloat16)
    assert all(twin.origin.state.values())
