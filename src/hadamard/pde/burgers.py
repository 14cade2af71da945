"""Burgers' equation ``u_t + u u_x = nu u_xx`` on a circle: a pseudo-spectral solver."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.pde.time_steps import time_stepper
from hadamard.spectral.fft import frequencies
from hadamard.validation import check_range, check_tensor

__all__ = ["burgers"]


def burgers(
    u: Float[Tensor, "*batch n"],
    times: Float[Tensor, " t"] | Sequence[float],
    nu: float,
    *,
    length: float = 1.0,
    courant: float = 0.5,
) -> Float[Tensor, "*batch t n"]:
    """Integrate Burgers' equation with the 2/3 rule in space and a fourth-order integrating factor in time.

    Parameters
    ----------
    u
        Velocities at time 0 at the points ``i length / n``.
    times
        When to evaluate, from 0 on and increasing.
    nu
        Viscosity, > 0.
    length
        Of the circle.
    courant
        The step is the time in which the fastest point moves by this share of the spacing. (The largest speed never
        grows.)

    Returns
    -------
    Tensor
        Of shape (..., t, n).

    Raises
    ------
    ValueError
        If an argument is out of range.
    FloatingPointError
        If the result is not finite: shocks, about ``nu / max|u|`` wide, are not resolved.

    Examples
    --------
    >>> x = torch.arange(64) / 64
    >>> u = burgers(torch.sin(2 * torch.pi * x), [0.0, 0.5], nu=0.01)
    >>> u.shape, bool(u[1].abs().max() < u[0].abs().max())
    (torch.Size([2, 64]), True)
    """
    check_tensor(u, "u", dtype="floating")
    check_range(nu, "nu", 0, None, closed="neither")
    check_range(length, "length", 0, None, closed="neither")
    check_range(courant, "courant", 0, None, closed="neither")
    moments = torch.as_tensor(times, dtype=torch.float64)
    check_range(check_tensor(moments, "times", ndim=1), "times", 0, elementwise=True)
    if bool((moments.diff() < 0).any()):
        raise ValueError("times must increase")
    n = u.shape[-1]
    (k,) = frequencies((n,), length / n, real=True, dtype=u.dtype, device=u.device)
    omega = 2 * math.pi * k
    keep = ((k * length).round() * 3 < n).to(u.dtype)
    linear, derivative = -nu * omega.square(), -0.5j * omega * keep

    def rate(spectrum: Tensor, t: float) -> Tensor:
        return derivative * torch.fft.rfft(torch.fft.irfft(spectrum * keep, n=n).square())

    speed = float(u.detach().abs().max())
    longest = courant * length / n / speed if speed > 0 else math.inf
    state, now, slices = torch.fft.rfft(u), 0.0, []
    for moment in moments.tolist():
        steps = math.ceil((moment - now) / longest) if moment > now else 0
        steps = max(steps, int(moment > now))
        if steps:
            advance = time_stepper("ifrk4", linear, rate, (moment - now) / steps)
            for _ in range(steps):
                state = advance(state, now)
        now = moment
        slices.append(torch.fft.irfft(state, n=n))
    if not bool(torch.isfinite(slices[-1].detach().sum())):
        raise FloatingPointError(f"the velocity is not finite at t={now:g}: take more points or a larger nu")
    return torch.stack(slices, -2)
