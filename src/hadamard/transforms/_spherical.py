"""Irreps that are functions on the sphere, and tables of their spherical harmonics.

The harmonics on half a sphere, as Fourier series, and their triple integrals.

Everything is in float64 and in e3nn's convention: the polar axis is y, a degree's components run from m = -l (sines)
to m = l (cosines), there is no Condon-Shortley phase, and ``Y`` is orthonormal over the sphere ("integral").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, comb, pi, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadamard.validation import check_tensor

__all__ = [
    "HalfSphere", "check_floating", "choose_outputs", "conform", "coupling", "from_fourier", "gaunt", "half_sphere",
    "legendre", "parse_irreps", "reachable", "spherical_harmonics", "to_fourier", "unit",
]  # fmt: skip


def parse_irreps(irreps: Any, name: str) -> tuple[Any, int, tuple[int, ...]]:
    """Irreps as e3nn's, their multiplicity and their degrees, where these are coefficients of functions."""
    try:
        from e3nn import o3
    except ImportError as error:
        raise ImportError("Gaunt tensor products need e3nn: pip install 'hadamard[equivariant]'") from error
    try:
        parsed = o3.Irreps(irreps)
    except (ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{name} must be irreps such as '8x0e + 8x1o', got {irreps!r}") from error
    degrees = tuple(ir.l for _, ir in parsed)
    wrong = [str(ir) for _, ir in parsed if ir.p != (-1) ** ir.l]
    if wrong:
        raise ValueError(
            f"{name} must have parity (-1)^l (0e, 1o, 2e, ...), got {wrong[0]} in '{parsed}': products of functions on "
            "the sphere have no other irreps; use e3nn's TensorProduct for these"
        )
    if len(set(degrees)) < len(degrees):
        raise ValueError(f"{name} must have each degree at most once, got '{parsed}': .simplify() may join them")
    if len({mul for mul, _ in parsed}) != 1 or parsed[0].mul == 0:
        raise ValueError(f"{name} must have one multiplicity, the same for all degrees, got '{parsed}'")
    return parsed, parsed[0].mul, degrees


def reachable(in1: Sequence[int], in2: Sequence[int]) -> tuple[int, ...]:
    """Degrees that arise from two sets of degrees."""
    return tuple(sorted({l for a in in1 for b in in2 for l in range(abs(a - b), a + b + 1, 2)}))


def choose_outputs(irreps: Any, reach: Sequence[int], channels: int) -> tuple[Any, tuple[int, ...]]:
    """The output's irreps and degrees: all that arise, those up to a degree, or the given ones."""
    if irreps is None or isinstance(irreps, int):
        if irreps is not None and not 0 <= irreps <= reach[-1]:
            raise ValueError(
                f"irreps_out must be a degree from 0 to {reach[-1]}, the largest that arises, got {irreps}"
            )
        chosen = [l for l in reach if irreps is None or l <= irreps]
        irreps = " + ".join(f"{channels}x{l}{'eo'[l % 2]}" for l in chosen)
    parsed, multiplicity, degrees = parse_irreps(irreps, "irreps_out")
    if multiplicity != channels:
        raise ValueError(f"irreps_out must have the inputs' multiplicity {channels}, got '{parsed}'")
    missing = [l for l in degrees if l not in reach]
    if missing:
        raise ValueError(f"irreps_out must hold degrees that arise, {list(reach)}, got {missing[0]} in '{parsed}'")
    return parsed, degrees


def check_floating(x: Tensor, name: str) -> None:
    """Refuse what is not a floating-point tensor; unlike elsewhere it may be empty, infinite or NaN."""
    if not isinstance(x, Tensor) or x.numel() or not x.is_floating_point():
        check_tensor(x, name, dtype="floating", finite=False)


def conform(x: Tensor, name: str, dim: int, table: Tensor) -> Tensor:
    """An input whose type, last dimension, device and dtype fit; converted under autocast."""
    check_floating(x, name)
    if x.ndim == 0 or x.shape[-1] != dim:
        raise ValueError(f"{name} must have {dim} entries in the last dimension, got shape {tuple(x.shape)}")
    if x.device != table.device:
        raise ValueError(f"{name} must have the module's device {table.device}, got {x.device}")
    if torch.is_autocast_enabled(x.device.type):
        return x.to(table.dtype)
    if x.dtype != table.dtype:
        raise ValueError(f"{name} must have the module's dtype {table.dtype}, got {x.dtype}")
    return x


def unit(normalization: str, degrees: tuple[int, ...]) -> Mapping[int, float]:
    """Size of the harmonics of each degree in a normalisation, as a multiple of the orthonormal ones."""
    sizes = {"component": lambda l: 4 * pi, "norm": lambda l: 4 * pi / (2 * l + 1), "integral": lambda l: 1.0}
    return {l: sqrt(sizes[normalization](l)) for l in degrees}


def legendre(lmax: int, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Associated Legendre functions ``p[l, m, i]`` with ``Y_lm = p_lm (sqrt 2 sin |m| phi, 1, sqrt 2 cos m phi)``."""
    p = np.zeros((lmax + 1, lmax + 1, cos.size))
    p[0, 0] = 1 / sqrt(4 * pi)
    for m in range(lmax + 1):
        if m:
            p[m, m] = sqrt((2 * m + 1) / (2 * m)) * sin * p[m - 1, m - 1]
        for l in range(m + 1, lmax + 1):
            ahead, behind = (4 * l * l - 1) / (l * l - m * m), ((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1)
            p[l, m] = sqrt(ahead) * (cos * p[l - 1, m] - sqrt(behind) * p[l - 2, m])
    return p


def spherical_harmonics(degrees: Sequence[int], theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """``Y[k, i]`` at the points (sin theta sin phi, cos theta, sin theta cos phi), for the degrees in their order."""
    p = legendre(max(degrees), np.cos(theta), np.sin(theta))
    rows = []
    for l in degrees:
        rows += [sqrt(2) * p[l, m] * np.sin(m * phi) for m in range(l, 0, -1)]
        rows += [p[l, 0]]
        rows += [sqrt(2) * p[l, m] * np.cos(m * phi) for m in range(1, l + 1)]
    return np.stack(rows)


@dataclass(frozen=True)
class HalfSphere:
    """Points of which no two are opposite, and weights that integrate even polynomials of the degree over the sphere.

    A product of three harmonics is odd, with integral 0, or even: half a sphere is all that it takes.
    """

    theta: np.ndarray
    phi: np.ndarray
    weight: np.ndarray

    def table(self, degrees: Sequence[int], scale: Mapping[int, float], parity: int | None = None) -> np.ndarray:
        """Values ``[k, i]`` of the harmonics of even (0), odd (1) or all degrees, each degree scaled."""
        chosen = [l for l in degrees if parity in (None, l % 2)]
        if not chosen:
            return np.zeros((0, self.weight.size))
        return spherical_harmonics(chosen, self.theta, self.phi) * _components(chosen, scale)[:, None]

    def inverse(self, degrees: Sequence[int], scale: Mapping[int, float], parity: int | None = None) -> np.ndarray:
        """What takes values to coefficients ``[i, k]``: harmonics and weights, each degree scaled."""
        return self.weight[:, None] * self.table(degrees, scale, parity).T

    @property
    def points(self) -> np.ndarray:
        """Cartesian coordinates, (P, 3)."""
        sin = np.sin(self.theta)
        return np.stack([sin * np.sin(self.phi), np.cos(self.theta), sin * np.cos(self.phi)], axis=1)


@lru_cache(maxsize=64)
def half_sphere(degree: int) -> HalfSphere:
    """Gauss-Legendre nodes in cos theta times equal steps in phi, of which there is an even number."""
    cos, weight = np.polynomial.legendre.leggauss(ceil((degree + 1) / 2))
    steps = degree + 1 + (degree + 1) % 2
    phi = 2 * pi / steps * np.arange(steps // 2)
    theta, phi = (a.ravel() for a in np.meshgrid(np.arccos(cos), phi, indexing="ij"))
    return HalfSphere(theta, phi, np.repeat(weight * 4 * pi / steps, steps // 2))


def gaunt(l1: int, l2: int, l3: int) -> np.ndarray:
    """Integrals of ``Y_l1m1 Y_l2m2 Y_l3m3``, of shape (2 l1 + 1, 2 l2 + 1, 2 l3 + 1)."""
    if (l1 + l2 + l3) % 2:
        return np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    grid = half_sphere(l1 + l2 + l3)
    first, second, third = (spherical_harmonics([l], grid.theta, grid.phi) for l in (l1, l2, l3))
    pairs = (first[:, None] * second).reshape(-1, grid.weight.size)
    return (pairs @ (grid.weight * third).T).reshape(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1)


def coupling(l1: int, l2: int, l3: int) -> float:
    """Sum of the squares of :func:`gaunt`; 0 where the degrees do not couple."""
    if (l1 + l2 + l3) % 2 or not abs(l1 - l2) <= l3 <= l1 + l2:
        return 0.0
    g = (l1 + l2 + l3) // 2
    above = comb(2 * (g - l1), g - l1) * comb(2 * (g - l2), g - l2) * comb(2 * (g - l3), g - l3)
    square = above / ((2 * g + 1) * comb(2 * g, g))  # of the 3j symbol with orders 0
    return (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * pi) * square


def to_fourier(degrees: Sequence[int], scale: Mapping[int, float], m: int) -> np.ndarray:
    """``p_lm(theta) = sum_u T[l, u] exp(i u theta)`` with u = -L..L, for those of the degrees that have order ``m``.

    On the whole circle of theta, where sin theta takes its sign along; L is the largest degree. The factor sqrt 2 of
    orders above 0 is included.
    """
    top = max(degrees)
    theta = 2 * pi / (2 * top + 1) * np.arange(2 * top + 1)
    chosen = [l for l in degrees if l >= m]
    p = legendre(top, np.cos(theta), np.sin(theta))[chosen, m] * np.array([[scale[l]] for l in chosen])
    return np.fft.fftshift(np.fft.fft(p), axes=-1) / (2 * top + 1) * (sqrt(2) if m else 1)


def from_fourier(degrees: Sequence[int], scale: Mapping[int, float], m: int, band: int) -> np.ndarray:
    """``T[u, l]``: what takes coefficients of ``exp(i u theta)`` to the integral with ``p_lm sin theta`` from 0 to pi.

    u runs from -band to band.
    """
    top = max(degrees)
    k = np.arange(-band, band + 1)[:, None] + np.arange(-top, top + 1)
    even = 1 - k % 2  # the integral of exp(i k theta) sin theta; odd k come from odd l1 + l2 + l3, where all cancel
    integral = 2 * even / (1 - even * k**2)
    return integral @ to_fourier(degrees, scale, m).T


def _components(degrees: Sequence[int], scale: Mapping[int, float]) -> np.ndarray:
    return np.concatenate([np.full(2 * l + 1, scale[l]) for l in degrees])
