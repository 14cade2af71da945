"""The space of the rows: exact inner products, combinations, factors, coordinates."""

import pytest
import torch

from hadamard.lowrank import combine, gram, gram_cholesky, gram_coordinates

D = torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, D, torch.complex64])
@pytest.mark.parametrize("n", [3, 40_000])
def test_gram_is_exact_and_streams(dtype, n, generator):
    X, Y = (torch.randn(2, k, n, generator=generator).to(dtype) for k in (4, 3))
    wide = torch.complex128 if dtype.is_complex else D
    got = gram(X, Y)
    assert got.dtype == wide
    torch.testing.assert_close(got, X.to(wide) @ Y.to(wide).mH, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(gram(X), X.to(wide) @ X.to(wide).mH, rtol=1e-12, atol=1e-10)


def test_pieces_add(generator):
    X = torch.randn(5, 70, generator=generator)
    torch.testing.assert_close(gram(X[:, :30]) + gram(X[:, 30:]), gram(X))


def test_gradient(generator):
    X = torch.randn(3, 5, dtype=D, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(gram, (X,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, D])
def test_combine(dtype, generator):
    X, c = torch.randn(4, 300, generator=generator).to(dtype), torch.randn(2, 4, dtype=D, generator=generator)
    for k in (c, c[0]):
        got = combine(k, X)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), k @ X.double(), rtol=0, atol=10 * torch.finfo(dtype).eps)


def test_unused_rows_are_not_looked_at():
    X = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]])
    assert combine(torch.tensor([3.0, 0.0]), X).tolist() == [3.0, 6.0]
    assert combine(torch.zeros(2), X).tolist() == [0.0, 0.0]


def test_factor(generator):
    K = gram(torch.randn(3, 5, 20, generator=generator))
    L = gram_cholesky(K, 0.1)
    torch.testing.assert_close(L @ L.mT, K + 0.1 * torch.eye(5, dtype=D))
    assert torch.equal(L, L.tril())


@pytest.mark.parametrize("ridge", [1e-3, 1e-30])
def test_factor_of_equal_rows(ridge):
    K = gram(1e6 * torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).expand(6, 50))
    L = gram_cholesky(K, ridge)
    torch.testing.assert_close(L @ L.mT, K, rtol=1e-12, atol=1e-3)


@pytest.mark.parametrize("rank", [0, 2, 4])
def test_coordinates(rank, generator):
    X = torch.randn(4, rank, dtype=D, generator=generator) @ torch.randn(rank, 30, dtype=D, generator=generator)
    Z, B = gram_coordinates(X @ X.mT)
    assert Z.shape == (4, rank)
    torch.testing.assert_close(Z @ Z.mT, X @ X.mT)
    torch.testing.assert_close(B @ X @ (B @ X).mT, torch.eye(rank, dtype=D))
    torch.testing.assert_close(Z @ B @ X, X)
    assert (Z.square().sum(0).diff() <= 0).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda X: gram(X[0]), ValueError, r"X must have shape \(..., \*, \*\), got \(3,\)"),
        (lambda X: gram(X, X[:, :2]), ValueError, r"Y must have shape \(..., \*, 3\), got \(2, 2\)"),
        (lambda X: combine(X[0], X), ValueError, r"coefficients must have shape \(..., 2\), got \(3,\)"),
        (lambda X: gram_cholesky(gram(X), 0.0), ValueError, "ridge must be > 0, got 0.0"),
        (lambda X: gram_cholesky(-gram(X), 0.1), ValueError, "K must be positive semidefinite"),
        (lambda X: gram_coordinates(X @ X.mT), TypeError, "K must have dtype torch.float64, got torch.float32"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 3))
