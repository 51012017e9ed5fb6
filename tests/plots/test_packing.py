"""Packed patterns are what they were, to within what is stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allheads.plots.packing import MOST_ERROR, pack, unpack


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), sharp=st.floats(0.0, 12.0), seed=st.integers(0, 99))
def test_a_pattern_comes_back_within_the_stated_error(rows, columns, sharp, seed):
    scores = sharp * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    pattern = scores.softmax(-1)
    text, stated = pack(pattern)
    error = np.abs(unpack(text) / np.float32(255) - pattern.numpy()).max()
    assert error == pytest.approx(stated, abs=1e-7)
    assert stated <= MOST_ERROR
    if rows * columns <= 128 * 128:
        assert stated <= 0.5 / 255 + 1e-6


def test_long_texts_leave_small_weights_out_and_stay_within_the_error():
    pattern = torch.full((200, 200), 0.0049)
    pattern[:, 0] = 1 - 199 * 0.0049
    text, error = pack(pattern)
    assert (unpack(text)[:, 1:] == 0).all() and (unpack(text)[:, 0] > 0).all()
    assert error == pytest.approx(0.0049, abs=1e-6)


def test_columns_beyond_a_byte():
    pattern = torch.zeros(2, 700)
    pattern[0, 699] = pattern[1, 256] = 1.0
    levels = unpack(pack(pattern)[0])
    assert levels[0, 699] == levels[1, 256] == 255 and levels.sum() == 510


def test_rows_with_more_kept_weights_than_a_byte_counts():
    pattern = torch.full((1, 400), 0.5)
    assert (unpack(pack(pattern)[0]) == 128).all()


def test_weights_outside_0_to_1_are_shown_as_0_or_1():
    text, error = pack(torch.tensor([[-0.5, 1.75], [0.0, 0.0]]))
    assert unpack(text).tolist() == [[0, 255], [0, 0]] and error == pytest.approx(0.75)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    pattern = torch.eye(5, dtype=dtype)
    assert (unpack(pack(pattern)[0]) == 255 * np.eye(5)).all()
