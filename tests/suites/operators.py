"""The conformance suite of linear operators.

A new operator's test says how to build it, in double precision, and its dense form::

    class TestMine(OperatorSuite):
        def operator(self):
            return Mine(...)

        def dense(self):
            return torch.tensor(...)
"""

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hadamard.operators import LinearOperator, operator_norm


class OperatorSuite(ABC):
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.complex128)
    """Types of input that the operator takes."""

    exact_dagger = False
    """Whether ``A_dagger`` is the Moore-Penrose inverse."""

    tol = 1e-12

    @abstractmethod
    def operator(self) -> LinearOperator:
        """Build it, with constants in double precision; small, for every entry of the dense form is looked at."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix that it is, acting on flattened tensors."""

    def test_dense_form(self):
        for dtype in self.dtypes:
            self._close(self.operator().to_dense(dtype), self.dense())

    def test_adjoint_dense_form(self):
        op = self.operator()
        for dtype in self._out_dtypes():
            rows = torch.eye(self.dense().shape[0], dtype=dtype).reshape(-1, *op.out_shape)
            self._close(op.A_adjoint(rows).reshape(len(rows), -1).mT, self.dense().mH)

    def test_dot(self):
        op = self.operator()
        for dtype, out in zip(self.dtypes, self._out_dtypes()):
            for seed in range(3):
                x, y = self._random(op.in_shape, dtype, seed), self._random(op.out_shape, out, seed + 10)
                left, right = (op.A(x).conj() * y).sum(), (x.conj() * op.A_adjoint(y)).sum()
                if not left.is_complex() or not right.is_complex():  # over the reals the real part is the product
                    left, right = left.real, right.real
                self._close(left, right)

    def test_linearity(self):
        op = self.operator()
        for dtype, out in zip(self.dtypes, self._out_dtypes()):
            a = 0.3 - 1.7j if dtype.is_complex else -1.7
            x, z = self._random(op.in_shape, dtype, 0), self._random(op.in_shape, dtype, 1)
            self._close(op.A(a * x + z), a * op.A(x) + op.A(z))
            y, w = self._random(op.out_shape, out, 2), self._random(op.out_shape, out, 3)
            self._close(op.A_adjoint(a * y + w), a * op.A_adjoint(y) + op.A_adjoint(w))

    def test_batch(self):
        op = self.operator()
        for method, shape, dtypes in self._directions(op):
            for dtype in dtypes:
                u = self._random((2, 3, *shape), dtype, 0)
                whole = method(u)
                assert whole.shape[:2] == (2, 3)
                self._close(whole[1, 2], method(u[1, 2]))
                self._close(whole[1], method(u[1]))

    def test_strides_do_not_matter_and_input_is_kept(self):
        op = self.operator()
        for method, shape, dtypes in self._directions(op):
            for dtype in dtypes:
                u = self._random((2, *shape), dtype, 0)
                strided = torch.stack([u, u], dim=-1)[..., 0]
                self._close(method(strided), method(u))
                self._close(strided, u)

    def test_dtype(self):
        single = self.operator()._apply(_single)
        for dtype in self.dtypes:
            x = self._random(single.in_shape, dtype, 0)
            y, want = single.A(_single(x)), self.operator().A(x)
            assert y.dtype == _single(want).dtype
            assert torch.allclose(y, _single(want), rtol=1e-4, atol=1e-4 * float(want.abs().max()))
            assert single.A_adjoint(y).dtype in (torch.float32, torch.complex64)

    def test_gradient_is_the_adjoint(self):
        op = self.operator()
        for dtype, out in zip(self.dtypes, self._out_dtypes()):
            x, y = self._random((2, *op.in_shape), dtype, 0).requires_grad_(), self._random((2, *op.out_shape), out, 1)
            (gradient,) = torch.autograd.grad(op.A(x), x, y)
            back = op.A_adjoint(y)
            self._close(gradient, back if dtype.is_complex else back.real)

    def test_gradcheck(self):
        op = self.operator()
        for method, shape, dtypes in self._directions(op):
            for dtype in dtypes:
                u = self._random(shape, dtype, 0).requires_grad_()
                assert torch.autograd.gradcheck(method, (u,), fast_mode=True)
                assert torch.autograd.gradgradcheck(method, (u,), fast_mode=True)

    def test_gram(self):
        op, M = self.operator(), self.dense()
        x = self._random(op.in_shape, self.dtypes[-1], 0)
        want = (M.mH @ M).to(torch.complex128) @ x.reshape(-1).to(torch.complex128)
        self._close(op.gram(x).reshape(-1).to(torch.complex128), want)

    def test_norm(self):
        want = float(torch.linalg.matrix_norm(self.dense(), 2))
        assert abs(operator_norm(self.operator(), tol=1e-8) - want) <= 1e-6 * want

    def test_moore_penrose(self):
        op, M = self.operator(), self.dense().to(torch.complex128)
        if not self.exact_dagger:
            assert op.A_dagger(op.A(self._random(op.in_shape, self.dtypes[-1], 0))).shape == op.in_shape
            return
        rows = torch.eye(len(M), dtype=self._out_dtypes()[-1]).reshape(-1, *op.out_shape)
        P = op.A_dagger(rows).reshape(len(M), -1).mT.to(torch.complex128)
        for left, right in ((M @ P @ M, M), (P @ M @ P, P), ((M @ P).mH, M @ P), ((P @ M).mH, P @ M)):
            self._close(left, right)

    def test_copy_and_state(self):
        op = self.operator()
        x = self._random(op.in_shape, self.dtypes[-1], 0)
        want = op.A(x)
        twin = copy.deepcopy(op)
        self._close(twin.A(x), want)
        twin.load_state_dict(op.state_dict())
        self._close(twin.A(x), want)

    def _out_dtypes(self) -> list[torch.dtype]:
        op = self.operator()
        return [op.A(torch.zeros(op.in_shape, dtype=dtype)).dtype for dtype in self.dtypes]

    def _directions(self, op):
        return (op.A, op.in_shape, self.dtypes), (op.A_adjoint, op.out_shape, self._out_dtypes())

    def _random(self, shape, dtype, seed):
        return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))

    def _close(self, got, want):
        wide = torch.complex128
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got.to(wide), want.to(wide), rtol=0, atol=self.tol * scale)


def _single(t: Tensor) -> Tensor:
    """Single precision of what is in double precision."""
    return t.to({torch.float64: torch.float32, torch.complex128: torch.complex64}.get(t.dtype, t.dtype))
