"""Optimal transport from a distribution that can be sampled to weighted points: the map that sends each point to one.

With the cost ``|x - y|^2 / 2`` the map is the gradient of the convex function ``u(x) = max_i <x, y_i> + h_i``: it sends
``x`` to the target ``y_i`` whose cell, of a power diagram, holds it. The heights minimise the convex energy
``E(h) = E[u(x)] - <nu, h>``, of which the gradient is the cells' masses less the weights ``nu``. Both expectations are
means over samples, drawn anew at each step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hadamard.progress import progress_bar
from hadamard.results import Solution, warn_short
from hadamard.transport._ascent import Ascent
from hadamard.transport.power_diagram import assign, measure_cells
from hadamard.validation import check_option, check_range, check_same, check_tensor

__all__ = ["SemiDiscreteMap", "semi_discrete_ot"]

Source = str | Callable[[int, torch.Generator], Tensor]

_SAVE_EVERY = 100  # iterations between two saves


@dataclass(frozen=True, kw_only=True)
class SemiDiscreteMap(Solution):
    """A map onto weighted points: call it with points of the source.

    Attributes
    ----------
    value
        The semi-dual value, an estimate of the least mean of ``|x - T(x)|^2 / 2``.
    residual
        Sum of the absolute differences between masses and weights, measured on samples that were not used before. Its
        own noise makes it larger, on average, than the true one.
    target
        The points, shape (n, d).
    heights
        ``h``, shape (n,), float64, with mean 0 over the targets that can be reached, and minus infinity at the others:
        those of weight zero, and all but the first of equal ones.
    weights
        ``nu``, shape (n,), float64, summing to 1; of equal targets the first has the weight of all.
    source
        What was transported.
    """

    target: Float[Tensor, "n d"]
    heights: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    source: Source = field(repr=False)

    @property
    def potentials(self) -> Float[Tensor, " n"]:
        """``alpha = h + |y|^2 / 2``, in units of cost: half of POT's potentials, for its squared distance."""
        return self.heights + self.target.double().square().sum(1) / 2

    def __call__(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """Transport points: each one goes to a target."""
        return self.target[self.assign(x)]

    def assign(self, x: Float[Tensor, "m d"]) -> Int64[Tensor, " m"]:
        """Find the number of the target that each point goes to."""
        check_tensor(x, "x", ndim=2, shape=(self.target.shape[1],), dtype="floating")
        centred = self.target - self.target.mean(0)  # a translation changes no cell, and keeps digits
        return assign(x.to(centred), centred, self.heights.to(centred))[1]

    def masses(self, samples: int, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """Estimate the masses of the cells from so many points of the source; float64, summing to 1."""
        draw = _drawing(self.source, self.target, generator or torch.Generator().manual_seed(0))
        return measure_cells(draw, self.target - self.target.mean(0), self.heights, samples)[0]


def semi_discrete_ot(
    target: Float[Tensor, "n d"],
    source: Source = "normal",
    weights: Float[Tensor, " n"] | None = None,
    *,
    tol: float = 0.1,
    max_iter: int = 5000,
    batch_size: int | None = None,
    learning_rate: float = 3.0,
    generator: torch.Generator | None = None,
    progress: bool = False,
    state: str | Path | None = None,
) -> SemiDiscreteMap:
    """Find the optimal transport map from a distribution onto weighted points, for the squared distance.

    Adam on the heights with a step length that falls as ``t^(-3/4)``, in units of the mean gap between the best and the
    second best target; what is returned is an average over the iterates. Memory is that of the targets and of one block
    of scores.

    Parameters
    ----------
    target
        The points ``y``, shape (n, d); device and dtype of the result.
    source
        ``"normal"``: independent standard normals; ``"uniform"``: the unit cube; or a function of a count and a
        generator that returns so many points, shape (count, d).
    weights
        ``nu``, shape (n,), not negative; scaled to sum 1. ``None``: equal ones.
    tol
        Stop once masses and weights differ by at most this in the 1-norm (it is at most 2), above 0. It takes about
        ``2 n / tol^2`` samples to measure that.
    max_iter
        Most steps.
    batch_size
        Points of the source that are drawn for a step; ``None``: ``5 n``, at least 1000.
    learning_rate
        Length of the first step, in mean gaps.
    generator
        Where the samples come from; ``None``: a fixed seed.
    progress
        Show a progress bar.
    state
        File to save to now and then, and to go on from if it exists; the result has the same bits. With a smaller
        ``tol`` or a larger ``max_iter`` a finished one goes on as well.

    Returns
    -------
    SemiDiscreteMap
        The map with its heights; ``extras["empty"]`` counts cells without a sample, ``extras["history"]`` lists
        iterations and mass errors.

    Raises
    ------
    TypeError
        If ``target`` or ``weights`` is not a floating tensor.
    ValueError
        If a value is NaN or infinite, shapes or devices differ, weights are negative or all zero, a number is out of
        range, or ``state`` belongs to another problem.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If the tolerance was not met.

    Notes
    -----
    The paper starts at ``h = 0``, stops at a gradient of 8e-4 in the 2-norm, and enlarges its batches where progress
    ends. Here the start is the better, by its energy, of nearest neighbours between standardised clouds and of equal
    chances for independent scores, which is what they are in high dimension; the step is measured in gaps, so that
    neither scales nor dimension matter; and averaging takes the place of larger batches.

    **When not to use it**: on a line the map is the quantile function; for a source of finitely many points that are
    all at hand, ``ot.emd`` is exact. Few dimensions and many targets need many steps, since mass moves from cell to
    cell.

    References
    ----------
    Z. Li, S. Li, Z. Wang, N. Lei, Z. Luo, X. Gu. DPM-OT: A New Diffusion Probabilistic Model Based on Optimal
    Transport. ICCV 2023, arXiv:2307.11308.

    B. T. Polyak, A. B. Juditsky. Acceleration of stochastic approximation by averaging. SIAM Journal on Control and
    Optimization 30, 1992.

    Examples
    --------
    >>> T = semi_discrete_ot(torch.tensor([[-1.0], [0.0], [3.0]]), weights=torch.tensor([0.5, 0.25, 0.25]), tol=0.02)
    >>> T(torch.tensor([[-0.1], [0.1], [0.6], [0.7]])).flatten()  # on a line: quantiles, here 0 and 0.674
    tensor([-1.,  0.,  0.,  3.])
    """
    target, sites, nu, index = _check(target, weights)
    check_range(tol, "tol", 0, closed="neither")
    check_range(max_iter, "max_iter", 1, integer=True)
    batch = max(1000, 5 * len(sites)) if batch_size is None else check_range(batch_size, "batch_size", 1, integer=True)
    check_range(learning_rate, "learning_rate", 0, closed="neither")
    generator = generator or torch.Generator().manual_seed(0)
    draw = _drawing(source, target, generator)
    needed = min(int(1.8 * len(sites) / tol**2) + 1, max_iter * batch)  # their noise is 0.6 tol

    run = Ascent(sites, nu, draw, batch, learning_rate, needed)
    run.restore(state, generator)
    with progress_bar("semi-discrete transport", max_iter, progress, figure="mass error") as show:
        while not run.error <= tol and run.iteration < max_iter:
            run.step()
            last = run.iteration == max_iter
            if last or run.iteration * batch >= run.next:
                run.measure()
                show(run.iteration, run.error)
            if state is not None and (last or run.error <= tol or run.iteration % _SAVE_EVERY == 0):
                run.save(state, generator)
    heights, full = torch.full((2, len(target)), -torch.inf, dtype=torch.float64, device=target.device)
    heights[index], full[:] = run.average, 0
    full[index] = nu
    message = ""
    if run.error > tol:
        message = (
            f"the mass error is {run.error:.3g} after {run.iteration} iterations, above tol={tol:g}; "
            f"{run.empty} of {len(sites)} cells are empty"
        )
        warn_short(f"semi_discrete_ot: {message}")
    return SemiDiscreteMap(
        value=run.value, iterations=run.iteration, residual=run.error, converged=not message, message=message,
        extras={"empty": run.empty, "history": tuple(run.history)},
        target=target, heights=heights, weights=full, source=source,
    )  # fmt: skip


def _check(target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Target, and its different points of positive weight with their weights and places."""
    check_tensor(target, "target", ndim=2, dtype="floating")
    target = target.float() if target.dtype in (torch.float16, torch.bfloat16) else target
    n = len(target)
    if weights is None:
        nu = torch.full((n,), 1 / n, dtype=torch.float64, device=target.device)
    else:
        check_tensor(weights, "weights", ndim=1, shape=(n,), dtype="floating")
        check_same(target=target, weights=weights.to(target.dtype))
        check_range(weights, "weights", 0, elementwise=True)
        if not bool(weights.sum() > 0):
            raise ValueError("weights must not all be zero")
        nu = weights.double() / weights.double().sum()
    used = nu.nonzero()[:, 0]
    sites, group = torch.unique(target[used], dim=0, return_inverse=True)
    first = torch.full((len(sites),), n, device=target.device).scatter_reduce(0, group, used, "amin")
    total = torch.zeros(len(sites), dtype=torch.float64, device=target.device).index_add_(0, group, nu[used])
    return target, sites, total, first


def _drawing(source: Source, target: Tensor, generator: torch.Generator) -> Callable[[int], Tensor]:
    """The source as a function of the count, checked."""
    if not callable(source):
        check_option(source, "source", ("normal", "uniform"))
    d = target.shape[1]

    def draw(count: int) -> Tensor:
        if callable(source):
            x = source(count, generator)
            if not isinstance(x, Tensor) or x.shape != (count, d):
                got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"source must return points of shape ({count}, {d}), got {got}")
            return check_tensor(x, "what source returns", dtype="floating").to(target)
        make = torch.randn if source == "normal" else torch.rand
        return make(count, d, generator=generator, dtype=target.dtype, device=generator.device).to(target.device)

    return draw
