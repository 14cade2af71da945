"""The semi-dual of a transport problem whose columns are regularised, and how it is maximised.

For ``min <T, C> + sum_j omega(t_j)`` over the plans with ``T 1 = a`` and ``T^T 1 = b`` the potentials ``beta`` of the
columns can be eliminated. What is left is the concave semi-dual in the potentials ``alpha`` of the rows,
``<alpha, a> - sum_j omega*(alpha - c_j; b_j)``, in which every column of the plan is found by itself. Its gradient is
``a - T 1``. Costs are stored column by column here: ``C`` has shape (..., m, n), for ``n`` rows and ``m`` columns.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hadamard.kernels.semidual import semi_dual as kernel
from hadamard.proximal import simplex
from hadamard.proximal.thresholds import top_k

__all__ = ["SparseSquaredL2", "ascend", "prepare_dual", "prepare_semi_dual", "semi_dual"]

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

_MEMORY = 10  # corrections that L-BFGS keeps
_PATIENCE = 100  # evaluations without progress, after which a problem is left at its kink


@dataclass(frozen=True)
class SparseSquaredL2:
    """``reg / 2 * ||t||^2`` on the non-negative vectors with at most ``k`` nonzero entries, along the last dimension.

    Its conjugate is the largest ``<s, t> - reg / 2 * ||t||^2``, over all of them or over those that sum to ``mass``.

    Parameters
    ----------
    reg
        Weight, above 0.
    k
        Greatest number of nonzero entries.

    Examples
    --------
    >>> SparseSquaredL2(0.5, k=1).grad_conjugate(torch.tensor([3.0, 4.0]), torch.tensor(2.0))
    tensor([0., 2.])
    """

    reg: float
    k: int

    def value(self, t: Tensor) -> Tensor:
        """Evaluate at vectors of the domain: (..., n) to (...)."""
        return self.reg / 2 * t.square().sum(-1)

    def conjugate(self, s: Tensor, mass: Tensor | None = None) -> Tensor:
        """Evaluate the conjugate: scores (..., n) and masses (...) to (...)."""
        t = self.grad_conjugate(s, mass)
        return (torch.where(t > 0, s, 0) * t).sum(-1) - self.value(t)

    def grad_conjugate(self, s: Tensor, mass: Tensor | None = None) -> Tensor:
        """Find the vectors that attain the conjugate; of equal scores the lowest index is kept."""
        if mass is not None:
            return simplex(s, self.reg * mass, k=self.k) / self.reg
        values, indices = top_k(s, self.k)
        return torch.zeros_like(s).scatter_(-1, indices, values.clamp_min(0) / self.reg)


def semi_dual(alpha: Tensor, C: Tensor, b: Tensor, omega: SparseSquaredL2) -> tuple[Tensor, Tensor]:
    """Sum the columns' conjugates at the potentials of the rows.

    Parameters
    ----------
    alpha
        Potentials, shape (..., n).
    C
        Costs by columns, shape (..., m, n); a block of the columns will do.
    b
        Their masses, shape (..., m).
    omega
        The columns' regulariser.

    Returns
    -------
    value, rows : Tensor
        The sum, shape (...), and its gradient, the row sums of the plan that attains it, shape (..., n).

    Examples
    --------
    >>> semi_dual(torch.zeros(2), torch.tensor([[0.0, 1.0]]), torch.tensor([1.0]), SparseSquaredL2(0.1, 1))
    (tensor(-0.0500), tensor([1., 0.]))
    """
    scores = alpha[..., None, :] - C
    return omega.conjugate(scores, b).sum(-1), omega.grad_conjugate(scores, b).sum(-2)


def prepare_semi_dual(a: Tensor, b: Tensor, C: Tensor, omega: SparseSquaredL2) -> Objective:
    """Prepare the negated semi-dual and its gradient for many evaluations, at potentials of shape (B, n).

    It is :func:`semi_dual` minus ``<alpha, a>``, many times faster: one sweep over the costs, from the thresholds of
    the evaluation before, by a compiled kernel where there is one.
    """
    radius = omega.reg * b
    level = torch.full_like(radius, torch.inf)

    def evaluate(alpha: Tensor) -> tuple[Tensor, Tensor]:
        value, rows = kernel(alpha, C, radius, omega.k, level)
        return value / omega.reg - (alpha * a).sum(1), rows / omega.reg - a

    return evaluate


def prepare_dual(a: Tensor, b: Tensor, C: Tensor, omega: SparseSquaredL2) -> Objective:
    """Prepare the negated dual and its gradient, at the potentials of rows and columns side by side, (B, n + m)."""

    def evaluate(potentials: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = potentials.split([a.shape[1], b.shape[1]], 1)
        t = omega.grad_conjugate(alpha[:, None, :] + beta[:, :, None] - C)
        value = omega.value(t).sum(1)  # the conjugate of a square is that square, taken at the maximiser
        return value - (alpha * a).sum(1) - (beta * b).sum(1), torch.cat([t.sum(1) - a, t.sum(2) - b], 1)

    return evaluate


def ascend(fun: Objective, x: Tensor, scale: float, tol: Tensor, max_iter: int) -> tuple[Tensor, Tensor, int]:
    """Minimise convex functions that may have kinks, one for each row of ``x``, by L-BFGS side by side.

    Every evaluation is one trial point of each problem, whether on the way to a weak Wolfe point, by doubling and
    bisection, which copes with kinks [1]_, or the first one along a new direction: no problem waits for another.

    Parameters
    ----------
    fun
        Values and gradients, shapes (B,) and (B, n), at points of shape (B, n).
    x
        Where to start.
    scale
        Length of the first step, as a multiple of the gradient.
    tol
        A problem is finished once the 1-norm of its gradient is at most this, shape (B,).
    max_iter
        Greatest number of evaluations.

    Returns
    -------
    best, residual : Tensor
        Of the points that were evaluated, those of the smallest gradient, and its 1-norm.
    evaluations : int
        How many there were.

    References
    ----------
    .. [1] A. S. Lewis, M. L. Overton. Nonsmooth optimization via quasi-Newton methods. Mathematical Programming 141,
           2013.
    """
    value, gradient = fun(x)
    evaluations = 1
    best, residual = x, gradient.abs().sum(1)
    direction, length, inverse_scale = -scale * gradient, torch.ones_like(value), torch.full_like(value, scale)
    low, high, idle = torch.zeros_like(value), torch.full_like(value, torch.inf), torch.zeros_like(value)
    pairs: deque[tuple[Tensor, Tensor, Tensor, Tensor]] = deque(maxlen=_MEMORY)
    while evaluations < max_iter and bool(((residual > tol) & (idle < _PATIENCE)).any()):
        point = x + length[:, None] * direction
        value_there, gradient_there = fun(point)
        evaluations += 1
        size = gradient_there.abs().sum(1)
        fell = (size < 0.9 * residual) | (value_there < value - 1e-9 * value.abs())
        idle = (idle + 1).masked_fill(fell, 0)
        best, residual = torch.where((size < residual)[:, None], point, best), torch.minimum(residual, size)

        slope, slope_there = (gradient * direction).sum(1), (gradient_there * direction).sum(1)
        lower = value_there <= value + 1e-4 * length * slope + 1e-15 * value.abs()
        taken = lower & (slope_there >= 0.9 * slope)
        low, high = torch.where(lower, length, low), torch.where(lower, high, length)
        length = torch.where(torch.isinf(high), 2 * length, (low + high) / 2)
        if not bool(taken.any()):
            continue
        move = torch.where(taken[:, None], point - x, 0)
        change = torch.where(taken[:, None], gradient_there - gradient, 0)
        curvature = (move * change).sum(1)
        usable = curvature > 1e-300
        inverse = torch.where(usable, 1 / curvature, 0)[:, None]
        pairs.append((move, change, inverse * move, inverse * change))
        inverse_scale = torch.where(usable, curvature / change.square().sum(1), inverse_scale)
        x, gradient, value = x + move, gradient + change, torch.where(taken, value_there, value)
        direction = torch.where(taken[:, None], -_inverse_hessian(pairs, gradient, inverse_scale), direction)
        length, low, high = (t.masked_fill(taken, start) for t, start in ((length, 1), (low, 0), (high, torch.inf)))
    return best, residual, evaluations


def _inverse_hessian(pairs: deque[tuple[Tensor, Tensor, Tensor, Tensor]], gradient: Tensor, scale: Tensor) -> Tensor:
    """Apply the limited-memory inverse Hessian to gradients; in a problem whose pair is zero, the pair does nothing.

    A pair is a move and a change of the gradient, and both once more over their inner product.
    """
    q, weights = gradient, []
    for _, change, scaled_move, _ in reversed(pairs):
        weights.append((scaled_move * q).sum(1, keepdim=True))
        q = torch.addcmul(q, weights[-1], change, value=-1)
    q = scale[:, None] * q
    for (move, _, _, scaled_change), weight in zip(pairs, reversed(weights)):
        q = torch.addcmul(q, weight - (scaled_change * q).sum(1, keepdim=True), move)
    return q
