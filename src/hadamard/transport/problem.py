"""What every transport method shares: histograms and costs checked once, points without mass dropped, plans."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hadamard.results import Solution
from hadamard.validation import check_range, check_same, check_tensor

__all__ = ["TransportPlan", "TransportProblem", "check_histograms"]


@dataclass(frozen=True, kw_only=True)
class TransportPlan(Solution):
    """How mass is moved from one histogram to another, and what that costs.

    ``value`` is the objective of the problem that was solved, one number a problem, and differentiable.

    Attributes
    ----------
    plan
        Mass moved between the points, shape (..., n, m).
    potentials
        Dual potentials of shapes (..., n) and (..., m), in units of cost. Only their sum over a pair is determined;
        where a point has no mass its potential is ``-inf``.

    Examples
    --------
    >>> from hadamard.transport import sinkhorn
    >>> a, b = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> found = sinkhorn(a, b, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.1)
    >>> found.plan.round(decimals=2)
    tensor([[0.2500, 0.2500],
            [0.0000, 0.5000]])
    """

    plan: Tensor
    potentials: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TransportProblem:
    """A checked problem, reduced to the points that have mass, in float64 and with one batch dimension.

    Attributes
    ----------
    a, b
        Histograms of shapes (B, n') and (B, m'); zeros are left only where another problem of the batch has mass.
    cost
        Costs of shape (B, n', m'); ``inf`` where a pair is forbidden.
    rows, columns
        Which of the ``n`` and ``m`` points were kept; ``None``: all.
    batch
        Shape of the leading dimensions that were given.
    size
        The ``n`` and ``m`` that were given.
    """

    a: Tensor
    b: Tensor
    cost: Tensor
    rows: Tensor | None
    columns: Tensor | None
    batch: torch.Size
    size: tuple[int, int]

    @property
    def mass(self) -> Tensor:
        """Total mass of each problem, shape (B,)."""
        return self.a.sum(-1)

    def keep_rows(self, f: Tensor) -> Tensor:
        """Reduce a vector over the sources, (..., n), to those that were kept, (B, n'), in float64."""
        return self._keep(f, self.rows)

    def keep_columns(self, g: Tensor) -> Tensor:
        """Reduce a vector over the targets, (..., m), to those that were kept, (B, m'), in float64."""
        return self._keep(g, self.columns)

    def _keep(self, f: Tensor, kept: Tensor | None) -> Tensor:
        f = f.detach().to(torch.float64).expand(*self.batch, f.shape[-1]).reshape(-1, f.shape[-1])
        return f if kept is None else f[:, kept]

    def keep_pairs(self, x: Tensor) -> Tensor:
        """Reduce a matrix over all pairs, (..., n, m), to the points that were kept, (B, n', m'), in float64."""
        x = x.detach().to(torch.float64).expand(*self.batch, *self.size).reshape(-1, *self.size)
        x = x if self.rows is None else x[:, self.rows]
        return x if self.columns is None else x[:, :, self.columns]

    def restore_rows(self, f: Tensor, fill: float = 0.0) -> Tensor:
        """Put the dropped sources back into a vector, with ``fill``: (B, n') to (..., n)."""
        return self._restore(f, self.rows, self.size[0], fill)

    def restore_columns(self, g: Tensor, fill: float = 0.0) -> Tensor:
        """Put the dropped targets back into a vector, with ``fill``: (B, m') to (..., m)."""
        return self._restore(g, self.columns, self.size[1], fill)

    def _restore(self, f: Tensor, kept: Tensor | None, size: int, fill: float) -> Tensor:
        if kept is not None:
            f = f.new_full((f.shape[0], size), fill).index_copy_(1, kept, f)
        return f.reshape(*self.batch, size)

    def restore_pairs(self, x: Tensor) -> Tensor:
        """Put the dropped points back into a matrix, with zeros: (B, n', m') to (..., n, m)."""
        n, m = self.size
        if self.columns is not None:
            x = x.new_zeros(x.shape[0], x.shape[1], m).index_copy_(2, self.columns, x)
        if self.rows is not None:
            x = x.new_zeros(x.shape[0], n, m).index_copy_(1, self.rows, x)
        return x.reshape(*self.batch, n, m)


def check_histograms(a: Tensor | None, b: Tensor | None, M: Tensor) -> tuple[Tensor, Tensor, Tensor, TransportProblem]:
    """Check two histograms and a cost matrix, and reduce them to the points that have mass.

    Parameters
    ----------
    a, b
        Mass of the sources, shape (..., n), and of the targets, (..., m): not negative, and of equal sums up to
        rounding (``b`` is scaled to the sum of ``a``). ``None``: uniform with sum 1.
    M
        Costs, shape (..., n, m); ``inf`` forbids a pair. Leading dimensions broadcast: many problems at once.

    Returns
    -------
    a, b, M : Tensor
        What was given, with the defaults filled in and the leading dimensions of all three made equal; differentiable.
    problem : TransportProblem
        The reduced problem; not differentiable.

    Raises
    ------
    TypeError
        If one is not a floating tensor.
    ValueError
        If shapes, types or devices do not fit, mass is negative, missing or of different sums, a cost is NaN or
        ``-inf``, or forbidden pairs leave no plan.

    Examples
    --------
    >>> *_, problem = check_histograms(torch.tensor([0.5, 0.0, 0.5]), None, torch.ones(3, 2))
    >>> problem.rows, problem.cost.shape
    (tensor([0, 2]), torch.Size([1, 2, 2]))
    """
    check_tensor(M, "M", dtype="floating", finite=False)
    if M.ndim < 2:
        raise ValueError(f"M must have shape (..., n, m), got {tuple(M.shape)}")
    n, m = M.shape[-2:]
    a = _histogram(a, "a", M, n)
    b = _histogram(b, "b", M, m)
    check_same(a=a, b=b, M=M)
    low, high = (float(end) for end in M.detach().aminmax())
    if not low > -np.inf:
        raise ValueError(f"M must hold costs that are finite or inf (a forbidden pair), got {low}")
    try:
        batch = torch.Size(np.broadcast_shapes(a.shape[:-1], b.shape[:-1], M.shape[:-2]))  # torch's loads sympy
    except ValueError:
        shapes = f"{tuple(a.shape[:-1])}, {tuple(b.shape[:-1])} and {tuple(M.shape[:-2])}"
        raise ValueError(f"a, b and M must have leading dimensions that broadcast, got {shapes}") from None
    a, b, M = a.expand(*batch, n), b.expand(*batch, m), M.expand(*batch, n, m)
    return a, b, M, _reduce(a, b, M, batch, forbidding=high == np.inf)


def _histogram(x: Tensor | None, name: str, M: Tensor, size: int) -> Tensor:
    """One histogram, checked; uniform where none is given."""
    if x is None:
        return M.new_full((size,), 1 / size)
    check_tensor(x, name, dtype="floating")
    if x.ndim == 0 or x.shape[-1] != size:
        raise ValueError(f"{name} must have shape (..., {size}) for M of shape {tuple(M.shape)}, got {tuple(x.shape)}")
    check_range(x, name, 0, elementwise=True)
    return x


def _reduce(a: Tensor, b: Tensor, M: Tensor, batch: torch.Size, forbidding: bool) -> TransportProblem:
    """Equalise the masses, drop what has none, and see that a plan is left."""
    n, m = M.shape[-2:]
    slack = 1e-8 if a.dtype == torch.float64 else 100 * torch.finfo(a.dtype).eps
    a, b = (x.detach().to(torch.float64).reshape(-1, x.shape[-1]) for x in (a, b))
    mass, other = a.sum(-1), b.sum(-1)
    if not bool((mass > 0).all()):
        raise ValueError("a must have positive mass, got a histogram of zeros")
    if bool(((mass - other).abs() > slack * mass).any()):
        worst = int(((mass - other).abs() / mass).argmax())
        raise ValueError(f"a and b must have equal mass, got {float(mass[worst]):.9g} and {float(other[worst]):.9g}")
    b = b * (mass / other)[:, None]
    rows, columns = (None if bool(has.all()) else has.nonzero()[:, 0] for has in ((a > 0).any(0), (b > 0).any(0)))
    whole = TransportProblem(a, b, M, rows, columns, batch, (n, m))
    a, b = whole.keep_rows(a.reshape(*batch, n)), whole.keep_columns(b.reshape(*batch, m))
    cost = whole.keep_pairs(M)
    if forbidding:
        for i in range(len(cost)):
            _check_feasible(a[i], b[i], cost[i])
    return TransportProblem(a, b, cost, rows, columns, batch, (n, m))


def _check_feasible(a: Tensor, b: Tensor, cost: Tensor) -> None:
    """Refuse forbidden pairs that leave no plan: the largest flow through the others must carry all mass."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    allowed = torch.isfinite(cost) & (a > 0)[:, None] & (b > 0)
    for name, has, open_ in (("row", a > 0, allowed.any(1)), ("column", b > 0, allowed.any(0))):
        if bool((has & ~open_).any()):
            raise ValueError(f"M forbids every pair of a {name} that has mass")
    units = 2**30  # the flow is computed in integers: a plan is found up to 1e-6 of the mass
    supply, demand = ((x / a.sum() * units).floor().cpu().numpy().astype(np.int32) for x in (a, b))
    n, m = cost.shape
    i, j = allowed.cpu().numpy().nonzero()
    tails = np.concatenate([np.zeros(n, int), i + 1, np.arange(m) + n + 1])
    heads = np.concatenate([np.arange(n) + 1, j + n + 1, np.full(m, n + m + 1)])
    capacity = np.concatenate([supply, np.minimum(supply[i], demand[j]), demand])
    network = csr_array((capacity, (tails, heads)), shape=(n + m + 2, n + m + 2))
    carried = maximum_flow(network, 0, n + m + 1).flow_value / units
    if carried < 1 - 1e-6 - (n + m) / units:
        raise ValueError(f"M forbids too many pairs: at most {carried:.6g} of the mass can be transported")
