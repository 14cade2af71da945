"""Entropic optimal transport by Sinkhorn's iteration in the logarithmic domain."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.results import warn_short
from hadamard.transport.hessian import gibbs_plan, optimal_plan
from hadamard.transport.problem import TransportPlan, TransportProblem, check_histograms
from hadamard.validation import check_range, check_tensor

__all__ = ["sinkhorn"]

_FAR = 1e20  # scalings are absorbed into the potentials when one leaves [1 / _FAR, _FAR]


def sinkhorn(
    a: Float[Tensor, "*#batch n"] | None,
    b: Float[Tensor, "*#batch m"] | None,
    M: Float[Tensor, "*#batch n m"],
    reg: float,
    *,
    init: tuple[Tensor, Tensor] | None = None,
    tol: float = 1e-9,
    max_iter: int = 10_000,
) -> TransportPlan:
    """Move mass at the least cost plus entropy, by alternately matching the two histograms.

    Solves ``min <P, M> + reg * sum(P log P)`` over plans with ``P 1 = a`` and ``P^T 1 = b``.

    Parameters
    ----------
    a, b
        Mass of the sources, shape (..., n), and of the targets, (..., m): not negative, of equal sums. ``None``:
        uniform. Points without mass are left out.
    M
        Costs, shape (..., n, m); ``inf`` forbids a pair. Leading dimensions broadcast: many problems at once.
    reg
        Weight of the entropy, in units of cost, above 0.
    init
        Potentials ``(f, g)`` to start from, as in ``TransportPlan.potentials``; ``None``: zero.
    tol
        It is finished once the plan's sums miss ``a`` and ``b`` by at most ``tol`` times the mass, in the 1-norm.
    max_iter
        Greatest number of iterations; each matches ``a`` and then ``b``.

    Returns
    -------
    TransportPlan
        ``value`` is the objective; it is differentiable in ``a``, ``b`` and ``M`` by the envelope theorem (in ``M``
        the gradient is the plan; in ``a`` it is the potential, up to a constant), ``plan`` and ``potentials`` by
        the implicit function theorem. ``residual`` is the violation relative to the mass.

    Raises
    ------
    TypeError
        If an argument is not a floating tensor, or a number where one is expected.
    ValueError
        If shapes, types or devices do not fit, mass is negative or of different sums, a cost is NaN or ``-inf``,
        forbidden pairs leave no plan, or ``reg``, ``tol`` or ``max_iter`` is out of range.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If the tolerance was not met.

    Notes
    -----
    Everything is computed in float64 and returned in the type of ``M``. The iterates are those of the logarithmic
    domain, but most steps are products with ``exp((f + g - M) / reg)`` for the current potentials ``f`` and ``g``:
    scalings collect in two vectors and are absorbed into the potentials before they can overflow (Schmitzer's
    stabilisation). Costs a tenth of two log-sum-exps per iteration.

    References
    ----------
    M. Cuturi. Sinkhorn distances: lightspeed computation of optimal transport. NeurIPS 2013. arXiv:1306.0895.
    B. Schmitzer. Stabilized sparse scaling algorithms for entropy regularized transport problems. SIAM Journal on
    Scientific Computing 41, 2019. arXiv:1610.06519.

    Examples
    --------
    >>> a, b = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> found = sinkhorn(a, b, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.1)
    >>> found.plan.sum(0), found.converged
    (tensor([0.2500, 0.7500]), True)
    """
    check_range(reg, "reg", 0, closed="neither")
    check_range(tol, "tol", 0)
    check_range(max_iter, "max_iter", 1, integer=True)
    a, b, M, problem = check_histograms(a, b, M)
    with torch.no_grad():
        x, y, iterations, residual = _iterate(problem, start(problem, init, reg), reg, tol, max_iter)
    message = ""
    if not residual <= tol:
        message = f"sinkhorn stopped after {iterations} iterations at residual {residual:.3g}, above tol={tol:g}"
        warn_short(message)
    found = {"iterations": iterations, "residual": residual, "converged": not message, "message": message}
    return optimal_plan(a, b, M, problem, x, y, reg, **found)


def start(problem: TransportProblem, init: tuple[Tensor, Tensor] | None, reg: float) -> Tensor:
    """Check the caller's potentials; return the targets' in units of ``reg``, from which the sources' follow."""
    if init is None:
        return torch.zeros_like(problem.b).masked_fill(problem.b == 0, -torch.inf)
    if not isinstance(init, tuple) or len(init) != 2:
        raise TypeError(f"init must be a pair of potentials (f, g), got {type(init).__name__}")
    for name, f, size in zip(("init[0]", "init[1]"), init, problem.size):
        check_tensor(f, name, dtype="floating", shape=(size,), finite=False)
    f, g = problem.keep_rows(init[0]), problem.keep_columns(init[1])
    for name, h, mass in (("init[0]", f, problem.a), ("init[1]", g, problem.b)):
        if not bool(torch.isfinite(h[mass > 0]).all()):
            raise ValueError(f"{name} must be finite where there is mass, got NaN or infinite values")
    return (g / reg).masked_fill(problem.b == 0, -torch.inf)


def log_step(a: Tensor, b: Tensor, cost: Tensor, y: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """Match the sources and then the targets, from the targets' potentials (in units of ``reg``) alone.

    The row maxima that make the first log-sum-exp safe also make the second one a product with a vector; a target that
    is so far from every source that this underflows is brought nearer, and is matched by a later step.
    """
    logits = torch.add(y[:, None, :], cost, alpha=-1 / reg)
    top = logits.amax(2, keepdim=True).clamp_(min=torch.finfo(y.dtype).min)
    kernel = logits.sub_(top).clamp_(min=0.6 * math.log(torch.finfo(y.dtype).tiny)).exp_()
    sums = kernel.sum(2)
    reached = ((a / sums)[:, None, :] @ kernel)[:, 0, :]
    return a.log() - top[:, :, 0] - sums.log(), torch.where(b > 0, y + (b / reached).log(), -torch.inf)


def annealed(problem: TransportProblem, reg: float, steps: int) -> tuple[Tensor, Tensor]:
    """Take some Sinkhorn steps while ``reg`` falls geometrically from the range of the costs to its value.

    The last quarter of the steps, and at least one, is taken at ``reg`` itself. All but the last are in float32, which
    a warm start does not notice. Returns potentials in units of ``reg``.
    """
    tiny = torch.finfo(torch.float32).tiny
    a, b = (torch.where(t > 0, t.float().clamp_min(tiny), 0) for t in (problem.a, problem.b))
    cost = problem.cost.float()
    finite = cost if bool(torch.isfinite(cost).all()) else cost[torch.isfinite(cost)]
    low, high = finite.aminmax()
    largest, falling = max(reg, float(high - low)), 3 * (steps - 1) // 4
    schedule = [largest * (reg / largest) ** (k / falling) for k in range(falling)] + [reg] * (steps - 1 - falling)
    y, previous = torch.zeros_like(b).masked_fill(b == 0, -torch.inf), reg
    for current in schedule:
        _, y = log_step(a, b, cost, y * (previous / current), current)
        previous = current
    return log_step(problem.a, problem.b, problem.cost, y.to(torch.float64), reg)


def _iterate(
    problem: TransportProblem, y: Tensor, reg: float, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, int, float]:
    """Run the iteration; return potentials in units of ``reg``, the number of iterations and the residual."""
    a, b, mass = problem.a, problem.b, problem.mass
    no_a, no_b = (a == 0).double(), (b == 0).double()  # a row without mass is all zeros: keep its scaling at 1
    iterations, residual = 0, float("inf")
    while iterations < max_iter:
        x, y = log_step(a, b, problem.cost, y, reg)
        iterations += 1
        kernel = gibbs_plan(x, y, problem.cost, reg)
        u, v = torch.ones_like(a), torch.ones_like(b)
        while True:
            rows = (kernel @ v[:, :, None])[:, :, 0] + no_a
            residual = float(((u * rows - a - no_a).abs().sum(1) / mass).max())
            if residual <= tol or iterations >= max_iter:
                break
            u = (a + no_a) / rows
            v = (b + no_b) / ((u[:, None, :] @ kernel)[:, 0, :] + no_b)
            iterations += 1
            low, high = torch.cat([u, v], 1).aminmax()
            if (float(low) < 1 / _FAR or float(high) > _FAR) and iterations < max_iter:
                break
        x, y = x + u.log(), y + v.log()
        if residual <= tol:
            break
    return x, y, iterations, residual
