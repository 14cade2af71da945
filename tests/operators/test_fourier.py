"""Fourier operators against their matrices."""

import math
import sys

import numpy as np
import pytest
import torch

from hadamard.operators import Coils, Fourier, Masked, NonUniformFourier
from tests.suites.operators import OperatorSuite


def dft(n, centred):
    k = np.arange(n) - (n // 2 if centred else 0)
    return torch.from_numpy(np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n))


class TestFourier(OperatorSuite):
    exact_dagger = True

    def operator(self):
        return Fourier((3, 4))

    def dense(self):
        return torch.kron(dft(3, True), dft(4, True))


class TestUncentredFourier(TestFourier):
    def operator(self):
        return Fourier((2, 3), dims=(-1,), centred=False)

    def dense(self):
        return torch.kron(torch.eye(2, dtype=torch.complex128), dft(3, False))


class TestMasked(OperatorSuite):
    def operator(self):
        return Masked(Fourier((4,), (-1,)), torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64))

    def dense(self):
        return torch.diag(torch.tensor([1.0, 0, 0, 1], dtype=torch.complex128)) @ dft(4, True)


def points(d, m, seed=0):
    return (torch.rand(d, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * math.pi


def waves(k, shape):
    """Rows exp(-i <k_m, r>) / sqrt(number of r), with r counted from the middle of the grid."""
    r = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) - n // 2 for n in shape]).reshape(-1, len(shape))
    return torch.exp(-1j * (k.T @ r.T)) / math.sqrt(len(r))


class TestNonUniformPlane(OperatorSuite):
    tol = 1e-11

    def operator(self):
        return NonUniformFourier(points(2, 9), (5, 4))

    def dense(self):
        return waves(points(2, 9), (5, 4))


class TestNonUniformLine(OperatorSuite):
    tol = 1e-11

    def operator(self):
        return NonUniformFourier(points(1, 6), (7,))

    def dense(self):
        return waves(points(1, 6), (7,))


class TestNonUniformSpace(OperatorSuite):
    tol = 1e-11

    def operator(self):
        return NonUniformFourier(points(3, 5), (3, 2, 4))

    def dense(self):
        return waves(points(3, 5), (3, 2, 4))


@pytest.mark.parametrize("n", [8, 9])
def test_points_of_a_grid_are_the_grids_transform(n):
    line = (torch.arange(n, dtype=torch.float64) - n // 2) * (2 * math.pi / n)
    op = NonUniformFourier(torch.cartesian_prod(line, line).T, (n, n))
    x = torch.randn(2, n, n, dtype=torch.complex128)
    torch.testing.assert_close(op(x).reshape(2, n, n), Fourier((n, n))(x))


def test_precision_follows_the_input_or_is_given():
    x, k = torch.randn(32, 32, dtype=torch.complex128), points(2, 200)
    exact = waves(k, (32, 32)) @ x.flatten()
    for op, u, least, most in (
        (NonUniformFourier(k, (32, 32)), x, 0, 1e-11),
        (NonUniformFourier(k, (32, 32)), x.to(torch.complex64), 1e-8, 1e-5),
        (NonUniformFourier(k, (32, 32), tol=1e-3), x, 1e-7, 1e-2),
    ):
        y = op(u)
        assert y.dtype == u.dtype
        assert least <= float((y - exact).norm() / exact.norm()) < most


def test_pseudo_inverse_recovers_from_enough_points():
    op = NonUniformFourier(points(2, 400), (8, 8))
    x = torch.randn(8, 8, dtype=torch.complex128)
    torch.testing.assert_close(op.A_dagger(op(x)), x, rtol=0, atol=1e-4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("points", "shape", "error", "message"),
    [
        (torch.zeros(2, 3), (4,), ValueError, r"points must have shape \(..., 1, \*\), got \(2, 3\)"),
        (torch.zeros(4, 3), (2, 2, 2, 2), ValueError, "shape must have 1, 2 or 3 sizes"),
        (torch.full((1, 3), 4.0), (4,), ValueError, "points must be >= -3.14.* and <= 3.14.*, got 4"),
        (torch.full((1, 3), float("nan")), (4,), ValueError, "points must be finite"),
        (torch.zeros(1, 3, dtype=torch.int64), (4,), TypeError, "points must have a floating dtype"),
    ],
)
def test_bad_points(points, shape, error, message):
    with pytest.raises(error, match=message):
        NonUniformFourier(points, shape)


@pytest.mark.bad_input
def test_bad_data_and_absence(monkeypatch):
    op = NonUniformFourier(torch.zeros(1, 3), (4,))
    with pytest.raises(ValueError, match=r"x must have shape \(..., 4\), got \(3,\)"):
        op(torch.zeros(3))
    with pytest.raises(ValueError, match="tol must be > 0 and < 1, got 2"):
        NonUniformFourier(torch.zeros(1, 3), (4,), tol=2)
    monkeypatch.setitem(sys.modules, "pytorch_finufft.functional", None)
    with pytest.raises(ImportError, match=r"^NonUniformFourier needs finufft: pip install 'hadamard\[imaging\]'$"):
        NonUniformFourier(torch.zeros(1, 3), (4,))


SENS = torch.randn(2, 1, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))


class TestCoils(OperatorSuite):
    def operator(self):
        return Coils(SENS)

    def dense(self):
        return torch.cat([torch.diag(s[0]) for s in SENS])


class TestCoilsOfASeries(OperatorSuite):
    def operator(self):
        return Coils(SENS, frames=2)

    def dense(self):
        return torch.cat([torch.block_diag(torch.diag(s[0]), torch.diag(s[0])) for s in SENS])
