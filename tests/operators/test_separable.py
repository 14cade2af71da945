"""Matrices along the axes against their Kronecker product, and the bicubic reduction against torch's."""

from functools import reduce

import numpy as np
import pytest
import torch

from hadamard.operators import Separable, bicubic
from tests.suites.operators import OperatorSuite


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class TestSeparable(OperatorSuite):
    exact_dagger = True

    def matrices(self):
        return [draw(2, 3), draw(5, 4, seed=1)]

    def operator(self):
        return Separable(self.matrices())

    def dense(self):
        return reduce(torch.kron, self.matrices())


class TestThreeComplexAxes(TestSeparable):
    dtypes = (torch.complex128,)

    def matrices(self):
        return [draw(2, 3, dtype=torch.complex128), draw(2, 2, seed=1), draw(1, 3, dtype=torch.complex128, seed=2)]

    def dense(self):
        return reduce(torch.kron, [M.to(torch.complex128) for M in self.matrices()])


class TestDeficient(TestSeparable):
    def matrices(self):
        return [draw(4, 1) @ draw(1, 3, seed=1), draw(2, 2, seed=2)]


class TestBicubic(OperatorSuite):
    exact_dagger = True

    def operator(self):
        return bicubic(2, (8, 6), dtype=torch.float64)

    def dense(self):
        """Mirror the picture, resize it by torch, and cut the middle out."""
        pictures = torch.eye(48, dtype=torch.float64).reshape(48, 8, 6)
        mirrored = torch.from_numpy(np.pad(pictures.numpy(), ((0, 0), (8, 8), (6, 6)), mode="symmetric"))
        small = resized(mirrored, 2)
        return small[:, 4:8, 3:6].reshape(48, -1).T


def resized(x, factor, antialias=True):
    size = [n // factor for n in x.shape[-2:]]
    return torch.nn.functional.interpolate(x[:, None], size=size, mode="bicubic", antialias=antialias)[:, 0]


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_truncated_reduction_is_torchs(factor):
    x = draw(2, 24, 36)
    op = bicubic(factor, (24, 36), boundary="truncate", dtype=torch.float64)
    torch.testing.assert_close(op(x), resized(x, factor))


def test_without_antialiasing_it_is_torchs_other_kernel():
    x = draw(2, 24, 36)
    op = bicubic(2, (24, 36), a=-0.75, antialias=False, dtype=torch.float64)
    torch.testing.assert_close(op(x)[:, 1:-1, 1:-1], resized(x, 2, antialias=False)[:, 1:-1, 1:-1])


def test_boundaries_differ_by_axis_and_keep_constants():
    for boundary in ("symmetric", "circular", "truncate"):
        torch.testing.assert_close(bicubic(4, (8, 8), boundary=boundary)(torch.ones(8, 8)), torch.ones(2, 2))
    op = bicubic(2, (8, 12), boundary=("symmetric", "circular"))
    x = draw(8, 12).float()
    torch.testing.assert_close(op(x.roll(4, -1)), op(x).roll(2, -1))
    assert not torch.allclose(op(x.roll(4, -2)), op(x).roll(2, -2))
    torch.testing.assert_close(op(x.flip(-2)), op(x).flip(-2))


def test_solve_and_gradients_of_the_matrices():
    A, B, y = draw(3, 3), draw(2, 2, seed=1), draw(4, 3, 2, seed=2)
    op = Separable([A, B])
    torch.testing.assert_close(op(op.solve(y)), y)
    assert torch.autograd.gradcheck(
        lambda A, B, y: Separable([A, B]).solve(y), (A.requires_grad_(), B.requires_grad_(), y.requires_grad_())
    )
    assert torch.autograd.gradcheck(lambda A, B, y: Separable([A, B])(y), (A, B, y))


def test_small_singular_values_count_as_zero_on_request():
    op = Separable([torch.diag(torch.tensor([1.0, 1e-3]))])
    torch.testing.assert_close(op.A_dagger(torch.ones(2), rtol=0.03), torch.tensor([1.0, 0.0]))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Separable([]), ValueError, "matrices must hold at least one matrix, got none"),
        (lambda: Separable([torch.eye(2), torch.ones(2)]), ValueError, r"matrices\[1\] must have 2 dimension"),
        (lambda: Separable([torch.eye(2)])(torch.ones(3)), ValueError, r"x must have shape \(..., 2\)"),
        (lambda: Separable([torch.ones(1, 2)]).solve(torch.ones(1)), ValueError, "solve needs square matrices"),
        (lambda: bicubic(2, (4, 5)), ValueError, r"size must hold multiples of factor=2, got \(4, 5\)"),
        (lambda: bicubic(2, (4, 4), boundary="zero"), ValueError, "boundary must be one of"),
        (lambda: bicubic(2, (4, 4), boundary=("circular",)), ValueError, "boundary must have one entry for each"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_inverse_as_an_operator():
    op = bicubic(2, (8, 12), boundary=("symmetric", "circular"), dtype=torch.float64)
    y = draw(3, 4, 6)
    torch.testing.assert_close(op.pinv()(y), op.A_dagger(y))
    torch.testing.assert_close(op(op.pinv()(y)), y)
    assert op.pinv().in_shape == op.out_shape
