"""Masks in weights: the leak never exceeds its bound, the choice of omega is right, bad masks are refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allheads.errors import AllHeadsError
from allheads.pure.runner import Heads
from allheads_labs.theorems.cases_masks import mask_error
from allheads_labs.theorems.masks import MaskedScores, causal, for_scores, leak_bound, omega_within, sliding_window


def random_case(seed: int, length: int, d_head: int, tokens: int, reach: float, dtype: torch.dtype):
    """Random heads whose scores span about ``reach``, and a random mask without empty rows."""
    draw = torch.Generator().manual_seed(seed)
    d_model = 12
    x = torch.randn(length, d_model, generator=draw)
    size = math.sqrt(reach) / (d_model * d_head) ** 0.25
    heads = Heads(
        W_Q=size * torch.randn(2, d_model, d_head, generator=draw),
        W_K=size * torch.randn(2, d_model, d_head, generator=draw),
        W_O=torch.randn(2, d_head, d_model, generator=draw),
        bias_keys=size * torch.randn(2, tokens, d_head, generator=draw) if tokens else None,
        bias_offsets=torch.randn(2, tokens, generator=draw) if tokens else None,
        scale=d_head**-0.5,
    )
    share = float(torch.rand((), generator=draw))
    seen = torch.rand(length, length + tokens, generator=draw) < share
    seen[torch.arange(length), torch.randint(length + tokens, (length,), generator=draw)] = True
    return x.to(dtype), heads.to(dtype), seen


@settings(max_examples=1000, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 24),
    st.integers(1, 9),
    st.integers(0, 4),
    st.floats(0.1, 100.0),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_error_never_exceeds_its_bound(seed, length, d_head, tokens, reach, dtype):
    error, bound = mask_error(*random_case(seed, length, d_head, tokens, reach, dtype))
    assert error <= bound


@pytest.mark.parametrize("omega", [2.0, 6.0, 12.0, 25.0])
def test_the_leak_is_bounded_and_is_there(omega):
    x, heads, _ = random_case(0, 20, 4, 0, 2.0, torch.float64)
    seen = causal(20)
    error, _ = mask_error(x, heads, seen, omega)
    chosen = for_scores(x, heads, seen)
    spread = chosen.value - math.log(19 / (6 * torch.finfo(torch.float64).eps))
    bound = leak_bound(omega, spread, 19)
    assert error <= bound + 1e-13
    assert error >= 1e-5 * bound


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "seen", [causal(20), sliding_window(20, 3), torch.eye(20).bool()], ids=["causal", "window", "self"]
)
def test_the_chosen_omega_is_good_and_large_ones_are_not(seen, dtype, limit):
    worst = dict.fromkeys((None, 1000.0, 10000.0), 0.0)
    for seed in range(20):
        x, heads, _ = random_case(seed, 20, 8, 0, 4.0, dtype)
        for omega in worst:
            worst[omega] = max(worst[omega], mask_error(x, heads, seen, omega)[0])
    assert worst[None] <= limit
    if dtype == torch.float32 and seen.sum() > 20:
        assert worst[1e3] > 3e-6
        assert worst[1e4] > 5e-5
        assert worst[1e4] > 20 * worst[None]


def test_a_tolerance_is_kept_or_refused_with_the_best():
    double, single = (MaskedScores(3.0, 9.0, 20, 21, 8, dtype) for dtype in (torch.float64, torch.float32))
    loose, tight = (omega_within(tolerance, double) for tolerance in (1e-3, 1e-9))
    assert loose.bound <= 1e-3 and tight.bound <= 1e-9
    assert loose.value < tight.value
    best = omega_within(None, single)
    with pytest.raises(AllHeadsError, match=f"{best.bound:.1e} or more"):
        omega_within(1e-9, single)
    # Close to the best there is an omega that keeps the tolerance, though half of it as leak would not do.
    assert omega_within(1.05 * best.bound, single).bound <= 1.05 * best.bound


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_scores_must_be_finite(value):
    with pytest.raises(AllHeadsError, match="finite scores"):
        omega_within(None, MaskedScores(value, 1.0, 1, 2, 1, torch.float32))


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (torch.eye(5), "boolean mask"),
        (torch.eye(5).bool()[0], r"\[query key\] of shape \(5, 5\)"),
        (torch.eye(4).bool(), r"\[query key\] of shape \(5, 5\)"),
        (torch.eye(5).bool() & (torch.arange(5) > 1), r"nothing in rows \[0, 1\]"),
    ],
)
def test_bad_masks_are_refused(seen, reason):
    x, heads, _ = random_case(0, 5, 2, 0, 1.0, torch.float64)
    with pytest.raises(AllHeadsError, match=reason):
        mask_error(x, heads, seen)


@pytest.mark.parametrize("omega", [1e39, math.nan, -1.0])
def test_an_omega_that_overflows_is_refused(omega):
    x, heads, seen = random_case(0, 5, 2, 0, 1.0, torch.float32)
    with pytest.raises(AllHeadsError, match=r"an omega that torch\.float32 holds"):
        mask_error(x, heads, seen, omega)
