"""Stationary kernels with a spectrum of several peaks, and their derivatives in closed form.

``k(tau) = sum_q w_q E(tau / l_q) cos(2 pi mu_q tau)`` is the inverse Fourier transform of a mixture of bumps at the
frequencies ``mu_q``: Gaussian bumps where ``E(s) = exp(-s^2 / 2)``, those of a Student's t with five degrees of freedom
where ``E(s) = (1 + r + r^2 / 3) exp(-r)``, ``r = sqrt(5) |s|``, is Matérn's 5/2. Derivatives are taken by hand, in
terms without ``abs``, whose derivative at lag 0 automatic differentiation gets wrong.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_option, check_range

__all__ = ["SpectralMixture"]

SMOOTHNESS = {"gaussian": 4, "student_t": 2}  # highest derivative of the kernel that is provided
_FLOOR_LENGTH = {"gaussian": 1.5, "student_t": 2.0}  # of the floor, in spacings of the grid


@dataclass(frozen=True)
class SpectralMixture:
    """A kernel of one variable: a mixture of modulated envelopes over a weak floor of all frequencies.

    Parameters
    ----------
    log_weights
        Logarithms of the weights, up to a constant: they are scaled to sum to one.
    log_lengths
        Logarithms of the envelopes' lengths ``l_q``, in the variable's unit.
    frequencies
        ``mu_q``, in cycles per unit.
    envelope
        ``"gaussian"`` or ``"student_t"``.
    floor
        Weight of an envelope that is not modulated, of about the grid's spacing: what the mixture does not hold stays
        possible, and derivatives of it are still those of a smooth interpolant.
    floor_length
        Its length.

    Notes
    -----
    Lengths above ``1e5 * floor_length`` count as that: the bumps are lines by then.

    Examples
    --------
    >>> cosine = SpectralMixture(torch.zeros(1), torch.full((1,), 9.0), torch.tensor([0.5]), "gaussian", 0.0, 1.0)
    >>> cosine(torch.tensor([0.0, 1.0, 2.0])).round(decimals=3)
    tensor([ 1., -1.,  1.])
    """

    log_weights: Float[Tensor, " q"]
    log_lengths: Float[Tensor, " q"]
    frequencies: Float[Tensor, " q"]
    envelope: str
    floor: float
    floor_length: float

    @property
    def weights(self) -> Float[Tensor, " q"]:
        """The weights, which sum to one."""
        return torch.softmax(self.log_weights, 0)

    @property
    def lengths(self) -> Float[Tensor, " q"]:
        """The envelopes' lengths."""
        return self.log_lengths.clamp(max=math.log(1e5 * self.floor_length)).exp()

    def __call__(self, lags: Float[Tensor, "*shape"], order: int = 0) -> Float[Tensor, "*shape"]:
        """Evaluate the kernel's derivative of the given order at lags ``x - x'``.

        Raises
        ------
        ValueError
            If the kernel has no derivative of that order: the Student-t mixture is offered up to 2, the Gaussian one up
            to 4.
        """
        check_range(order, "order", 0, integer=True)
        if order > SMOOTHNESS[check_option(self.envelope, "envelope", SMOOTHNESS)]:
            raise ValueError(
                f"order must be at most {SMOOTHNESS[self.envelope]} for a {self.envelope} kernel, got {order}"
            )
        tau, omega, total = lags[..., None], 2 * math.pi * self.frequencies, torch.zeros_like(lags)
        for j in range(order + 1):  # Leibniz: j derivatives of the envelope, the others of the cosine
            k = order - j
            bump = _envelope(self.envelope, tau, self.lengths, j)
            wave = omega**k * torch.cos(omega * tau + k * math.pi / 2)
            total = total + math.comb(order, j) * (bump * wave) @ self.weights
        return total + self.floor * _envelope(self.envelope, lags, lags.new_tensor(self.floor_length), order)

    def matrix(self, x: Float[Tensor, " n"], y: Float[Tensor, " m"] | None = None, order: int = 0) -> Tensor:
        """Evaluate it at all pairs, shape (n, m); on a uniform grid (``y`` left out) at its n lags only."""
        if y is not None:
            return self(x[:, None] - y, order)
        if not _is_uniform(x):
            return self(x[:, None] - x, order)
        row = self(x - x[0], order)  # lags 0, h, 2h, ...
        apart = torch.arange(len(x), device=x.device)[:, None] - torch.arange(len(x), device=x.device)
        values = row[apart.abs()]
        return torch.where(apart < 0, -values, values) if order % 2 else values

    @staticmethod
    def start(
        x: Float[Tensor, " n"], n_components: int, envelope: str, max_frequency: float, decay: float, floor: float
    ) -> "SpectralMixture":
        """Bumps that tile the frequencies up to ``max_frequency``, with weights falling as their power ``-decay``."""
        spacing = max_frequency / max(n_components - 1, 1)
        rank = torch.arange(n_components, dtype=x.dtype, device=x.device)
        length = torch.full_like(rank, -math.log(2 * math.pi * spacing))
        reach = _FLOOR_LENGTH[envelope] * mean_spacing(x)
        return SpectralMixture(-decay * torch.log1p(rank), length, rank * spacing, envelope, floor, reach)


def mean_spacing(x: Tensor) -> float:
    """Distance of neighbours in the mean."""
    return float(x[-1] - x[0]) / (len(x) - 1)


def _is_uniform(x: Tensor) -> bool:
    gaps = x.diff()
    return bool((gaps - gaps.mean()).abs().max() <= 1e-9 * (x[-1] - x[0]))


def _envelope(name: str, tau: Tensor, length: Tensor, order: int) -> Tensor:
    """A derivative of the envelope with respect to the lag."""
    s = tau / length
    if name == "gaussian":
        before, value = torch.zeros_like(s), torch.exp(-s * s / 2)
        for j in range(order):  # E^(j+1) = -(s E^(j) + j E^(j-1)) in units of the length
            before, value = value, -(s * value + j * before)
        return value / length**order
    r = math.sqrt(5) * s.abs()
    polynomials = (1 + r + r * r / 3, -(5 / 3) * s * (1 + r), -(5 / 3) * (1 + r - r * r))
    return polynomials[order] * torch.exp(-r) / length**order
