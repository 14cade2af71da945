"""Equations with solutions of high or many frequencies, by Gaussian processes that learn the spectrum.

The solution on a grid has a Gaussian process prior, with one spectral mixture kernel an axis. For given kernels the
equation determines the solution: it is eliminated, with the algebra of the axes only. The kernels are those under which
boundary values and source are most likely.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.operators import Separable
from hadamard.pde._collocation import Problem, evidence
from hadamard.pde._grid_equation import Given, on_grid, read_axes, read_frequencies, read_terms
from hadamard.pde._kernel_search import DECAYS, KernelSearch
from hadamard.pde.spectral_mixture import SpectralMixture
from hadamard.results import Solution, warn_short
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["GPSolution", "gp_hm"]

KERNELS = {
    "student_t": ("student_t", True),
    "gaussian": ("gaussian", True),
    "matern": ("student_t", False),
    "squared_exponential": ("gaussian", False),
}  # envelope, and whether there are several at frequencies of their own
ENDS = {"both": (1, -1), "low": (1, None), "high": (0, -1), "none": (0, None)}
_LEARNED = ("log_weights", "log_lengths", "frequencies")


@dataclass(frozen=True, kw_only=True)
class GPSolution(Solution):
    """A solution on a grid that can be evaluated anywhere.

    Attributes
    ----------
    value
        Values on the grid.
    axes
        The grid's points along each axis.
    kernels
        The kernel of each axis; ``kernels[i].frequencies`` and ``kernels[i].weights`` say what was found.
    residual
        Norm of the equation's residual at the collocation points, over that of the source (or as it is, where the
        source is zero).
    iterations
        Steps of the search for the kernels, all starts together.
    extras
        ``"evidence"``, its logarithm up to a constant; ``"gradient"``, the largest derivative of it by a parameter
        where the search ended; ``"evaluations"``.
    """

    axes: tuple[Tensor, ...]
    kernels: tuple[SpectralMixture, ...]

    def predict(self, *points: Float[Tensor, " _"], order: Sequence[int] | int = 0) -> Tensor:
        """Evaluate the solution, or a derivative of it, on the product grid of some points.

        Parameters
        ----------
        points
            Points along each axis.
        order
            Order of the derivative along each axis; a single number for all axes.

        Returns
        -------
        Tensor
            Of shape (len(points[0]), ...).
        """
        if len(points) != len(self.axes):
            raise ValueError(f"points must be given for each of the {len(self.axes)} axes, got {len(points)}")
        orders = [order] * len(points) if isinstance(order, int) else list(order)
        if len(orders) != len(points):
            raise ValueError(f"order must have one entry for each of the {len(points)} axes, got {len(orders)}")
        inner, outer = [], []
        for p, x, kernel, a in zip(points, self.axes, self.kernels, orders):
            p, x = check_tensor(p, "points", ndim=1, dtype="floating").double(), x.double()
            eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
            inner.append(kernel.matrix(x) + 1e-13 * eye)
            outer.append(kernel.matrix(p, x, a))
        return Separable(outer)(Separable(inner).solve(self.value.double())).to(self.value.dtype)


def gp_hm(
    axes: Sequence[Float[Tensor, " _"]],
    terms: Mapping[Any, float | Tensor],
    source: Given,
    boundary: Given,
    *,
    reaction: Callable[[Tensor], Tensor] | None = None,
    ends: Sequence[str] | None = None,
    kernel: str = "student_t",
    n_components: int = 20,
    max_frequency: float | Sequence[float] | None = None,
    floor: float = 1e-8,
    n_starts: int = 2,
    guess: Given = 0.0,
    tol: float = 1e-10,
    max_iter: int = 100,
) -> GPSolution:
    """Solve a linear or semilinear equation on a box of one or two dimensions whose solution oscillates much.

    The equation is ``sum_a terms[a] * d^a u + reaction(u) = source``. Takes the place of a physics-informed network
    (with Fourier features) on a regular domain.

    Parameters
    ----------
    axes
        The grid's points along each of one or two axes, increasing; at least 4 each. Uniform grids are cheaper.
    terms
        Coefficients by the order of the derivative along each axis: ``{(2, 0): 1.0, (0, 2): 1.0}`` is the Laplacian,
        ``{2: 1.0}`` the second derivative on one axis. A coefficient is a number or a tensor that broadcasts to the
        grid.
    source
        Right side: a number, a tensor that broadcasts to the grid, or a function of the coordinates (one tensor of the
        grid's shape for each axis).
    boundary
        Prescribed values, in the same three forms; read at the prescribed ends only.
    reaction
        A function applied to each value of the solution, differentiable by torch: ``lambda u: u**3``. ``None``: none.
    ends
        For each axis the ends at which values are prescribed: ``"both"``, ``"low"``, ``"high"`` or ``"none"``.
        ``None``: both, everywhere. An equation of first order in time or space has ``"low"`` there.
    kernel
        ``"student_t"`` (mixture of Student-t bumps; derivatives up to 2), ``"gaussian"`` (mixture of Gaussian bumps;
        up to 4), ``"matern"`` or ``"squared_exponential"`` (one bump at frequency 0, with a length that is learned).
    n_components
        Bumps an axis. More than needed do no harm: their weights fall.
    max_frequency
        Where the bumps reach at the start, in cycles per unit of length, for each axis or for all. It should not be
        below the solution's. ``None``: the grid's Nyquist frequency.
    floor
        Weight of all frequencies in each kernel, over that of the mixture; in (0, 1).
    n_starts
        Starts of the search, 1 to 3; the most likely kernels win.
    guess
        Where Newton's method starts, in the forms of ``source``; it selects among several solutions.
    tol
        Newton's method ends when a step changes the solution by so much, relatively.
    max_iter
        Greatest number of steps of each search.

    Returns
    -------
    GPSolution
        The solution on the grid, of the axes' type, and a function for everywhere else. Computed in float64.

    Raises
    ------
    TypeError
        If an axis is not a floating tensor.
    ValueError
        If there are more than two axes, one is not increasing, a derivative's order is above the kernel's, a tensor
        does not broadcast to the grid, anything is not finite, or no kernel gives a regular system.

    Warns
    -----
    UserWarning
        If ``max_frequency`` is above the grid's Nyquist frequency: such frequencies cannot be told from lower ones.
    sklearn.exceptions.ConvergenceWarning
        If the equation's residual is above 1e-6 at the end.

    Notes
    -----
    An evaluation costs ``O(N_1^3 + N_2^3)`` for a linear equation whose coefficients vary along their own axis at most,
    and memory ``O(N_1^2 + N_2^2)``; no low-rank approximation is made. Mixed derivatives, other coefficients and
    reactions on two axes add Krylov's method, preconditioned by the former. Nothing of the solver runs on a GPU but the
    kernels; it follows the device of the axes.

    The paper minimises the joint density of solution, kernels and noise by up to a million steps of Adam. Here the
    solution is eliminated, the noise is zero, the equation holds at inner points and the boundary values hold exactly
    (unsymmetric collocation, Kansa's), and the kernels maximise the evidence, whose determinant of the Jacobian the
    joint density lacks: without it the most likely kernel is one that makes the solution vanish. The jitter is
    replaced by a floor of all frequencies, the start has weights that fall with frequency, and the search is L-BFGS.
    On two axes the evidence of a reaction, of mixed derivatives and of coefficients that vary across axes is that of
    their mean; the solution is not affected.

    ``residual`` and ``converged`` speak of the collocation points alone, where any kernels satisfy the equation: a
    search that ends in a poor local optimum gives a wrong solution that has converged. Compare ``extras["evidence"]``
    over ``n_starts`` and kernels, and solve on a second grid. Advection in particular has needed three starts.

    Do not use it where the solution is smooth and the domain a box: Chebyshev's method is exact and faster. Nor for
    shocks, for domains other than boxes, or with fewer than about two points a wavelength.

    References
    ----------
    S. Fang, M. Cooley, D. Long, S. Li, R. Kirby, S. Zhe. Solving High Frequency and Multi-Scale PDEs with Gaussian
    Processes. ICLR 2024. arXiv:2311.04465.

    Examples
    --------
    >>> x = torch.linspace(0, 2 * torch.pi, 80, dtype=torch.float64)
    >>> found = gp_hm([x], {2: 1.0}, lambda x: -900 * torch.sin(30 * x), 0.0)
    >>> bool((found.value - torch.sin(30 * x)).abs().max() < 1e-5)
    True
    >>> main = found.kernels[0].weights.argmax()
    >>> bool((found.kernels[0].frequencies[main].abs() * 2 * torch.pi - 30).abs() < 1e-3)
    True
    """
    dtype = check_tensor(axes[0], "axes[0]", dtype="floating").dtype if len(axes) else None
    envelope, mixed = KERNELS[check_option(kernel, "kernel", KERNELS)]
    grid = read_axes(axes)
    orders = read_terms(terms, len(grid), envelope, kernel)
    sides = ("both",) * len(grid) if ends is None else tuple(ends)
    if len(sides) != len(grid):
        raise ValueError(f"ends must have one entry for each of the {len(grid)} axes, got {len(sides)}")
    for side in sides:
        check_option(side, "ends", ENDS)
    check_range(n_components, "n_components", 1, integer=True)
    check_range(floor, "floor", 0, 1, closed="neither")
    check_range(n_starts, "n_starts", 1, len(DECAYS), integer=True)
    check_range(tol, "tol", 0, 1, closed="neither")
    check_range(max_iter, "max_iter", 1, integer=True)
    tops = read_frequencies(max_frequency, grid)
    free = [torch.arange(len(x), device=x.device)[slice(*ENDS[side])] for x, side in zip(grid, sides)]
    inner = torch.meshgrid(*free, indexing="ij")
    known = on_grid(boundary, "boundary", grid).clone()
    known[inner] = 0.0
    coefficients = {a: on_grid(c, f"terms[{key}]", grid)[inner] for key, (a, c) in zip(terms, orders)}
    problem = Problem(grid, free, coefficients, on_grid(source, "source", grid)[inner], known, reaction, tol)
    at = on_grid(guess, "guess", grid)[inner]

    best, steps, calls = None, 0, 0
    for start in range(n_starts):
        search = KernelSearch(problem, envelope, n_components if mixed else 1, mixed, tops, start, floor, at)
        found = search.run(max_iter)
        steps, calls = steps + found.iterations, calls + found.extras["evaluations"]
        if best is None or found.extras["fun"] < best[1].extras["fun"]:
            best = (search, found)
    assert best is not None
    kernels = tuple(replace(k, **{f: getattr(k, f).detach() for f in _LEARNED}) for k in best[0].kernels(best[1].value))
    value, u, residual = evidence(problem, kernels, best[0].guess)
    message = ""
    if not residual <= 1e-6:
        message = f"gp_hm stopped after {steps} steps at an equation residual of {residual:.3g}, above 1e-6"
        warn_short(message)
    return GPSolution(
        value=u.detach().to(dtype),
        axes=tuple(axes),
        kernels=kernels,
        iterations=steps,
        residual=residual,
        converged=not message,
        message=message,
        extras={"evidence": -float(value.detach()), "gradient": best[1].residual, "evaluations": calls},
    )
