"""What random features cannot do: the part of a target that lies outside their band, and the error that this leaves.

With f^ the Fourier transform of f and an activation ``sigma``, a network ``sum_i c_i sigma(a_i . x - b_i)`` is a sum
over the plane of (a, b), and the ridgelet transform

    R[f; rho](a, b) = int f(x) rho(a . x - b) dx,        b -> w:   f^(w a) conj rho^(w)

says which weights f asks for: summing ``R[f; rho](a, b) sigma(a . x - b)`` over all a and b gives ``K f(x)`` with
``K = (2 pi)^(d-1) int sigma^(w) conj rho^(w) |w|^-d dw``. Weights that are drawn from a bounded set V leave the
transform outside V unused. For cosines with ``|a_j| <= bandwidth`` the networks hold no frequency above ``bandwidth``,
so on all of space their distance to f is the energy of f above it (:func:`out_of_band_energy`).

On finitely many points every frequency can be imitated by lower ones, at the price of huge output weights.
:func:`bandwidth_lower_bound` therefore bounds these: for every test vector v that sums to zero and every network of
any width with weights in V and ``sum_i |c_i| <= B``,

    |v| |y - g|  >=  <v, y - g>  >=  <v, y> - B max over (a, b) in V of |<v, sigma(a . x - b)>|.

References
----------
M. Li, S. Sonoda, F. Cao, Y. G. Wang, J. Liang, "How Powerful are Shallow Neural Networks with Bandlimited Random
Weights?", ICML 2023, arXiv:2008.08427. The paper bounds the distance by the ridgelet spectrum outside V; both functions
here are consequences of the same identity that can be evaluated on data.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.layers._bandlimited import ACTIVATIONS, PERIODIC, Ridge, RidgeFit, as_matrix, bias_reach, uniform
from hadamard.results import Certificate
from hadamard.spectral import frequencies
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["RIDGELETS", "bandwidth_lower_bound", "out_of_band_energy", "ridgelet_transform", "witness_bound"]

_CHUNK = 1 << 22  # entries of one block of features
_OVERSAMPLING = 8
_NODE_FACTOR = math.cos(math.pi / (2 * _OVERSAMPLING))

RIDGELETS: dict[str, Callable[[Tensor], Tensor]] = {  # derivatives of exp(-z^2/2), up to sign
    "gauss2": lambda z: (1 - z * z) * torch.exp(-z * z / 2),
    "gauss3": lambda z: (3 - z * z) * z * torch.exp(-z * z / 2),
    "gauss4": lambda z: (z**4 - 6 * z * z + 3) * torch.exp(-z * z / 2),
    "cos": torch.cos,
    "sin": torch.sin,
}


def ridgelet_transform(
    values: Float[Tensor, " n"],
    x: Float[Tensor, "n *d"],
    a: Float[Tensor, "k *d"],
    b: Float[Tensor, " l"],
    rho: str | Callable[[Tensor], Tensor] = "gauss2",
    weights: Float[Tensor, " n"] | float = 1.0,
) -> Float[Tensor, "k l"]:
    """Which hidden weights and biases a function asks for: ``sum_i weights_i values_i rho(a . x_i - b)``.

    Parameters
    ----------
    values
        The function at the points ``x``.
    x
        Points of shape (n, d), or (n,) on a line.
    a
        Hidden weights of shape (k, d), or (k,).
    b
        Biases.
    rho
        ``"gauss2"``, ``"gauss3"``, ``"gauss4"`` (derivatives of a Gaussian up to sign; on the line 2 suits the
        activation ``exp(-z^2/2)``, 3 tanh and sigmoid, 4 relu), ``"cos"``, ``"sin"``, or any real function of a tensor.
    weights
        What a point counts in the integral: the spacing of a uniform grid, 1/(n density) of random points.

    Returns
    -------
    Tensor
        The transform at every pair, in float64.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit, a value is not finite, or ``rho`` is unknown.

    Examples
    --------
    >>> x = torch.linspace(-6, 6, 601, dtype=torch.float64)
    >>> f = torch.exp(-x.square() / 2)
    >>> line = torch.linspace(-20, 20, 401, dtype=torch.float64)
    >>> R = ridgelet_transform(f, x, line, line, "gauss2", weights=0.02)
    >>> activation = torch.exp(-(line[:, None] * 0.5 - line).square() / 2)  # of all (a, b) at x = 0.5
    >>> f_again = (R * activation).sum() * 0.1**2 / (2 * math.pi)           # K = 2 pi for this pair
    >>> round(float(f_again), 2), round(math.exp(-0.5 * 0.5**2), 2)
    (0.88, 0.88)
    """
    points, directions = as_matrix(x, "x"), as_matrix(a, "a")
    values = check_tensor(values, "values", ndim=1, dtype="floating").to(torch.float64)
    b = check_tensor(b, "b", ndim=1, dtype="floating").to(torch.float64)
    if len(values) != len(points):
        raise ValueError(f"values and x must have as many points, got {len(values)} and {len(points)}")
    if directions.shape[1] != points.shape[1]:
        raise ValueError(f"a and x must have as many columns, got {directions.shape[1]} and {points.shape[1]}")
    function = RIDGELETS[check_option(rho, "rho", RIDGELETS)] if isinstance(rho, str) else rho
    if isinstance(weights, Tensor):
        check_tensor(weights, "weights", ndim=1, shape=(len(values),), dtype="floating")
    weighted, step = values * weights, max(1, _CHUNK // (len(b) * len(points)))
    blocks = [
        function(part[:, None] - b[:, None]) @ weighted for part in (directions @ points.mT).split(step)
    ]  # (k, 1, n) - (l, 1)
    return torch.cat(blocks)


def out_of_band_energy(
    values: Float[Tensor, "*grid"], bandwidth: float, spacing: float | Sequence[float] = 1.0
) -> float:
    """Share of a sampled function's energy above a bandwidth: what cosines within it miss on all of space.

    Parameters
    ----------
    values
        Samples of one period on a uniform grid with one axis a variable. The mean is taken off first (the intercept's).
    bandwidth
        Largest angular frequency of each variable that counts as inside, in radians per unit length.
    spacing
        Distance between samples, one for all axes or one an axis.

    Returns
    -------
    float
        Between 0 and 1; 0 for a constant. Its root times the standard deviation is the root mean square error that no
        cosine network of any width with weights in ``[-bandwidth, bandwidth]`` can beat on the whole space.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, is out of range or not finite.

    Examples
    --------
    >>> x = torch.arange(256) / 256
    >>> f = torch.sin(2 * math.pi * 3 * x) + torch.sin(2 * math.pi * 20 * x)
    >>> round(out_of_band_energy(f, 2 * math.pi * 10, 1 / 256), 6)
    0.5
    """
    check_tensor(values, "values", dtype="floating")
    check_range(bandwidth, "bandwidth", 0)
    values = values.to(torch.float64)
    values = values - values.mean()
    power = torch.fft.fftn(values).abs().square()
    outside = torch.zeros_like(power, dtype=torch.bool)
    for axis in frequencies(values.shape, spacing, dtype=torch.float64, device=values.device):
        outside = outside | (2 * math.pi * axis.abs() > bandwidth * (1 + 1e-12))
    total = float(power.sum())
    return float(power[outside].sum()) / total if total > 0 else 0.0


def bandwidth_lower_bound(
    x: Float[Tensor, "n *d"],
    y: Float[Tensor, " n"],
    bandwidth: float,
    *,
    coefficient_sum: float = 1e3,
    activation: str = "cos",
    bias_range: float | None = None,
    probes: int = 1000,
    generator: torch.Generator | None = None,
) -> Certificate:
    """The error on these points that no network beats, however wide, whose hidden weights lie within the bandwidth.

    Parameters
    ----------
    x
        Points of shape (n, d), or (n,) on a line; on a grid or scattered.
    y
        Targets.
    bandwidth
        Hidden weights lie in ``[-bandwidth, bandwidth]^d``: radians per unit of ``x``.
    coefficient_sum
        Bound on the sum of the output weights' absolute values. On finitely many points some bound is needed: without
        one, low frequencies imitate high ones.
    activation
        ``"cos"``, ``"sin"``, ``"tanh"``, ``"sigmoid"``, ``"relu"`` or ``"gauss"``.
    bias_range
        Biases lie in ``[-bias_range, bias_range]``; ``None``: all phases of a periodic activation, else ``bandwidth``
        times the largest norm of a point.
    probes
        Features that make the test vectors; four times as many look for their largest product with a feature.
    generator
        For the probes; ``None``: a fixed seed.

    Returns
    -------
    Certificate
        ``bound``: no such network has a smaller root mean square error. ``value``: the error of one of them, so that
        what can be reached lies between the two. ``verified``: whether this is proved, up to rounding (cosines and
        sines on a line); elsewhere the largest product is looked for among random features, and the bound is an
        estimate.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, is out of range or not finite.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 401)
    >>> narrow = bandwidth_lower_bound(x, torch.sin(2 * math.pi * 8 * x), bandwidth=25)
    >>> wide = bandwidth_lower_bound(x, torch.sin(2 * math.pi * 8 * x), bandwidth=55)
    >>> narrow.verified, narrow.bound > 0.6, wide.bound < 1e-2   # of 0.71, the target's own root mean square
    (True, True, True)
    """
    points = as_matrix(x, "x")
    y = check_tensor(y, "y", ndim=1, dtype="floating").to(torch.float64)
    if len(y) != len(points):
        raise ValueError(f"x and y must have as many points, got {len(points)} and {len(y)}")
    check_range(bandwidth, "bandwidth", 0, closed="neither")
    check_range(coefficient_sum, "coefficient_sum", 0)
    check_range(probes, "probes", 1, integer=True)
    check_option(activation, "activation", ACTIVATIONS)
    generator = generator or torch.Generator(points.device).manual_seed(0)
    reach = bias_reach(bandwidth, float(points.norm(dim=1).max()), activation, bias_range)
    features = uniform(probes, points.shape[1], bandwidth, reach, activation, generator)
    fit = RidgeFit(features(points), y, rcond=1e-14)
    bound, dense = witness_bound(fit, points, features, bandwidth, reach, coefficient_sum, generator)
    alphas = fit.penalties().flip(0)
    errors = [float(fit.y.square().mean().sqrt())]
    sums = (fit.v @ (fit.s[:, None] / (fit.s.square()[:, None] + alphas) * fit.uy[:, None])).abs().sum(0)
    within = sums <= coefficient_sum
    errors += fit.residuals(alphas[within]).square().mean(0).sqrt().tolist()
    reason = "" if dense else "the largest product with a feature is that of random features"
    return Certificate(value=min(errors), bound=bound, verified=dense, reason=reason)


def witness_bound(
    fit: RidgeFit,
    points: Float[Tensor, "n d"],
    features: Ridge,
    bandwidth: float,
    reach: float,
    coefficient_sum: float,
    generator: torch.Generator,
) -> tuple[float, bool]:
    """Lower bound on the root mean square error, and whether it holds for the whole band or for random features of it.

    The test vectors are the residuals of the fit at all penalties, the one for which the bound is largest counts.
    """
    witnesses = fit.residuals(fit.penalties())
    witnesses = witnesses / witnesses.norm(dim=0).clamp(min=1e-300)
    count, d = features.weights.shape
    products = [_products(features, points, witnesses)]
    value = fit.y @ witnesses
    if not bool((value > coefficient_sum * products[0].abs().amax(0)).any()):
        return 0.0, True  # these features alone leave nothing to prove
    dense = d == 1 and features.activation in PERIODIC
    if dense:
        centre = points.mean()
        points = points - centre  # a shift of x is one of the phase
        radius = max(float(points.abs().max()), 1e-300)
        line = _nodes(bandwidth * radius).to(points)[:, None] * bandwidth
        grid = [Ridge(line, line.new_full((len(line),), phase), "cos") for phase in (0.0, math.pi / 2)]
    else:
        probes = uniform(4 * count, d, bandwidth, reach, features.activation, generator)
        smaller = torch.logspace(0, -3, 2 * count, dtype=torch.float64, device=points.device)
        scale = torch.cat([smaller.new_ones(2 * count), smaller])  # a wide band holds the narrow ones
        grid = [Ridge(scale[:, None] * probes.weights, scale * probes.bias, features.activation)]
    products += [_products(map, points, witnesses) for map in grid]
    if dense:
        largest = (products[1].square() + products[2].square()).sqrt().amax(0) / _NODE_FACTOR  # over all phases
    else:
        largest = torch.cat(products).abs().amax(0)
    bounds = (value - coefficient_sum * largest) / len(points) ** 0.5
    return max(0.0, float(bounds.max())), dense


def _products(map: Ridge, points: Tensor, witnesses: Tensor) -> Float[Tensor, "features alphas"]:
    """``<v, feature>`` for all features and test vectors, a block at a time."""
    step = max(1, _CHUNK // len(points))
    blocks = zip(map.weights.split(step), map.bias.split(step), strict=True)
    return torch.cat([Ridge(w, b, map.activation)(points).mT @ witnesses for w, b in blocks])


def _nodes(phase: float) -> Float[Tensor, " nodes"]:
    """Points of [0, 1] on which ``sum_i v_i cos(a t_i + b)``, for ``|t_i| <= phase``, nearly takes its maximum over a.

    To rounding it is a polynomial in a of degree n = 0.75 phase + 40 (Jacobi-Anger), and a polynomial of degree n is
    at most ``1 / cos(pi n / (2 m))`` times its maximum on m Chebyshev points (Ehlich and Zeller, 1964).
    """
    m = _OVERSAMPLING * (math.ceil(0.75 * phase) + 40)
    return (1 + torch.cos(math.pi * (torch.arange(m, dtype=torch.float64) + 0.5) / m)) / 2
