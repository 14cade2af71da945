"""Collocation of a partial differential equation by a Gaussian process on a grid, and the evidence of its kernels.

Along an axis with kernel matrix ``K`` the derivative of order a of grid values u is ``K^(a) K^{-1} u``. With values
prescribed on some ends of the axes, the equation holds at the other points; that determines the values there: the
solution is eliminated. What is left is the evidence of the kernels,

``-log p = n/2 log(u' K^{-1} u) + 1/2 log det K + log |det J|``,

with the variance profiled out and ``J`` the equation's derivative by the values that are solved for. On two axes
``K = K_1 (x) K_2``, and ``J = J_1 (x) I + I (x) J_2`` up to what Krylov's method takes care of, so that no matrix is
larger than an axis.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import lu_factor, lu_solve, schur
from scipy.linalg.lapack import dtrsyl
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import gmres
from torch import Tensor

from hadamard.pde.spectral_mixture import SpectralMixture

__all__ = ["Problem", "evidence"]

_JITTER = 1e-13  # of the kernel matrices, over their diagonal
_NEWTON, _KRYLOV = 20, 300  # steps


@dataclass(frozen=True)
class Problem:
    """An equation on a grid: ``sum_a coefficient_a * d^a u + reaction(u) = source`` at the free points.

    ``known`` holds the prescribed values on the whole grid, zero where there are none; ``free`` the indices along each
    axis at which values are solved for; ``coefficients`` and ``source`` are given on the free points.
    """

    axes: Sequence[Tensor]
    free: Sequence[Tensor]
    coefficients: Mapping[tuple[int, ...], Tensor]
    source: Tensor
    known: Tensor
    reaction: Callable[[Tensor], Tensor] | None
    tol: float

    def fill(self, x: Tensor) -> Tensor:
        """Put values at the free points among the known ones."""
        return self.known.index_put(torch.meshgrid(*self.free, indexing="ij"), x)

    def slope(self, x: Tensor, create_graph: bool = False) -> Tensor:
        """Derivative of the reaction at each point."""
        if self.reaction is None:
            return torch.zeros_like(x)
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self.reaction(x)
            if not value.requires_grad:
                return torch.zeros_like(x)
            (slope,) = torch.autograd.grad(value.sum(), x, create_graph=create_graph, materialize_grads=True)
        return slope


def evidence(problem: Problem, kernels: Sequence[SpectralMixture], guess: Tensor) -> tuple[Tensor, Tensor, float]:
    """Compute minus the logarithm of the kernels' evidence (up to a constant), the solution, and its residual.

    All are NaN where a matrix is singular or Newton's method does not converge from ``guess``, values at the free
    points. Differentiable in the kernels' parameters: the solution by the implicit function theorem.
    """
    factors, rows = [], []
    orders = [{a[i] for a in problem.coefficients} | {0} for i in range(len(kernels))]
    for x, kernel, free, wanted in zip(problem.axes, kernels, problem.free, orders):
        eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
        L, info = torch.linalg.cholesky_ex(kernel.matrix(x) + _JITTER * eye)
        if info > 0:
            return _nothing(problem, kernels)
        factors.append(L)
        rows.append(
            {a: torch.cholesky_solve(kernel.matrix(x, order=a)[free].mT, L).mT if a else eye[free] for a in wanted}
        )
    equation = _Equation(problem, rows)
    with torch.no_grad():
        root = equation.newton(guess)
    if root is None:
        return _nothing(problem, kernels)
    x = root - _Solve.apply(equation.residual(root), equation.inverse(root))
    u = problem.fill(x)
    white = torch.linalg.solve_triangular(factors[0], u.reshape(len(u), -1), upper=False)
    if len(factors) == 2:
        white = torch.linalg.solve_triangular(factors[1], white.mT, upper=False)
    log_det = sum(L.diagonal().log().sum() * (u.numel() / len(L)) for L in factors)
    value = u.numel() / 2 * white.square().sum().log() + log_det + equation.log_det(x)
    left = equation.residual(x.detach()).detach().norm() / (problem.source.norm() or 1.0)
    return value, u, float(left)


class _Equation:
    """The equation with derivative matrices in place of derivatives."""

    def __init__(self, problem: Problem, rows: Sequence[Mapping[int, Tensor]]) -> None:
        self.problem, self.rows = problem, rows
        self.square = [{a: D[:, free] for a, D in by.items()} for by, free in zip(rows, problem.free)]
        self.axis: list[Tensor | float] = [0.0] * len(rows)  # the part that is one matrix an axis
        self.rest: dict[tuple[int, ...], Tensor] = {}  # and what that leaves of the coefficients
        self.shift = torch.zeros((), dtype=problem.source.dtype, device=problem.source.device)
        for order, c in problem.coefficients.items():
            on = [i for i, a in enumerate(order) if a]
            if len(on) > 1:
                self.rest[order] = c
                continue
            if not on:
                mean = c if c.ndim == 1 else c.mean()
                self.shift = self.shift + mean
            else:
                i = on[0]
                mean = c if c.ndim == 1 else c.mean(1 - i, keepdim=True)
                self.axis[i] = self.axis[i] + mean.reshape(-1, 1) * self.square[i][order[i]]
            if not torch.allclose(mean.expand_as(c), c, rtol=1e-12, atol=0):
                self.rest[order] = c - mean

    def apply(
        self, u: Tensor, matrices: Sequence[Mapping[int, Tensor]], terms: Mapping[tuple[int, ...], Tensor]
    ) -> Tensor:
        """Sum the terms, each with its matrices along the axes."""
        total = torch.zeros_like(self.problem.source)
        for order, c in terms.items():
            v = matrices[0][order[0]] @ u
            total = total + c * (v if len(order) == 1 else v @ matrices[1][order[1]].mT)
        return total

    def residual(self, x: Tensor) -> Tensor:
        """Left side less right side."""
        p = self.problem
        left = self.apply(p.fill(x), self.rows, p.coefficients)
        return left - p.source + (p.reaction(x) if p.reaction else 0.0)

    def axis_matrices(self, slope: Tensor) -> list[Tensor]:
        """The Jacobian as one matrix an axis: exact on one axis, with the slope's mean on two."""
        add = self.shift + (slope if slope.ndim == 1 else slope.mean())
        n = [len(free) for free in self.problem.free]
        first = self.axis[0] + torch.diag_embed(add.expand(n[0]))
        if len(n) == 1:
            return [first]
        return [first, self.axis[1] + torch.zeros(n[1], n[1], dtype=first.dtype, device=first.device)]

    def log_det(self, x: Tensor) -> Tensor:
        """Logarithm of the modulus of the Jacobian's determinant."""
        matrices = self.axis_matrices(self.problem.slope(x, create_graph=True))
        if len(matrices) == 1:
            return torch.linalg.slogdet(matrices[0])[1]
        first, second = (torch.linalg.eigvals(M) for M in matrices)
        return (first[:, None] + second).abs().log().sum()

    def inverse(self, x: Tensor) -> "_Inverse":
        """The Jacobian's inverse at ``x``."""
        slope = self.problem.slope(x).detach()
        matrices = [M.detach() for M in self.axis_matrices(slope)]
        uneven = slope - slope.mean()
        rest = len(matrices) == 2 and (bool(self.rest) or bool(uneven.abs().max() > 1e-14 * slope.abs().max()))
        if not rest:
            return _Inverse(matrices, None)
        square = [{a: D.detach() for a, D in by.items()} for by in self.square]
        turned = [{a: D.mT for a, D in by.items()} for by in square]

        def product(v: Tensor, adjoint: bool) -> Tensor:
            A, B = matrices
            if not adjoint:
                return A @ v + v @ B.mT + self.apply(v, square, self.rest) + uneven * v
            total = A.mT @ v + v @ B + uneven * v
            for order, c in self.rest.items():
                total = total + turned[0][order[0]] @ (c * v) @ turned[1][order[1]].mT
            return total

        return _Inverse(matrices, product)

    def newton(self, x: Tensor) -> Tensor | None:
        """Solve the equation by Newton's method with halved steps; ``None`` where that fails."""
        size = float(self.problem.source.norm()) or 1.0
        linear = self.problem.reaction is None
        r = self.residual(x)
        for _ in range(2 if linear else _NEWTON):
            step = self.inverse(x)(r)
            if not step.isfinite().all():
                return None
            for halving in range(12):
                trial = x - step / 2**halving
                after = self.residual(trial)
                if linear or after.norm() < r.norm() or after.norm() <= self.problem.tol * size:
                    break
            else:
                break
            x, r, moved = trial, after, float(step.norm() / trial.norm().clamp_min(1e-300))
            if moved <= self.problem.tol:
                break
        return x if float(r.norm()) <= max(1e3 * self.problem.tol, 1e-6) * size else None


class _Inverse:
    """Inverse of a Jacobian and of its transpose: LU on one axis, Schur forms and Krylov's method on two."""

    def __init__(self, matrices: Sequence[Tensor], product: Callable[[Tensor, bool], Tensor] | None) -> None:
        self.product = product
        arrays = [M.cpu().numpy() for M in matrices]
        self.usable = all(np.isfinite(M).all() for M in arrays)
        if not self.usable:
            return
        if len(arrays) == 1:
            self.lu = lu_factor(arrays[0], check_finite=False)
            self.usable = bool((np.diag(self.lu[0]) != 0).all())
        else:
            (self.R, self.U), (self.S, self.V) = schur(arrays[0]), schur(arrays[1].T)

    def __call__(self, r: Tensor, adjoint: bool = False) -> Tensor:
        """Solve with the Jacobian, or with its transpose."""
        if not self.usable or not r.isfinite().all():
            return torch.full_like(r, math.nan)
        rhs = r.detach().cpu().numpy()
        if self.product is None:
            return torch.as_tensor(self._direct(rhs, adjoint), dtype=r.dtype, device=r.device)
        product = self.product

        def matvec(v: np.ndarray) -> np.ndarray:
            inner = torch.as_tensor(self._direct(v.reshape(rhs.shape), adjoint), dtype=r.dtype, device=r.device)
            return product(inner, adjoint).cpu().numpy().ravel()

        operator = ScipyOperator((rhs.size, rhs.size), matvec=matvec, dtype=rhs.dtype)
        found, info = gmres(operator, rhs.ravel(), rtol=1e-11, restart=60, maxiter=_KRYLOV // 60)
        if info != 0 and np.linalg.norm(matvec(found) - rhs.ravel()) > 1e-6 * np.linalg.norm(rhs):
            return torch.full_like(r, math.nan)
        return torch.as_tensor(self._direct(found.reshape(rhs.shape), adjoint), dtype=r.dtype, device=r.device)

    def _direct(self, rhs: np.ndarray, adjoint: bool) -> np.ndarray:
        if rhs.ndim == 1:
            return lu_solve(self.lu, rhs, trans=int(adjoint), check_finite=False)
        way = "T" if adjoint else "N"
        x, scale, _ = dtrsyl(self.R, self.S, self.U.T @ rhs @ self.V, trana=way, tranb=way)
        return self.U @ (x / scale) @ self.V.T


class _Solve(torch.autograd.Function):
    """Apply an inverse Jacobian; the matrix is taken as fixed, which the implicit function theorem allows."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, inverse: _Inverse) -> Tensor:
        ctx.inverse = inverse
        return inverse(r)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.inverse(gradient, adjoint=True), None


def _nothing(problem: Problem, kernels: Sequence[SpectralMixture]) -> tuple[Tensor, Tensor, float]:
    """NaN, with a graph."""
    value = sum(p.sum() for k in kernels for p in (k.log_weights, k.log_lengths, k.frequencies)) * math.nan
    return torch.as_tensor(value), torch.full_like(problem.known, math.nan), math.nan
