"""Entropic optimal transport to machine precision in a few Newton steps, each with a sparse Hessian."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.results import warn_short
from hadamard.transport.hessian import (
    ReducedHessian,
    gibbs_plan,
    largest_entries,
    optimal_plan,
    significant_entries,
)  # fmt: skip
from hadamard.transport.problem import TransportPlan, TransportProblem, check_histograms
from hadamard.transport.sinkhorn import annealed, log_step, start
from hadamard.validation import check_option, check_range

__all__ = ["sinkhorn_newton_sparse"]

_EASY = 100.0  # at this part of the costs' range, as reg, Newton's steps are good from a warm start on
_LONGEST = 100.0  # longest step of a potential, in units of reg: exp(100) is far from overflow
_ROUNDING = 1e-14  # a source that exchanges less of its mass than this with others is not told from rounding


def sinkhorn_newton_sparse(
    a: Float[Tensor, "*#batch n"] | None,
    b: Float[Tensor, "*#batch m"] | None,
    M: Float[Tensor, "*#batch n m"],
    reg: float,
    *,
    rho: float | str = "auto",
    warm_start: int = 20,
    init: tuple[Tensor, Tensor] | None = None,
    tol: float = 1e-9,
    max_iter: int = 200,
) -> TransportPlan:
    """Move mass at the least cost plus entropy, to machine precision, where Sinkhorn's iteration takes very long.

    Solves ``min <P, M> + reg * sum(P log P)`` over plans with ``P 1 = a`` and ``P^T 1 = b``: a few Sinkhorn steps, then
    Newton steps on the dual, for which only the entries of the plan that matter enter the Hessian.

    Parameters
    ----------
    a, b
        Mass of the sources, shape (..., n), and of the targets, (..., m): not negative, of equal sums. ``None``:
        uniform. Points without mass are left out.
    M
        Costs, shape (..., n, m); ``inf`` forbids a pair. Leading dimensions broadcast: many problems at once.
    reg
        Weight of the entropy, in units of cost, above 0; the paper's ``1 / eta``.
    rho
        Which entries of the plan enter the Hessian. ``"auto"``: all but the smallest ones, which together hold at most
        a tenth of the present violation (and at most 1 % of the mass), so that the last steps converge superlinearly. A
        number in (0, 1]: that share of the entries, the largest ones, as in the paper.
    warm_start
        Sinkhorn steps before the first Newton step, at least 1; ``reg`` falls to its value during them.
    init
        Potentials ``(f, g)`` to start from, as in ``TransportPlan.potentials``, in place of the warm start.
    tol
        It is finished once the plan's sums miss ``a`` and ``b`` by at most ``tol`` times the mass, in the 1-norm.
        About ``1e-16 * max(M) / reg`` can be reached.
    max_iter
        Greatest number of Newton steps.

    Returns
    -------
    TransportPlan
        ``value`` is the objective; it is differentiable in ``a``, ``b`` and ``M`` by the envelope theorem (in ``M``
        the gradient is the plan; in ``a`` it is the potential, up to a constant), ``plan`` and ``potentials`` by the
        implicit function theorem, with one more system of the same Hessian. ``iterations`` counts Sinkhorn and Newton
        steps; ``extras`` holds ``newton_steps``, ``cg_steps``, and, step by step, ``residuals`` and ``kept`` (the mean
        number of entries of the Hessian's plan per source).

    Raises
    ------
    TypeError
        If an argument is not a floating tensor, or a number where one is expected.
    ValueError
        If shapes, types or devices do not fit, mass is negative or of different sums, a cost is NaN or ``-inf``,
        forbidden pairs leave no plan, or a number is out of range.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If the tolerance was not met.

    Notes
    -----
    Everything is computed in float64, whatever the type of ``M``, and returned in that type. Where this departs from
    the paper: ``reg`` falls during the warm start. The potentials of the targets are eliminated: after each step they
    are matched to ``b`` exactly, so that Newton's system is the Schur complement over the sources and nothing can
    overflow. The Hessian is damped in proportion to the violation (Levenberg and Marquardt); the diagonal keeps the
    plan's whole sums. Its systems are solved by conjugate gradients with the Schur complement's own diagonal as
    preconditioner, no more accurately than the violation is worth. The line search may lengthen a step too. Where
    Newton's steps are of no use (the kept entries fall into groups that hardly exchange mass) the solution is followed
    from a larger ``reg``, halved again and again.

    References
    ----------
    X. Tang, M. Shavlovsky, H. Rahmanian, E. Tardini, K. K. Thekumparampil, T. Xiao, L. Ying. Accelerating Sinkhorn
    algorithm with sparse Newton iterations. ICLR 2024. arXiv:2401.12253.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> M = torch.rand(100, 100, dtype=torch.float64, generator=generator)
    >>> found = sinkhorn_newton_sparse(None, None, M, reg=1 / 1200, tol=1e-12)
    >>> found.converged, found.iterations < 60
    (True, True)
    >>> bool((found.plan.sum(1) - 1 / 100).abs().sum() < 1e-12)
    True
    """
    check_range(reg, "reg", 0, closed="neither")
    check_range(tol, "tol", 0)
    check_range(max_iter, "max_iter", 1, integer=True)
    check_range(warm_start, "warm_start", 1, integer=True)
    if isinstance(rho, str):
        check_option(rho, "rho", ("auto",))
    else:
        check_range(rho, "rho", 0, 1, closed="right")
    a, b, M, problem = check_histograms(a, b, M)
    newton = _Newton(problem, reg, rho, max_iter)
    with torch.no_grad():
        x, y = newton.start(warm_start, init)
        x, y, residual = newton.run(x, y, reg, tol, hasty=True)
        if newton.lost:
            x, y, residual = newton.follow(warm_start, tol)
    message = ""
    if not residual <= tol:
        why = "stopped" if newton.steps == max_iter else "can get no nearer in float64: it stopped"
        where = f"after {newton.steps} Newton steps at residual {residual:.3g}, above tol={tol:g}"
        message = f"sinkhorn_newton_sparse {why} {where}"
        warn_short(message)
    found = {"iterations": newton.sinkhorn_steps + newton.steps, "residual": residual, "converged": not message}
    extras = {"newton_steps": newton.steps, "cg_steps": newton.cg_steps, **newton.history}
    return optimal_plan(a, b, M, problem, x, y, reg, **found, message=message, extras=extras)


class _Newton:
    """Newton's iteration on the dual of one problem (or one batch), with its counters."""

    def __init__(self, problem: TransportProblem, reg: float, rho: float | str, max_iter: int) -> None:
        self.problem, self.reg, self.rho, self.max_iter = problem, reg, rho, max_iter
        self.steps = self.cg_steps = self.sinkhorn_steps = 0
        self.history: dict[str, list[float]] = {"residuals": [], "kept": []}
        self.lost = False

    def start(self, warm_start: int, init: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The first potentials in units of ``reg``."""
        p = self.problem
        self.sinkhorn_steps += warm_start if init is None else 1
        if init is None:
            return annealed(p, self.reg, warm_start)
        return log_step(p.a, p.b, p.cost, start(p, init, self.reg), self.reg)

    def follow(self, warm_start: int, tol: float) -> tuple[Tensor, Tensor, float]:
        """Follow the solution from a ``reg`` at which it is easy to find, halving it, to the one that is wanted.

        Each level starts from the line through the solutions of the last two: for small ``reg`` the potentials are
        nearly linear in it.
        """
        cost = self.problem.cost[torch.isfinite(self.problem.cost)]
        easy = max(self.reg, float(cost.max() - cost.min()) / _EASY)
        halvings = math.ceil(math.log2(easy / self.reg))
        x, y = annealed(self.problem, easy, warm_start)
        self.sinkhorn_steps += warm_start
        solved: list[tuple[float, Tensor, Tensor]] = []
        for reg in [easy / 2**k for k in range(halvings)] + [self.reg]:
            if solved:
                x, y = self._ahead(solved, reg)
            x, y, residual = self.run(x, y, reg, tol if reg == self.reg else 0.01)
            solved.append((reg, reg * x, reg * y))
        return x, y, residual

    def _ahead(self, solved: list[tuple[float, Tensor, Tensor]], reg: float) -> tuple[Tensor, Tensor]:
        """Continue the line through the last two solutions to the next ``reg``."""
        now, f, g = solved[-1]
        before, f_before, g_before = solved[max(len(solved) - 2, 0)]
        share = (reg - now) / (now - before) if len(solved) > 1 else 0.0
        x, y = ((h + share * (h - h_before)) / reg for h, h_before in ((f, f_before), (g, g_before)))
        no_a, no_b = self.problem.a == 0, self.problem.b == 0
        return x.masked_fill(no_a, -torch.inf), y.masked_fill(no_b, -torch.inf)

    def run(self, x: Tensor, y: Tensor, reg: float, tol: float, hasty: bool = False) -> tuple[Tensor, Tensor, float]:
        """Take Newton steps at one ``reg``, from and to potentials in units of it; return the residual too.

        In haste it gives up, and is ``lost``, once a step is only good if it is much shortened.
        """
        a, b, mass = self.problem.a, self.problem.b, self.problem.mass
        damping, best, stalled = torch.full_like(mass, 0.1), float("inf"), 0
        while True:
            x, y, P, rows, columns = _matched(self.problem, x, y, reg)
            gradient = torch.where(a > 0, a - rows, 0)
            violation = gradient.abs().sum(1) + torch.where(b > 0, b - columns, 0).abs().sum(1)
            relative = violation / mass
            residual, active = float(relative.max()), relative > tol
            self.history["residuals"].append(residual)
            best, stalled = min(best, residual), stalled if residual > 0.9 * best else 0
            if not bool(active.any()) or self.steps == self.max_iter or stalled == 3:
                return x, y, residual
            if self.rho == "auto":
                places = significant_entries(P, torch.minimum(0.1 * violation, 0.01 * mass))
            else:
                places = largest_entries(P, float(self.rho))
            share = (damping * relative).clamp_min(_ROUNDING)[:, None]
            hessian = ReducedHessian(P, rows, columns, places, share * torch.maximum(a, rows))
            gradient = torch.where(active[:, None], gradient - a * (gradient.sum(1) / mass)[:, None], 0)
            direction, cg_steps = hessian.solve(gradient, min(0.1, float(relative[active].min()) ** 0.5))
            direction = torch.where(a > 0, direction - (a * direction).sum(1, keepdim=True) / mass[:, None], 0)
            step, length, sure = _line_search(P, a, b, columns, direction, gradient, violation)
            self.steps += 1
            self.cg_steps += cg_steps
            self.history["kept"].append(hessian.entries / rows.numel())
            if hasty and bool((active & sure & (length < 0.3)).any()):
                self.lost = True
                return x, y, residual
            stalled = 0 if bool((active & sure).any()) else stalled + 1
            x, y = x + step[0], y + step[1]
            damping = torch.where(length >= 1, damping / 8, torch.where(length >= 0.3, damping * 2, damping * 8))
            damping = damping.clamp(1e-12, 1e3)


def _matched(
    problem: TransportProblem, x: Tensor, y: Tensor, reg: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The plan of the potentials and its sums, with the targets' potentials set so that its columns match ``b``."""
    while True:
        P = gibbs_plan(x, y, problem.cost, reg)
        columns = P.sum(1)
        missing = torch.where(problem.b > 0, problem.b - columns, 0).abs().sum(1)
        if not bool((missing > 1e-6 * problem.mass).any()):  # NaN ends it too
            return x, y, P, P.sum(2), columns
        y = torch.where(problem.b > 0, y + (problem.b / columns).log(), -torch.inf)


def _line_search(
    P: Tensor, a: Tensor, b: Tensor, columns: Tensor, direction: Tensor, gradient: Tensor, violation: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Find how far to go: the steps of both potentials, the lengths, and whether the dual's gain exceeds its rounding.

    Along the direction the plan is the present one with scaled rows, so that matching its columns, and the dual's gain,
    cost one product with a vector.
    """
    mass, reach = a.sum(1), direction.abs().amax(1)
    slope, ascent, unmatched = (direction * gradient).sum(1), (direction * a).sum(1), (b - columns).sum(1)
    limit = _LONGEST / reach.clamp_min(1e-300)
    noise = 1e-14 * mass * (1 + reach.clamp_max(_LONGEST))

    def evaluate(length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u = (length[:, None] * direction).exp()
        v = torch.where(b > 0, b / (u[:, None, :] @ P)[:, 0, :], 1)
        gain = length * ascent + torch.where(b > 0, b * v.log(), 0).sum(1) - unmatched
        left = torch.where(a > 0, a - u * (P @ v[:, :, None])[:, :, 0], 0).abs().sum(1)
        return v.log(), gain, left

    length = limit.clamp_max(1.0)
    sure = length * slope > noise
    y, gain, left = evaluate(length)
    growing = good = torch.where(sure, gain >= 0.01 * length * slope, left < 0.9 * violation)
    for _ in range(
        20
    ):  # shorten where the dual gains too little, or, within its rounding, where the sums get no better
        if bool(good.all()):
            break
        length = torch.where(good, length, length / 4)
        y, gain, left = evaluate(length)
        good = good | torch.where(sure, gain >= 0.01 * length * slope, left < 0.9 * violation)
    length = torch.where(good, length, 0)
    while bool((growing := growing & (2 * length <= limit)).any()):  # lengthen where more is clearly better
        longer = torch.where(growing, 2 * length, length)
        y_longer, gain_longer, left_longer = evaluate(longer)
        better = (gain_longer > 1.3 * gain) & sure | (gain_longer > gain - noise) & (left_longer < 0.5 * left)
        growing = growing & better
        length, gain, left = (
            torch.where(growing, new, old) for new, old in ((longer, length), (gain_longer, gain), (left_longer, left))
        )
        y = torch.where(growing[:, None], y_longer, y)
    x = length[:, None] * direction
    return (x, torch.where(length[:, None] > 0, y, 0)), length, sure
