"""Linear operators: ``A``, ``A_adjoint`` and ``A_dagger`` on batches, composed, stacked and differentiated."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from numbers import Number
from typing import cast

import numpy as np
import torch
from jaxtyping import Inexact
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn

from hadamard.results import warn_short
from hadamard.solvers.cg import cg
from hadamard.validation import check_range, check_tensor

__all__ = ["LinearOperator", "operator_norm", "stack"]


class LinearOperator(nn.Module, ABC):
    """A linear map between tensors, in the vocabulary of imaging libraries.

    A subclass calls ``super().__init__(in_shape, out_shape)`` and defines ``A`` and ``A_adjoint``; it gets composition
    (``P @ Q``), scaling (``2.0 * P``), a pseudo-inverse, its dense form and its norm. Constants are registered as
    buffers, so that ``op.to(...)`` moves them.

    Parameters
    ----------
    in_shape, out_shape
        Trailing shapes of input and output. Any leading dimensions are batch dimensions.

    Notes
    -----
    The adjoint is that of the conjugating inner product: ``<A x, y> = <x, A_adjoint y>`` with
    ``<u, v> = sum(conj(u) * v)``. Where ``A`` consists of torch operations, its gradient is the adjoint already; where
    it does not, :func:`~hadamard.operators.gradient.with_adjoint` says so to autograd.

    Examples
    --------
    >>> class Mean(LinearOperator):
    ...     def A(self, x):
    ...         return x.mean(-1, keepdim=True)
    ...
    ...     def A_adjoint(self, y):
    ...         return (y / self.in_shape[-1]).expand(*y.shape[:-1], *self.in_shape)
    >>> mean = Mean((4,), (1,))
    >>> mean(torch.arange(4.0))
    tensor([1.5000])
    >>> mean.to_dense()
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape = _shape(in_shape, "in_shape")
        self.out_shape = _shape(out_shape, "out_shape")

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """Apply the operator: (..., *in_shape) to (..., *out_shape)."""

    @abstractmethod
    def A_adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint: (..., *out_shape) to (..., *in_shape)."""

    def A_dagger(self, y: Tensor) -> Tensor:
        """Find the least-squares solution of smallest norm, approximately: (..., *out_shape) to (..., *in_shape).

        It runs conjugate gradients on the normal equations to a relative residual of 1e-6, at most 1000 steps, and
        warns ``ConvergenceWarning`` where they do not suffice. The result is differentiable in ``y``. Subclasses that
        know their inverse or pseudo-inverse override this.
        """
        return cg(self.gram, self.A_adjoint(y), ndim=len(self.in_shape), max_iter=1000).value

    def gram(self, x: Tensor) -> Tensor:
        """Apply the operator and then its adjoint."""
        return self.A_adjoint(self.A(x))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator: ``op(x)`` is ``op.A(x)``."""
        return self.A(x)

    def to_dense(self, dtype: torch.dtype | None = None) -> Inexact[Tensor, "m n"]:
        """Write the operator as a matrix that acts on flattened tensors.

        Parameters
        ----------
        dtype
            Type of the unit vectors that it is applied to; ``None``: that of the operator's constants, or torch's
            default.

        Returns
        -------
        Tensor
            Of shape (prod(out_shape), prod(in_shape)).
        """
        like = _like(self)
        n = int(np.prod(self.in_shape))
        basis = torch.eye(n, dtype=dtype or like.dtype, device=like.device).reshape(n, *self.in_shape)
        return self.A(basis).reshape(n, -1).T

    def check_in(self, x: Tensor, name: str = "x") -> Tensor:
        """Check that a tensor has shape (..., *in_shape), for use in a subclass's ``A``."""
        return check_tensor(x, name, shape=self.in_shape, finite=False)

    def check_out(self, y: Tensor, name: str = "y") -> Tensor:
        """Check that a tensor has shape (..., *out_shape), for use in a subclass's ``A_adjoint``."""
        return check_tensor(y, name, shape=self.out_shape, finite=False)

    def extra_repr(self) -> str:
        """Show the shapes."""
        return f"{self.in_shape} -> {self.out_shape}"

    def __matmul__(self, other: "LinearOperator") -> "LinearOperator":
        return _Composition(self, other)

    def __rmul__(self, scale: complex) -> "LinearOperator":
        return _Scaled(self, scale)


def stack(operators: Sequence[LinearOperator]) -> LinearOperator:
    """Apply several operators to the same input and stack their outputs on a new first axis (after the batch).

    Parameters
    ----------
    operators
        At least one; all with the same ``in_shape`` and the same ``out_shape``.

    Returns
    -------
    LinearOperator
        With ``out_shape = (len(operators), *out_shape)``.

    Raises
    ------
    ValueError
        If there is none, or the shapes differ.

    Examples
    --------
    >>> from hadamard.operators import Matrix
    >>> op = stack([Matrix(torch.eye(2)), 3.0 * Matrix(torch.eye(2))])
    >>> op(torch.tensor([1.0, 2.0]))
    tensor([[1., 2.],
            [3., 6.]])
    """
    return _Stack(operators)


def operator_norm(
    op: LinearOperator, tol: float = 1e-3, generator: torch.Generator | None = None, *, max_iter: int = 300
) -> float:
    """Estimate the largest singular value of an operator, for step sizes.

    Parameters
    ----------
    op
        The operator.
    tol
        Bound on the relative error of the norm, in ``(0, 1)``.
    generator
        Draws the starting vector, on the operator's device; ``None``: a fixed seed.
    max_iter
        Greatest number of applications of the operator and its adjoint.

    Returns
    -------
    float
        The norm; never more than the true one by more than rounding.

    Raises
    ------
    ValueError
        If ``tol`` is not in ``(0, 1)`` or the operator's output is not finite.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If the tolerance was not reached.

    Notes
    -----
    Lanczos' iteration on ``A_adjoint A``: one application a step, as in power iteration, and three vectors of memory,
    but the error falls with the square of the number of steps where the singular values are dense at the top. It stops
    once the residual of the largest Ritz pair is below ``tol`` times its value, and never before five steps, since the
    first pairs may be those of a smaller singular value.

    Examples
    --------
    >>> from hadamard.operators import Matrix
    >>> round(operator_norm(Matrix(torch.diag(torch.tensor([3.0, 1.0]))), tol=1e-6), 4)
    3.0
    """
    check_range(tol, "tol", 0, 1, closed="neither")
    like = _like(op)
    generator = generator or torch.Generator(like.device).manual_seed(0)
    v = torch.randn(op.in_shape, dtype=like.dtype, device=like.device, generator=generator)
    v, before, beta = v / torch.linalg.vector_norm(v), torch.zeros_like(v), 0.0
    diagonal: list[float] = []
    below: list[float] = []
    with torch.no_grad():
        for step in range(1, max_iter + 1):
            w = op.gram(v)
            alpha = _dot(v, w)
            if not np.isfinite(alpha):
                raise ValueError(f"op must give finite output, got {alpha} as <A x, A x>")
            w = w - alpha * v - beta * before
            beta = float(torch.linalg.vector_norm(w))
            diagonal.append(alpha)
            top = (len(diagonal) - 1,) * 2
            values, vectors = eigh_tridiagonal(diagonal, below, select="i", select_range=top)
            value, residual = max(float(values[0]), 0.0), beta * abs(float(vectors[-1, 0]))
            exhausted = beta <= torch.finfo(v.dtype).eps * value * 10 or step >= v.numel()
            if exhausted or (step >= 5 and residual <= tol * value):
                return value**0.5
            below.append(beta)
            before, v = v, w / beta
    warn_short(f"operator_norm stopped after {max_iter} steps at residual {residual / value:.3g}, above tol={tol:g}")
    return value**0.5


class _Composition(LinearOperator):
    """``outer @ inner``."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if outer.in_shape != inner.out_shape:
            raise ValueError(
                f"the left operator of @ must take the right one's output of shape {inner.out_shape}, "
                f"got one that takes {outer.in_shape}"
            )
        super().__init__(inner.in_shape, outer.out_shape)
        self.outer, self.inner = outer, inner

    def A(self, x: Tensor) -> Tensor:
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.A_adjoint(self.outer.A_adjoint(y))


class _Scaled(LinearOperator):
    """``scale * op``."""

    def __init__(self, op: LinearOperator, scale: complex) -> None:
        if not isinstance(scale, Number) or not np.isfinite(scale) or scale == 0:
            raise ValueError(f"the factor of an operator must be a finite number other than 0, got {scale!r}")
        super().__init__(op.in_shape, op.out_shape)
        self.op, self.scale = op, scale

    def A(self, x: Tensor) -> Tensor:
        return self.scale * self.op.A(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return np.conj(self.scale).item() * self.op.A_adjoint(y)

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.op.A_dagger(y) / self.scale


class _Stack(LinearOperator):
    """Operators with one input, their outputs along a new first axis."""

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        shapes = {(op.in_shape, op.out_shape) for op in operators}
        if len(shapes) != 1:
            found = ", ".join(f"{a} -> {b}" for a, b in sorted(shapes)) or "none"
            raise ValueError(f"operators must be at least one, all of the same shapes, got {found}")
        in_shape, out_shape = shapes.pop()
        super().__init__(in_shape, (len(operators), *out_shape))
        self.operators = nn.ModuleList(operators)

    def A(self, x: Tensor) -> Tensor:
        operators = cast(Sequence[LinearOperator], self.operators)
        return torch.stack([op.A(x) for op in operators], dim=x.ndim - len(self.in_shape))

    def A_adjoint(self, y: Tensor) -> Tensor:
        operators = cast(Sequence[LinearOperator], self.operators)
        parts = self.check_out(y).unbind(y.ndim - len(self.out_shape))
        return torch.stack([op.A_adjoint(part) for op, part in zip(operators, parts)]).sum(0)


def _shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    """A shape of positive sizes."""
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"{name} must hold positive integers, got {tuple(shape)}")
    return tuple(shape)


def _like(op: LinearOperator) -> Tensor:
    """An empty tensor with the device and the widest type of the operator's constants."""
    constants = [*op.parameters(), *op.buffers()]
    types = [c.dtype for c in constants if c.dtype.is_floating_point or c.dtype.is_complex]
    dtype = reduce(torch.promote_types, types) if types else torch.get_default_dtype()
    return torch.empty(0, dtype=dtype, device=constants[0].device if constants else None)


def _dot(u: Tensor, v: Tensor) -> float:
    """Real part of the conjugating inner product."""
    return float((u.conj() * v).sum().real)
