"""To and from deepinv's physics, on stand-ins with its interface."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from hadamard.operators import Matrix, from_deepinv, to_deepinv
from tests.suites.operators import OperatorSuite


def kernel(dtype=torch.float64):
    return torch.randn(6, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))


class Real(nn.Module):
    """Images (B, 1, 2, 3) to data (B, 6)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("M", kernel())

    def A(self, x):
        return x.flatten(1) @ self.M.T

    def A_adjoint(self, y):
        return (y @ self.M).reshape(-1, 1, 2, 3)

    def A_dagger(self, y):
        return (y @ torch.linalg.inv(self.M).T).reshape(-1, 1, 2, 3)


class TwoChannels(nn.Module):
    """Complex images as (B, 2, 2, 3), multiplied by a complex matrix as deepinv's MRI does; no pseudo-inverse."""

    def __init__(self):
        super().__init__()
        self.register_buffer("real", kernel())
        self.register_buffer("imag", kernel().flip(0))

    def A(self, x):
        a, b = x[:, 0].flatten(1), x[:, 1].flatten(1)
        real, imag = a @ self.real.T - b @ self.imag.T, a @ self.imag.T + b @ self.real.T
        return torch.stack([real, imag], 1)

    def A_adjoint(self, y):
        a, b = y[:, 0], y[:, 1]
        real, imag = a @ self.real + b @ self.imag, b @ self.real - a @ self.imag
        return torch.stack([real, imag], 1).reshape(-1, 2, 2, 3)


class TestFromReal(OperatorSuite):
    dtypes = (torch.float64,)
    exact_dagger = True

    def operator(self):
        return from_deepinv(Real(), (1, 2, 3))

    def dense(self):
        return kernel()


class TestFromTwoChannels(OperatorSuite):
    dtypes = (torch.complex128,)

    def operator(self):
        return from_deepinv(TwoChannels(), (2, 2, 3), complex_channels=True)

    def dense(self):
        return torch.complex(kernel(), kernel().flip(0))


@pytest.fixture
def deepinv(monkeypatch):
    """A stand-in for deepinv.physics.LinearPhysics: an nn.Module that calls what it is given."""

    class LinearPhysics(nn.Module):
        def __init__(self, A, A_adjoint, img_size):
            super().__init__()
            self.forw, self.adj, self.img_size = A, A_adjoint, img_size

        def A(self, x, **kwargs):
            return self.forw(x, **kwargs)

        def A_adjoint(self, y, **kwargs):
            return self.adj(y, **kwargs)

        def A_dagger(self, y, **kwargs):
            raise AssertionError("the operator's own must be used")

    package, physics = ModuleType("deepinv"), ModuleType("deepinv.physics")
    physics.LinearPhysics = LinearPhysics
    monkeypatch.setitem(sys.modules, "deepinv", package)
    monkeypatch.setitem(sys.modules, "deepinv.physics", physics)


@pytest.mark.parametrize("complex_channels", [False, True])
def test_round_trip(deepinv, complex_channels):
    dtype = torch.complex128 if complex_channels else torch.float64
    op = Matrix(kernel(dtype), in_shape=(2, 3))
    physics = to_deepinv(op, complex_channels=complex_channels)
    assert physics.img_size == ((2, 2, 3) if complex_channels else (2, 3))
    back = from_deepinv(physics, physics.img_size, complex_channels=complex_channels)
    torch.testing.assert_close(back.to_dense(torch.float64), kernel(dtype))
    y = torch.randn(4, 6, dtype=dtype)
    torch.testing.assert_close(back.A_adjoint(y), op.A_adjoint(y))
    torch.testing.assert_close(back.A_dagger(y), op.A_dagger(y))


def test_physics_moves_the_operator(deepinv):
    physics = to_deepinv(Matrix(kernel())).to(torch.float32)
    assert physics.A(torch.ones(1, 6)).dtype == torch.float32


def test_absent_deepinv_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepinv", None)
    with pytest.raises(ImportError, match="to_deepinv needs deepinv: pip install deepinv"):
        to_deepinv(Matrix(kernel()))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: from_deepinv(object(), (1,)), TypeError, "physics must have a method A, got object"),
        (
            lambda: from_deepinv(Real(), (1, 2, 3), complex_channels=True),
            ValueError,
            r"in_shape must start with an axis of size 2 for complex_channels, got \(1, 2, 3\)",
        ),
        (
            lambda: from_deepinv(Real(), (1, 2, 3))(torch.ones(2, 3)),
            ValueError,
            r"x must have shape \(..., 1, 2, 3\), got \(2, 3\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
