"""Temperature from the phase of MR images: the resonance of water's protons shifts by -0.01 ppm a degree."""

import math
import warnings

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from hadamard.validation import check_range, check_same, check_tensor

__all__ = ["GAMMA", "prf_temperature"]

GAMMA = 2 * math.pi * 42.576e6
"""Gyromagnetic ratio of the proton in rad / (s T)."""


def prf_temperature(
    z: Complex[Tensor, "*batch h w"],
    z_ref: Complex[Tensor, "*#batch h w"],
    te: float,
    b0: float,
    alpha: float = -0.01e-6,
    drift_mask: Bool[Tensor, "h w"] | None = None,
    *,
    drift_order: int = 1,
    unwrap: int | None = None,
    floor: float = 0.0,
) -> Float[Tensor, "*batch h w"]:
    """Compute the change of temperature since a reference image, by the shift of the proton resonance frequency.

    Parameters
    ----------
    z
        Complex images, shape (..., H, W).
    z_ref
        Complex image at the reference temperature, with batch dimensions that broadcast.
    te
        Echo time in seconds.
    b0
        Field in tesla.
    alpha
        Shift of the resonance per degree, relative to its frequency. Its sign is that of the scanner's phase
        convention: negative where phase grows with the field, as here.
    drift_mask
        True where nothing was heated. A polynomial in space is fitted to the phase difference there and subtracted
        everywhere, as the main field drifts; ``None``: no correction.
    drift_order
        Degree of that polynomial, 0 to 3.
    unwrap
        A dimension (negative, before height and width) along which images follow one another in time; phase may then
        change by more than pi in all, as long as it does not between two images. ``None``: differences lie in
        (-pi, pi], which at 1.5 T and an echo time of 20 ms is 39 degrees.
    floor
        Where the modulus of the image or of the reference is below this, the temperature is NaN: there is noise only.

    Returns
    -------
    Tensor
        Change of temperature in degrees Celsius, shape (..., H, W).

    Raises
    ------
    TypeError
        If an image is not complex, such as a magnitude image, or the mask is not boolean.
    ValueError
        If values are not finite or out of range, or ``drift_mask`` has fewer pixels than the polynomial coefficients.

    Notes
    -----
    The phase difference is the angle of ``z conj(z_ref)``, weighted by that product's modulus in the fit. Noise of
    standard deviation sigma in the real and the imaginary part of both leaves ``sqrt(2) sigma / (|z| |alpha| GAMMA b0
    te)`` degrees. Fat does not shift: its temperature is not measured, but it is a good ``drift_mask``.

    References
    ----------
    Y. Ishihara et al., "A precise and fast temperature mapping using water proton chemical shift", Magnetic Resonance
    in Medicine 34, 1995. V. Rieke, K. Butts Pauly, "MR thermometry", Journal of Magnetic Resonance Imaging 27, 2008.

    Examples
    --------
    >>> z_ref = torch.ones(4, 4, dtype=torch.complex64)
    >>> heated = z_ref * torch.exp(torch.tensor(-0.401j))
    >>> round(float(prf_temperature(heated, z_ref, te=0.020, b0=1.5)[0, 0]), 1)
    5.0
    """
    check_tensor(z, "z", dtype="complex")
    check_tensor(z_ref, "z_ref", dtype="complex", shape=z.shape[-2:])
    check_same(z=z, z_ref=z_ref)
    check_range(te, "te", 0, closed="neither")
    check_range(b0, "b0", 0, closed="neither")
    check_range(drift_order, "drift_order", 0, 3, integer=True)
    check_range(floor, "floor", 0)
    if not alpha:
        raise ValueError("alpha must not be 0")
    if te > 1:
        warnings.warn(f"te is in seconds, got {te}: were milliseconds meant?", stacklevel=2)
    product = z * z_ref.conj()
    phase = product.angle()
    if unwrap is not None:
        check_range(unwrap, "unwrap", -z.ndim, -3, integer=True)
        steps = torch.cat([product.narrow(unwrap, 0, 1), _steps(z, unwrap)], unwrap)
        phase = steps.angle().cumsum(unwrap)
    if drift_mask is not None:
        phase = phase - _drift(phase, product.abs(), drift_mask, drift_order, wrapped=unwrap is None)
        if unwrap is None:
            phase = _wrap(phase)
    temperature = phase / (alpha * GAMMA * b0 * te)
    silent = (z.abs() < floor) | (z_ref.abs() < floor)
    return temperature.masked_fill(silent, torch.nan) if floor else temperature


def _steps(z: Tensor, dim: int) -> Tensor:
    """Each image times the conjugate of the one before."""
    n = z.shape[dim] - 1
    return z.narrow(dim, 1, n) * z.narrow(dim, 0, n).conj()


def _wrap(phase: Tensor) -> Tensor:
    return math.pi - torch.remainder(math.pi - phase, 2 * math.pi)


def _drift(phase: Tensor, weight: Tensor, mask: Tensor, order: int, wrapped: bool) -> Tensor:
    """A polynomial of this degree, fitted by weighted least squares in the mask; its mean may have wrapped."""
    height, width = phase.shape[-2:]
    check_tensor(mask, "drift_mask", shape=(height, width), dtype=torch.bool)
    y, x = (torch.linspace(-1, 1, n, dtype=phase.dtype, device=phase.device) for n in (height, width))
    terms = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    basis = torch.stack([y[:, None] ** i * x**j for i, j in terms], -1)
    count = int(mask.sum())
    if count < len(terms):
        raise ValueError(f"drift_mask must have at least {len(terms)} pixels for drift_order {order}, got {count}")
    w, there = weight[..., mask], phase[..., mask]
    if wrapped:
        middle = torch.polar(w, there).sum(-1, keepdim=True).angle()
    else:
        middle = (w * there).sum(-1, keepdim=True) / w.sum(-1, keepdim=True)
    rest = _wrap(there - middle) if wrapped else there - middle
    root = w.sqrt()[..., None]
    fit = torch.linalg.lstsq(root * basis[mask], root * rest[..., None]).solution[..., 0]
    return middle[..., None] + torch.einsum("hwk,...k->...hw", basis, fit)
