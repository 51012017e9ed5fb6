"""What random rotations and random matrices compose to."""

from __future__ import annotations

import pytest
import torch

from allheads.weights.baseline import baseline, peakedness, variance

D = 24
SPECTRA = {
    "one": [1.0],
    "flat": [1.0] * 8,
    "all": [1.0] * D,
    "falling": [0.5**n for n in range(8)],
    "one and a rest": [1.0, *[0.2] * 7],
}


def _matrix(spectrum):
    """Rows of norm 1 in all with these singular values."""
    M = torch.zeros(1, len(spectrum), D, dtype=torch.float64)
    M[0, range(len(spectrum)), range(len(spectrum))] = torch.tensor(spectrum, dtype=torch.float64)
    return M / M.norm()


@pytest.mark.parametrize("first", SPECTRA)
@pytest.mark.parametrize("second", SPECTRA)
def test_rotations(first, second):
    """The mean over rotations, for any two spectra."""
    generator = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(4000, D, D, generator=generator, dtype=torch.float64))
    Q = turns.Q * turns.R.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    W, R = _matrix(SPECTRA[first]), _matrix(SPECTRA[second])
    scores = (W @ Q @ R.mT).norm(dim=(1, 2))
    expected = float(baseline(peakedness(W), peakedness(R), D))
    assert float(scores.square().mean()) == pytest.approx(1 / D, rel=0.05)
    assert expected == pytest.approx(float(scores.mean()), abs=4 * float(scores.std()) / 4000**0.5 + 1e-3 * expected)
    assert expected <= D**-0.5


def test_variance_is_exact():
    """The Beta distribution has the second moment of the squared score that rotations give."""
    generator = torch.Generator().manual_seed(1)
    Q = torch.linalg.qr(torch.randn(20000, 6, 6, generator=generator, dtype=torch.float64)).Q
    first, second = (
        torch.tensor(row, dtype=torch.float64) for row in ([0.7, 0.2, 0.1, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0])
    )
    squared = torch.einsum("i,nij,j->n", first, Q.square(), second)
    expected = float(variance(first.square().sum(), second.square().sum(), 6))
    assert float(squared.var()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("rank", "width"), [(1, 1), (1, 8), (8, 1), (4, 8)])
def test_gaussian_matrices(rank, width):
    """Entries drawn at random, as Elhage et al. do: the excess is 0 on average, for every shape."""
    generator = torch.Generator().manual_seed(2)
    W, R = (torch.randn(20000, n, 64, generator=generator) for n in (rank, width))
    W, R = (M / M.norm(dim=(1, 2), keepdim=True) for M in (W, R))
    scores = (W @ R.mT).norm(dim=(1, 2)).double()
    excess = scores - baseline(peakedness(W), peakedness(R), 64)
    assert abs(float(excess.mean())) < 4 * float(excess.std()) / 20000**0.5
