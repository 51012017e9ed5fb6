"""Counts in bins against the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allheads.corpus.activation_bins import BINS, bin_counts, edges, even_bins, quantiles

_FLOATS = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(_FLOATS, min_size=1, max_size=50))
def test_every_value_is_between_the_ends_of_its_bin(values):
    counts = bin_counts(torch.tensor(values)[:, None])[0]
    assert int(counts.sum()) == len(values)
    ends = edges(-np.inf, np.inf)
    for value in values:
        at = int(bin_counts(torch.tensor([[value]]))[0].argmax())
        assert ends[at] <= value <= ends[at + 1]


def test_bins_are_half_octaves():
    ends = edges(-np.inf, np.inf)
    assert len(ends) == BINS + 1
    assert np.array_equal(ends, -ends[::-1])
    assert {1.0, 1.5, 2.0, 3.0, 2.0**-12, 1.5 * 2.0**11} <= set(ends.tolist())
    assert np.array_equal(np.sort(ends), ends)


def test_neurons_are_counted_apart():
    counts = bin_counts(torch.tensor([[1.0, -1.0], [1.2, 0.0]], dtype=torch.float64))
    assert counts.shape == (2, BINS)
    assert counts.sum(1).tolist() == [2, 2]
    assert counts[0].max() == 2 and counts[1].max() == 1


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_quantiles_are_near_those_of_the_values(scale):
    values = scale * torch.randn(4000, generator=torch.Generator().manual_seed(0)).double()
    counts = bin_counts(values[:, None])[0].numpy()
    shares = np.linspace(0, 1, 41)
    found = quantiles(counts, float(values.min()), float(values.max()), shares)
    exact = np.quantile(values.numpy(), shares)
    assert (np.diff(found) >= 0).all()
    assert found[[0, -1]] == pytest.approx(exact[[0, -1]])
    # At most a bin, which is half as wide as its lower end; and a bin around zero.
    assert (np.abs(found - exact) <= 0.5 * np.abs(exact) + 2.0**-11).all()
    assert np.median(np.abs(found - exact) / np.abs(exact)) < 0.05


def test_constants_and_two_values():
    for value in (0.0, -2.5):
        counts = bin_counts(torch.full((7, 1), value))[0].numpy()
        assert quantiles(counts, value, value, np.array([0.0, 0.3, 1.0])).tolist() == [value] * 3
        assert even_bins(counts, value, value, 5).sum() == 7
    counts = bin_counts(torch.tensor([[-1.0], [-1.0], [4.0]]))[0].numpy()
    assert quantiles(counts, -1.0, 4.0, np.array([0.0, 0.5, 1.0])).tolist() == [-1.0, -1.0, 4.0]
    assert even_bins(counts, -1.0, 4.0, 5).tolist() == [2.0, 0.0, 0.0, 0.0, 1.0]


def test_even_bins_keep_the_counts_and_their_place():
    values = torch.randn(3000, generator=torch.Generator().manual_seed(1)).double()
    counts = bin_counts(values[:, None])[0].numpy()
    lowest, highest = float(values.min()), float(values.max())
    found = even_bins(counts, lowest, highest, 20)
    exact = np.histogram(values.numpy(), 20, (lowest, highest))[0]
    assert found.sum() == pytest.approx(3000)
    assert (found >= 0).all()
    assert np.abs(np.cumsum(found) - np.cumsum(exact)).max() < 100
