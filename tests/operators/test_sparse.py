"""Sparse matrices as operators and entries of low-rank products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard.operators import SparseMatrix, sampled_product
from tests.suites.operators import OperatorSuite


def sparse(m, n, *, dtype=torch.float64, seed=0, density=0.4):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, dtype=dtype, generator=g) * (torch.rand(m, n, generator=g) < density)


class TestSparseMatrix(OperatorSuite):
    def operator(self):
        return SparseMatrix(sparse(5, 7).to_sparse_csr())

    def dense(self):
        return sparse(5, 7)


class TestComplexSparseMatrix(OperatorSuite):
    def operator(self):
        return SparseMatrix(sparse(6, 4, dtype=torch.complex128).to_sparse_csr())

    def dense(self):
        return sparse(6, 4, dtype=torch.complex128)


class TestEmptyRowsAndColumns(OperatorSuite):
    def operator(self):
        return SparseMatrix.from_entries(
            torch.tensor([[3, 1, 1], [0, 4, 2]]), torch.tensor([1.0, 2.0, 3.0]).double(), (5, 6)
        )

    def dense(self):
        M = torch.zeros(5, 6, dtype=torch.float64)
        M[3, 0], M[1, 4], M[1, 2] = 1, 2, 3
        return M


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 1000), density=st.floats(0.1, 1.0))
def test_entries_in_any_order(m, n, seed, density):
    M = sparse(m, n, seed=seed, density=density)
    M[0, 0] = 1.0
    indices = M.nonzero().T
    order = torch.randperm(indices.shape[1], generator=torch.Generator().manual_seed(seed))
    op = SparseMatrix.from_entries(indices[:, order], M[*indices][order], (m, n))
    torch.testing.assert_close(op.to_dense(), M)
    torch.testing.assert_close(op.csr_adjoint.to_dense(), M.T)
    assert op.crow.dtype == torch.int32


def test_the_matrix_follows_its_module():
    op = SparseMatrix(sparse(5, 7).to_sparse_csr())
    op(torch.ones(7, dtype=torch.float64))
    assert op.to(torch.float32)(torch.ones(7)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_sampled_product_is_the_product_at_those_places(dtype):
    M = sparse(6, 5, dtype=dtype)
    U, V = torch.randn(6, 3, dtype=dtype), torch.randn(5, 3, dtype=dtype)
    got = sampled_product(SparseMatrix(M.to_sparse_csr()), U, V)
    torch.testing.assert_close(got, (U @ V.T)[M != 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_sampled_product_gradient(dtype):
    pattern = SparseMatrix(sparse(6, 5, dtype=dtype).to_sparse_csr())
    U = torch.randn(6, 3, dtype=dtype, requires_grad=True)
    V = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(lambda U, V: sampled_product(pattern, U, V), (U, V))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: SparseMatrix(torch.eye(2)),
            ValueError,
            r"matrix must be a torch.sparse_csr matrix, got torch.strided",
        ),
        (lambda: SparseMatrix("csr"), ValueError, "matrix must be a torch.sparse_csr matrix, got <class 'str'>"),
        (
            lambda: SparseMatrix((torch.eye(2) * torch.nan).to_sparse_csr()),
            ValueError,
            r"matrix.values\(\) must be finite",
        ),
        (
            lambda: SparseMatrix.from_entries(torch.tensor([[0, 2], [0, 0]]), torch.ones(2), (2, 2)),
            ValueError,
            r"indices must hold rows in \[0, 2\), got 0..2",
        ),
        (
            lambda: SparseMatrix.from_entries(torch.tensor([[0, 1], [0, -1]]), torch.ones(2), (2, 2)),
            ValueError,
            r"indices must hold columns in \[0, 2\), got -1..0",
        ),
        (
            lambda: SparseMatrix.from_entries(torch.tensor([[1, 0, 1], [0, 0, 0]]), torch.ones(3), (2, 2)),
            ValueError,
            "indices must name every place once, got duplicates",
        ),
        (
            lambda: SparseMatrix.from_entries(torch.ones(2, 2), torch.ones(2), (2, 2)),
            TypeError,
            "indices must have an integer dtype, got torch.float32",
        ),
        (
            lambda: SparseMatrix.from_entries(torch.tensor([[0], [0]]), torch.ones(2), (2, 2)),
            ValueError,
            r"values must have shape \(..., 1\), got \(2,\)",
        ),
        (
            lambda: sampled_product(_eye(), torch.ones(3, 1), torch.ones(2, 1)),
            ValueError,
            r"U must have shape \(..., 2, \*\), got \(3, 1\)",
        ),
        (
            lambda: sampled_product(_eye(), torch.ones(2, 1), torch.ones(2, 2)),
            ValueError,
            r"V must have shape \(..., 2, 1\), got \(2, 2\)",
        ),
        (
            lambda: sampled_product(_eye(), torch.ones(2, 1).double(), torch.ones(2, 1).double()),
            ValueError,
            "pattern and U must have the same dtype, got torch.float32 and torch.float64",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def _eye():
    return SparseMatrix(torch.eye(2).to_sparse_csr())
