"""How far a map is from transporting at the least cost, as a loss for any torch map and any cost.

The Monge gap of a map ``T`` on points ``x_i`` is what it pays, ``mean c(x_i, T(x_i))``, less what the cheapest way to
the same images pays. It is zero exactly for optimal maps, so that a map fitted to a target population by a divergence,
with the gap as a regulariser, becomes an optimal transport map: no convex network, no conjugates.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.transport.costs import Cost, SquaredEuclidean
from hadamard.transport.sinkhorn import sinkhorn
from hadamard.transport.sinkhorn_newton_sparse import sinkhorn_newton_sparse
from hadamard.validation import check_range, check_same, check_tensor

__all__ = ["MongeGapLoss", "SinkhornDivergence", "monge_gap", "sinkhorn_divergence"]

_SMALL, _FINE = 0.02, 1e-5  # below, as reg's share of the mean cost or as tol, Newton is faster than Sinkhorn


def monge_gap(
    x: Float[Tensor, "*#batch n d"],
    y: Float[Tensor, "*#batch n d"],
    cost: Cost | None = None,
    *,
    reg: float | None = None,
    relative_reg: float = 0.05,
    tol: float = 1e-3,
    max_iter: int = 1000,
) -> Float[Tensor, "*batch"]:
    """Measure how much more a map pays than the cheapest way to its images; zero exactly for optimal maps.

    Computes ``mean c(x_i, y_i) - W(x, y)`` for ``y = T(x)``, with the entropic transport cost
    ``W = min <P, C> + reg * sum(P log P)`` over the plans between the two uniform point sets.

    Parameters
    ----------
    x
        Points, shape (..., n, d); leading dimensions count problems.
    y
        Their images, in the same order and of the same shape; differentiable.
    cost
        What moving a point costs: an object with ``pairwise`` and ``paired`` (:class:`Cost`); ``None``: squared
        Euclidean.
    reg
        Weight of the entropy, in units of cost, above 0; ``None``: ``relative_reg`` times the mean cost of all pairs,
        through which no gradient flows.
    relative_reg
        Used where ``reg`` is ``None``.
    tol, max_iter
        The transport problem is solved until its plan misses the marginals by at most ``tol``, in the 1-norm, in at
        most so many iterations. The gap stays an upper bound where it is cut short.

    Returns
    -------
    Tensor
        The gap, in units of cost, one number a problem: not negative, at least the gap without entropy, and decreasing
        to it with ``reg``. Differentiable in ``x`` and ``y`` by the envelope theorem: the plan is taken as fixed.

    Raises
    ------
    TypeError
        If ``x`` or ``y`` is not a floating tensor, or ``cost`` lacks a method.
    ValueError
        If shapes differ, a value is NaN or infinite, or a number is out of range.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If the tolerance was not met.

    Notes
    -----
    The entropy is Shannon's, so that ``W`` is at most the unregularised cost. With the divergence from the product of
    the marginals in its place, as many codes have it, ``W`` is larger by ``2 reg log n`` and gaps come out negative.

    References
    ----------
    T. Uscidda, M. Cuturi. The Monge gap: a regularizer to learn all transport maps. ICML 2023. arXiv:2302.04953.

    Examples
    --------
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> bool(monge_gap(x, 2 * x + 1, reg=1e-3) < 0.02)  # the gradient of a convex function
    True
    >>> bool(monge_gap(x, -x, reg=1e-3) > 7)  # 2 E|x|^2, as far as can be
    True
    """
    cost = _check(cost, reg, relative_reg, tol, max_iter)
    x, y = _points(x, "x"), _points(y, "y")
    check_same(x=x, y=y)
    if x.shape[-2:] != y.shape[-2:]:
        raise ValueError(f"y must hold the images of x, of shape {tuple(x.shape[-2:])}, got {tuple(y.shape[-2:])}")
    return cost.paired(x, y).mean(-1) - _transport(cost.pairwise(x, y), reg, relative_reg, tol, max_iter)


def sinkhorn_divergence(
    x: Float[Tensor, "*#batch n d"],
    y: Float[Tensor, "*#batch m d"],
    cost: Cost | None = None,
    *,
    reg: float | None = None,
    relative_reg: float = 0.05,
    tol: float = 1e-3,
    max_iter: int = 1000,
) -> Float[Tensor, "*batch"]:
    """Measure how different two populations are: entropic transport cost, less the mean of each one's own.

    Computes ``W(x, y) - W(x, x) / 2 - W(y, y) / 2``.

    Parameters
    ----------
    x, y
        The populations, shapes (..., n, d) and (..., m, d).
    cost, tol, max_iter
        As for :func:`monge_gap`.
    reg, relative_reg
        As for :func:`monge_gap`; the mean cost is that of all pairs within ``y``, the target.

    Returns
    -------
    Tensor
        One number a problem, zero for equal populations; differentiable by the envelope theorem.

    Raises
    ------
    TypeError, ValueError
        As :func:`monge_gap`.

    References
    ----------
    J. Feydy, T. Séjourné, F.-X. Vialard, S. Amari, A. Trouvé, G. Peyré. Interpolating between optimal transport and
    MMD using Sinkhorn divergences. AISTATS 2019. arXiv:1810.08278.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> sinkhorn_divergence(x, x + 3, reg=0.1).round(decimals=2)  # of a translation: its squared length
    tensor(9.)
    """
    cost = _check(cost, reg, relative_reg, tol, max_iter)
    x, y = _points(x, "x"), _points(y, "y")
    check_same(x=x, y=y)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y must have points of the same dimension, got {x.shape[-1]} and {y.shape[-1]}")
    within = cost.pairwise(y, y)
    reg = reg or _share(within, relative_reg)
    costs = [cost.pairwise(x, y), cost.pairwise(x, x), within]
    if x.shape == y.shape:  # three problems at once
        between, of_x, of_y = _transport(torch.stack(costs), reg, relative_reg, tol, max_iter)
    else:
        between, of_x, of_y = (_transport(M, reg, relative_reg, tol, max_iter) for M in costs)
    return between - (of_x + of_y) / 2


class _TransportLoss(nn.Module):
    """The settings of a loss between two point sets."""

    def __init__(
        self,
        cost: Cost | None = None,
        *,
        reg: float | None = None,
        relative_reg: float = 0.05,
        tol: float = 1e-3,
        max_iter: int = 1000,
    ) -> None:
        super().__init__()
        self.cost = _check(cost, reg, relative_reg, tol, max_iter)
        self.options: dict[str, Any] = {"reg": reg, "relative_reg": relative_reg, "tol": tol, "max_iter": max_iter}

    def extra_repr(self) -> str:
        return ", ".join([repr(self.cost), *(f"{name}={value}" for name, value in self.options.items())])


class MongeGapLoss(_TransportLoss):
    """:func:`monge_gap` as a module: ``loss(x, T(x))``.

    Parameters
    ----------
    cost, reg, relative_reg, tol, max_iter
        As for :func:`monge_gap`.

    Examples
    --------
    >>> x, T = torch.randn(64, 2), nn.Linear(2, 2)
    >>> MongeGapLoss(relative_reg=0.1)(x, T(x)).backward()
    >>> T.weight.grad.shape
    torch.Size([2, 2])
    """

    def forward(self, x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch n d"]) -> Float[Tensor, "*batch"]:
        """Compute the gap of the map that took ``x`` to ``y``."""
        return monge_gap(x, y, self.cost, **self.options)


class SinkhornDivergence(_TransportLoss):
    """:func:`sinkhorn_divergence` as a module: ``loss(T(x), target)``.

    Parameters
    ----------
    cost, reg, relative_reg, tol, max_iter
        As for :func:`sinkhorn_divergence`.

    Examples
    --------
    >>> SinkhornDivergence(reg=0.1)(torch.zeros(4, 2), torch.ones(5, 2)).round(decimals=2)
    tensor(2.)
    """

    def forward(self, x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"]) -> Float[Tensor, "*batch"]:
        """Compute the divergence of two populations."""
        return sinkhorn_divergence(x, y, self.cost, **self.options)


def _check(cost: Cost | None, reg: float | None, relative_reg: float, tol: float, max_iter: int) -> Cost:
    cost = SquaredEuclidean() if cost is None else cost
    if not isinstance(cost, Cost):
        raise TypeError(f"cost must have the methods pairwise and paired, got {type(cost).__name__}")
    if reg is not None:
        check_range(reg, "reg", 0, closed="neither")
    check_range(relative_reg, "relative_reg", 0, closed="neither")
    check_range(tol, "tol", 0)
    check_range(max_iter, "max_iter", 1, integer=True)
    return cost


def _points(x: Tensor, name: str) -> Tensor:
    """Points checked; half precision is too coarse for costs."""
    check_tensor(x, name, dtype="floating")
    if x.ndim < 2:
        raise ValueError(f"{name} must have shape (..., n, d), got {tuple(x.shape)}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _share(M: Tensor, relative_reg: float) -> float:
    """That share of the mean cost; of anything where all costs are zero."""
    return relative_reg * float(M.detach().mean()) or relative_reg


def _transport(M: Tensor, reg: float | None, relative_reg: float, tol: float, max_iter: int) -> Tensor:
    """The entropic transport cost between uniform point sets."""
    mean = _share(M, 1.0)
    reg = reg or relative_reg * mean
    if reg < _SMALL * mean or tol < _FINE:
        return sinkhorn_newton_sparse(None, None, M, reg, tol=tol, max_iter=max_iter).value
    return sinkhorn(None, None, M, reg, tol=tol, max_iter=max_iter).value
