"""The Hessian of the entropic dual: its sparse part, systems with it, and the gradients that it gives for nothing.

With the plan ``P = exp((f + g - C) / reg)`` and its sums ``r = P 1`` and ``c = P^T 1``, the dual's Hessian in
``f / reg`` and ``g / reg`` is ``-[[diag(r), P], [P^T, diag(c)]]``. Eliminating the second block leaves
``diag(r) - P diag(c)^-1 P^T``, a graph Laplacian over the sources. At small ``reg`` nearly all mass lies in a few
entries of ``P``: the others are left out of the product, while the diagonal keeps the whole sums, so that what remains
is still positive semidefinite.
"""

import math
from typing import Any

import torch
from torch import Tensor

from hadamard.operators import SparseMatrix
from hadamard.solvers import cg
from hadamard.transport.problem import TransportPlan, TransportProblem

__all__ = ["ReducedHessian", "gibbs_plan", "largest_entries", "optimal_plan", "significant_entries"]

_OCTAVES = 128  # powers of two between the smallest entry that can matter and the largest
_DENSE = 0.25  # above this share of kept entries a dense product is faster


def gibbs_plan(x: Tensor, y: Tensor, cost: Tensor, reg: float) -> Tensor:
    """Compute ``exp(x_i + y_j - C_ij / reg)``, shape (B, n, m); entries that would underflow stay above 0."""
    logits = torch.add(x[:, :, None], cost, alpha=-1 / reg).add_(y[:, None, :])
    return logits.clamp_(min=-460.0).exp_()  # 1e-200: slow denormals never arise


def significant_entries(P: Tensor, budget: Tensor) -> Tensor:
    """Find all but the smallest entries of each plan (B, n, m), which hold at most ``budget`` (B,) of mass together.

    Entries are left out by powers of two, so that nothing needs to be sorted. Returns ascending flat indices.
    """
    batch, n, m = P.shape
    floor = (budget / (n * m))[:, None, None]  # entries below it hold less than the budget, however many there are
    places = (floor < P).flatten().nonzero()[:, 0]
    values, problem = P.flatten()[places], places // (n * m)
    octave = torch.frexp(values / floor.flatten()[problem])[1].clamp_(max=_OCTAVES - 1) + _OCTAVES * problem
    held = values.new_zeros(batch * _OCTAVES).index_add_(0, octave, values).view(batch, _OCTAVES)
    below = (P.sum((1, 2)) - held.sum(1)).clamp_min(0)
    dropped = (held.cumsum(1) + below[:, None] <= budget[:, None]).sum(1)
    first = dropped + _OCTAVES * torch.arange(batch, device=P.device)
    return places[octave >= first[problem]]


def largest_entries(P: Tensor, share: float) -> Tensor:
    """Find that share of the entries of each plan (B, n, m), the largest ones. Returns ascending flat indices."""
    batch, size = P.shape[0], P[0].numel()
    places = torch.topk(P.flatten(1), math.ceil(share * size), dim=1, sorted=False).indices
    return (places + size * torch.arange(batch, device=P.device)[:, None]).sort(1).values.flatten()


class ReducedHessian:
    """The dual's Hessian over the sources, negated, with a few entries of the plan.

    Parameters
    ----------
    P
        Plans of shape (B, n, m).
    rows, columns
        Their sums, shapes (B, n) and (B, m).
    places
        The entries that are kept: ascending flat indices into ``P``.
    damping
        Added to the diagonal, shape (B, n).
    """

    def __init__(self, P: Tensor, rows: Tensor, columns: Tensor, places: Tensor, damping: Tensor | float = 0.0) -> None:
        batch, n, m = self.shape = P.shape
        self.diagonal = torch.where(rows > 0, rows + damping, 1)
        self.weights = torch.where(columns > 0, columns, 1).reciprocal()
        self.plan, self.matrix, self.entries = P, None, P.numel()
        if len(places) < _DENSE * self.entries:
            values, row, problem = P.flatten()[places], places // m, places // (n * m)
            column = places - row * m + problem * m
            self.matrix = SparseMatrix.from_entries(torch.stack([row, column]), values, (batch * n, batch * m))
            self.entries = len(places)
            removed = rows.new_zeros(batch * n).index_add_(0, row, values.square() * self.weights.flatten()[column])
            removed = removed.view(batch, n)
        else:
            removed = (P.square() @ self.weights[:, :, None])[:, :, 0]
        self.jacobi = (self.diagonal - removed).clamp_min(1e-8 * self.diagonal).reciprocal()

    def forward(self, y: Tensor) -> Tensor:
        """Multiply by the plan: (B, m) to (B, n)."""
        if self.matrix is None:
            return (self.plan @ y[:, :, None])[:, :, 0]
        return self.matrix.A(y.flatten()).view(self.shape[:2])

    def adjoint(self, x: Tensor) -> Tensor:
        """Multiply by the plan's transpose: (B, n) to (B, m)."""
        if self.matrix is None:
            return (x[:, None, :] @ self.plan)[:, 0, :]
        return self.matrix.A_adjoint(x.flatten()).view(self.shape[0], self.shape[2])

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the reduced Hessian: (B, n) to (B, n)."""
        return self.diagonal * x - self.forward(self.weights * self.adjoint(x))

    def solve(self, rhs: Tensor, tol: float, warn: bool = False) -> tuple[Tensor, int]:
        """Solve the reduced system for a right-hand side of shape (B, n); return the solution and the steps taken."""
        if len(rhs) > 1:
            found = cg(self, rhs, precondition=lambda r: self.jacobi * r, tol=tol, warn=warn)
            return found.value, found.iterations
        one, jacobi = rhs[0], self.jacobi[0]  # a single system is solved with less overhead
        found = cg(lambda x: self(x[None])[0], one, precondition=lambda r: jacobi * r, tol=tol, warn=warn)
        return found.value[None], found.iterations


def optimal_plan(
    a: Tensor, b: Tensor, M: Tensor, problem: TransportProblem, x: Tensor, y: Tensor, reg: float, **found: Any
) -> TransportPlan:
    """Make a result of the potentials ``x = f / reg`` and ``y = g / reg`` that solve a problem.

    The value is differentiable by the envelope theorem, the plan and the potentials by the implicit function theorem.
    """
    value, plan, f, g = _Optimum.apply(a, b, M, problem, x, y, reg)
    return TransportPlan(value=value, plan=plan, potentials=(f, g), **found)


class _Optimum(torch.autograd.Function):
    """Value, plan and potentials of a solved problem; no step of the solver is differentiated."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, M: Tensor, problem: TransportProblem, x: Tensor, y: Tensor, reg: float
    ) -> tuple[Tensor, ...]:
        has_a, has_b = problem.a > 0, problem.b > 0
        shift = (_sum(x, has_a) - _sum(y, has_b)) / (has_a.sum(1) + has_b.sum(1))
        x, y = x - shift[:, None], y + shift[:, None]
        ctx.problem, ctx.x, ctx.y, ctx.reg, ctx.dtype = problem, x, y, reg, M.dtype
        ctx.set_materialize_grads(False)
        plan = torch.add(x[:, :, None], problem.cost, alpha=-1 / reg).add_(y[:, None, :]).exp_()
        value = reg * (_sum(x * problem.a, has_a) + _sum(y * problem.b, has_b))
        f, g = problem.restore_rows(reg * x, -torch.inf), problem.restore_columns(reg * y, -torch.inf)
        outputs = (value.reshape(problem.batch), problem.restore_pairs(plan), f, g)
        return tuple(t.to(M.dtype) for t in outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, value: Tensor | None, plan: Tensor | None, f: Tensor | None, g: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        problem, x, y, reg = ctx.problem, ctx.x, ctx.y, ctx.reg
        has_a, has_b = problem.a > 0, problem.b > 0
        P = torch.add(x[:, :, None], problem.cost, alpha=-1 / reg).add_(y[:, None, :]).exp_()
        to_a, to_b, to_cost = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(P)
        if value is not None:
            weight = value.double().reshape(-1, 1)
            to_a += weight * reg * _centred(x, has_a)
            to_b += weight * reg * _centred(y, has_b)
            to_cost += weight[:, :, None] * P
        if plan is not None or f is not None or g is not None:
            W = torch.zeros_like(P) if plan is None else P * problem.keep_pairs(plan)
            p, q = W.sum(2), W.sum(1)
            if f is not None:
                p += reg * torch.where(has_a, problem.keep_rows(f), 0)
            if g is not None:
                q += reg * torch.where(has_b, problem.keep_columns(g), 0)
            u, v = _solve_whole(P, p, q, has_a, has_b)
            to_a += u
            to_b += v
            to_cost += (P * (u[:, :, None] + v[:, None, :]) - W) / reg
        grads = problem.restore_rows(to_a), problem.restore_columns(to_b), problem.restore_pairs(to_cost)
        return (*(t.to(ctx.dtype) for t in grads), None, None, None, None)


def _solve_whole(P: Tensor, p: Tensor, q: Tensor, has_a: Tensor, has_b: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``[[diag(r), P], [P^T, diag(c)]] (u, v) = (p, q)`` on the subspace where the solution is unique."""
    shift = (_sum(p, has_a) - _sum(q, has_b)) / (has_a.sum(1) + has_b.sum(1))
    p, q = torch.where(has_a, p - shift[:, None], 0), torch.where(has_b, q + shift[:, None], 0)
    hessian = ReducedHessian(P, P.sum(2), P.sum(1), significant_entries(P, 1e-14 * P.sum((1, 2))))
    u = hessian.solve(p - hessian.forward(hessian.weights * q), 1e-10, warn=True)[0]
    v = hessian.weights * (q - hessian.adjoint(u))
    shift = (_sum(u, has_a) - _sum(v, has_b)) / (has_a.sum(1) + has_b.sum(1))
    return torch.where(has_a, u - shift[:, None], 0), torch.where(has_b, v + shift[:, None], 0)


def _sum(x: Tensor, where: Tensor) -> Tensor:
    """Sum over the points that have mass."""
    return torch.where(where, x, 0).sum(1)


def _centred(x: Tensor, where: Tensor) -> Tensor:
    """Subtract the mean over the points that have mass; 0 at the others."""
    return torch.where(where, x - (_sum(x, where) / where.sum(1))[:, None], 0)
