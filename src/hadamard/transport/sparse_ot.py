"""Optimal transport in which every target receives mass from at most ``k`` sources.

The plans ``T`` with ``T 1 = a``, ``T^T 1 = b`` and at most ``k`` nonzero entries in a column make up no convex set, but
the (semi-)dual of ``min <T, M> + reg / 2 * ||T||^2`` over them only asks for the ``k`` largest scores of each column.
"""

import math
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.results import warn_short
from hadamard.solvers import cg
from hadamard.transport.problem import TransportPlan, TransportProblem, check_histograms
from hadamard.transport.semidual import SparseSquaredL2, ascend, prepare_dual, prepare_semi_dual
from hadamard.validation import check_option, check_range

__all__ = ["sparsity_constrained_ot"]

_SMOOTH = 0.1  # the warm start begins at reg = this times the costs' range over a column's mean mass


def sparsity_constrained_ot(
    a: Float[Tensor, "*#batch n"] | None,
    b: Float[Tensor, "*#batch m"] | None,
    M: Float[Tensor, "*#batch n m"],
    reg: float,
    max_nz: int,
    *,
    solver: str = "semi_dual",
    sparse: bool = False,
    tol: float = 1e-6,
    max_iter: int = 1000,
    warn: bool = True,
) -> TransportPlan:
    """Move mass at the least cost so that every target receives it from at most ``max_nz`` sources.

    Maximises the dual of ``min <T, M> + reg / 2 * sum(T^2)`` over plans with ``T 1 = a`` and ``T^T 1 = b`` that have at
    most ``max_nz`` nonzero entries in each column. As ``max_nz`` falls the plan goes from that of quadratically
    regularised transport to an unregularised one. (For a bound on the rows, transpose the problem.)

    Parameters
    ----------
    a, b
        Mass of the sources, shape (..., n), and of the targets, (..., m): not negative, of equal sums. ``None``:
        uniform. Points without mass are left out.
    M
        Costs, shape (..., n, m); ``inf`` forbids a pair. Leading dimensions broadcast: many problems at once.
    reg
        Weight of the squares, in units of cost over mass, above 0. The smaller it is, the sparser the plan is by
        itself, and the less the bound asks for; the larger, the easier the problem is without the bound.
    max_nz
        Greatest number of nonzero entries in a column of the plan, at least 1; the paper's ``k``. All targets together
        must have as many places as there are sources.
    solver
        ``"semi_dual"``: over the potentials of the sources, with columns that always have the right mass; or
        ``"dual"``: over those of both, where a step is simpler and more steps are needed.
    sparse
        Return the plan as a ``torch.sparse_csr`` matrix, of one problem.
    tol
        It is finished once the plan's row sums miss ``a`` by at most ``tol`` times the mass, in the 1-norm.
    max_iter
        Greatest number of evaluations of the dual, and of a tenth of that for each step of the warm start.
    warn
        Warn where the tolerance was not met; ``False`` where stopping short is meant.

    Returns
    -------
    TransportPlan
        ``value`` is the dual's, a lower bound of the objective of every such plan; it is differentiable in ``a``,
        ``b`` and ``M`` by the envelope theorem (in ``M`` the gradient is the plan). ``plan`` is differentiable by the
        implicit function theorem while its support stays the same; ``potentials`` are not differentiable. Gradients in
        ``a`` and ``b`` are those that keep the mass. ``iterations`` counts evaluations of the dual, the warm start's
        included. ``residual`` is the violation of ``a`` relative to the mass; ``extras`` holds that of each problem as
        ``row_error``, and as ``duality_gap`` the plan's objective minus ``value``.

    Raises
    ------
    TypeError
        If an argument is not a floating tensor, or a number where one is expected.
    ValueError
        If shapes, types or devices do not fit, mass is negative or of different sums, a cost is NaN or ``-inf``,
        forbidden pairs leave no plan, ``max_nz`` is too small for the number of sources, a number is out of range, or
        ``sparse`` is asked for a batch.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If the tolerance was not met: see the notes.
    UserWarning
        If ``max_nz`` exceeds the number of sources, and bounds nothing.

    Notes
    -----
    Where the bound binds, the best potentials mostly lie at a kink of the dual, where a column's k-th score has an
    equal: then no choice among the equals need meet ``a``. The columns' sums and the number of entries hold all the
    same, and the plan is the optimal one for its own row sums. Of all potentials on the way, those are returned whose
    plan comes nearest to ``a``; the violation is reported. A smaller ``reg`` or a larger ``max_nz`` makes it vanish.

    Everything is computed in float64, whatever the type of ``M``, and returned in that type. Where this departs from
    the paper: a batch is solved side by side by an L-BFGS of its own, with a line search that is made for kinks. It
    starts from the solution without the bound, which is followed from a large ``reg`` to the one that is wanted. The
    regulariser is never divided by mass, so that a column's mass may be tiny or zero.

    References
    ----------
    T. Liu, J. Puigcerver, M. Blondel. Sparsity-constrained optimal transport. ICLR 2023. arXiv:2209.15466.
    M. Blondel, V. Seguy, A. Rolet. Smooth and sparse optimal transport. AISTATS 2018. arXiv:1710.06276.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = (torch.rand(size, 2, dtype=torch.float64, generator=generator) for size in (60, 10))
    >>> found = sparsity_constrained_ot(None, None, torch.cdist(x, y).square(), reg=0.03, max_nz=7)
    >>> found.converged, int((found.plan > 0).sum(0).max())
    (True, 7)
    """
    check_range(reg, "reg", 0, closed="neither")
    check_range(tol, "tol", 0)
    check_range(max_iter, "max_iter", 1, integer=True)
    check_range(max_nz, "max_nz", 1, integer=True)
    check_option(solver, "solver", ("semi_dual", "dual"))
    a, b, M, problem = check_histograms(a, b, M)
    if sparse and problem.batch:
        raise ValueError(f"sparse plans are those of one problem, got leading dimensions {tuple(problem.batch)}")
    n = M.shape[-2]
    if max_nz > n:
        warnings.warn(f"max_nz={max_nz} bounds nothing: there are {n} sources", stacklevel=2)
    least = int(((problem.a > 0).sum(1) / (problem.b > 0).sum(1)).ceil().max())
    if max_nz < least:
        raise ValueError(f"max_nz must be >= {least} for the targets to reach every source that has mass, got {max_nz}")
    omega, C = SparseSquaredL2(reg, min(max_nz, problem.a.shape[1])), _by_columns(problem)
    alpha, iterations = _maximise(problem, C, omega, solver, tol, max_iter)
    value, plan, f, g, row_error, gap = _Optimum.apply(a, b, M, problem, C, alpha, omega)
    residual, message = float(row_error.max()), ""
    if not residual <= tol:
        where = f"after {iterations} evaluations at residual {residual:.3g}, above tol={tol:g}"
        message = f"sparsity_constrained_ot stopped {where}; a smaller reg or a larger max_nz may help"
        if warn:
            warn_short(message)
    return TransportPlan(
        value=value,
        plan=plan.to_sparse_csr() if sparse else plan,
        potentials=(f, g),
        iterations=iterations,
        residual=residual,
        converged=not message,
        message=message,
        extras={"row_error": row_error, "duality_gap": gap},
    )


def _by_columns(problem: TransportProblem) -> Tensor:
    """Costs column by column, (B, m, n), where sources without mass are forbidden and targets without mass harmless."""
    C = problem.cost.mT.masked_fill(problem.a[:, None, :] == 0, torch.inf)
    return C.masked_fill_((problem.b == 0)[:, :, None], 0.0).contiguous()


def _maximise(
    problem: TransportProblem, C: Tensor, omega: SparseSquaredL2, solver: str, tol: float, max_iter: int
) -> tuple[Tensor, int]:
    """Maximise the dual from a warm start; return the potentials of the sources and the number of evaluations."""
    a, b, mass = problem.a, problem.b, problem.mass
    prepare = prepare_semi_dual if solver == "semi_dual" else prepare_dual
    highest = C.masked_fill(torch.isinf(C), -torch.inf).amax()
    smooth = _SMOOTH * float((highest - C.amin()) * b.shape[1] / mass.min())
    falling = max(math.ceil(math.log10(max(smooth, 1e-300) / omega.reg)), 0)
    x, evaluations = torch.zeros_like(a if solver == "semi_dual" else torch.cat([a, b], 1)), 0
    for reg in (omega.reg * 10**k for k in reversed(range(falling))):
        objective = prepare(a, b, C, SparseSquaredL2(reg, C.shape[2]))
        x, _, more = ascend(objective, x, reg, 0.01 * mass, max(max_iter // 10, 1))
        evaluations += more
    x, _, more = ascend(prepare(a, b, C, omega), x, omega.reg, tol * mass, max_iter)
    return x[:, : a.shape[1]], evaluations + more


class _Optimum(torch.autograd.Function):
    """Value, plan, potentials and their quality, of potentials that were found; no step of the solver is followed."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, M: Tensor, problem: TransportProblem, C: Tensor, alpha: Tensor,
        omega: SparseSquaredL2,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        scores = alpha[:, None, :] - C
        T = omega.grad_conjugate(scores, problem.b)
        beta = omega.reg * T.amax(2) - scores.amax(2)
        ctx.set_materialize_grads(False)
        ctx.problem, ctx.T, ctx.alpha, ctx.beta, ctx.reg, ctx.dtype = problem, T, alpha, beta, omega.reg, M.dtype
        missing = problem.a - T.sum(1)
        objective = (torch.where(T > 0, C, 0) * T).sum((1, 2)) + omega.value(T).sum(1)
        gap = -(torch.where(problem.a > 0, alpha, 0) * missing).sum(1)
        f = problem.restore_rows(alpha.masked_fill(problem.a == 0, -torch.inf), -torch.inf)
        g = problem.restore_columns(beta.masked_fill(problem.b == 0, -torch.inf), -torch.inf)
        error = (missing.abs().sum(1) / problem.mass).reshape(problem.batch)
        per_problem = (objective - gap).reshape(problem.batch), gap.reshape(problem.batch)
        outputs = tuple(t.to(M.dtype) for t in (per_problem[0], problem.restore_pairs(T.mT), f, g))
        ctx.mark_non_differentiable(outputs[2], outputs[3], error, per_problem[1])
        return *outputs, error, per_problem[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, value: Tensor | None, plan: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        problem, T, reg = ctx.problem, ctx.T, ctx.reg
        to_a, to_b, to_C = torch.zeros_like(problem.a), torch.zeros_like(problem.b), torch.zeros_like(T)
        if value is not None:
            weight = value.double().reshape(-1, 1)
            to_a, to_b, to_C = weight * ctx.alpha, weight * ctx.beta, weight[:, :, None] * T
        if plan is not None:
            u, v, w = _implicit(T > 0, problem.keep_pairs(plan).mT, reg)
            to_a, to_b, to_C = to_a + u, to_b + v, to_C + w
        to_a, to_b = (_centred(x, mass > 0) for x, mass in ((to_a, problem.a), (to_b, problem.b)))
        grads = problem.restore_rows(to_a), problem.restore_columns(to_b), problem.restore_pairs(to_C.mT)
        return (*(t.to(ctx.dtype) for t in grads), None, None, None, None)


def _implicit(support: Tensor, G: Tensor, reg: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pull a gradient in the plan back to ``a``, ``b`` and the costs, through ``T 1 = a`` on a support that stays.

    There a column of the plan is ``(alpha - c_j + beta_j) / reg``. With the column means taken off by a projection
    ``J``, one symmetric system is left: ``sum_j J_j u = sum_j J_j g_j``.
    """
    S = support.to(G.dtype)
    sizes, degrees = S.sum(2).clamp_min(1), S.sum(1)

    def centre(x: Tensor) -> Tensor:
        return S * (x - ((S * x).sum(2) / sizes)[:, :, None])

    def matvec(u: Tensor) -> Tensor:
        means = (S @ u[:, :, None])[:, :, 0] / sizes
        return degrees * u - (means[:, None, :] @ S)[:, 0, :]

    rhs = centre(G).sum(1)
    u = cg(matvec, rhs, precondition=lambda r: r / degrees.clamp_min(1), tol=1e-10).value
    rest = G - u[:, None, :]
    return u, (S * rest).sum(2) / sizes, -centre(rest) / reg


def _centred(x: Tensor, where: Tensor) -> Tensor:
    """Subtract the mean over the points that have mass; 0 at the others."""
    x = torch.where(where, x, 0)
    return torch.where(where, x - (x.sum(1) / where.sum(1))[:, None], 0)
