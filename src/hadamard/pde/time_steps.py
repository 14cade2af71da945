"""One step in time of ``u' = L u + N(u, t)``, where L is diagonal (in Fourier space) and stiff, and N is not.

Diffusion is taken implicitly or exactly, so that only the speed of the flow bounds the step.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from hadamard.validation import check_option

__all__ = ["SCHEMES", "time_stepper"]

Rate = Callable[[Tensor, float], Tensor]
Step = Callable[[Tensor, float], Tensor]

SCHEMES = ("imex_cn", "imex_rk2", "ifrk4")


def time_stepper(scheme: str, linear: Float[Tensor, "..."], nonlinear: Rate, dt: float) -> Step:
    """Make the step of a scheme, its factors computed once.

    Parameters
    ----------
    scheme
        ``"imex_cn"``: Euler for N, Crank-Nicolson for L; first order, one evaluation of N. ``"imex_rk2"``: Heun for N,
        Crank-Nicolson for L; second order, two evaluations. ``"ifrk4"``: the classical Runge-Kutta scheme on
        ``exp(-t L) u``; fourth order, four evaluations, and exact where N vanishes.
    linear
        The diagonal of L, real, broadcasting against the state.
    nonlinear
        ``nonlinear(u, t)``.
    dt
        Length of the step.

    Returns
    -------
    callable
        ``step(u, t)`` gives the state at ``t + dt``.

    Raises
    ------
    ValueError
        If the scheme is unknown.

    Examples
    --------
    >>> step = time_stepper("ifrk4", torch.tensor([-1.0]), lambda u, t: 0 * u, 0.5)
    >>> step(torch.tensor([1.0]), 0.0)  # exp(-1/2)
    tensor([0.6065])
    """
    check_option(scheme, "scheme", SCHEMES)
    if scheme == "ifrk4":
        return _integrating_factor(linear, nonlinear, dt)
    explicit, implicit = 1 + dt / 2 * linear, 1 / (1 - dt / 2 * linear)

    def euler(u: Inexact[Tensor, "..."], t: float) -> Inexact[Tensor, "..."]:
        return implicit * (explicit * u + dt * nonlinear(u, t))

    def heun(u: Inexact[Tensor, "..."], t: float) -> Inexact[Tensor, "..."]:
        rest, rate = explicit * u, nonlinear(u, t)
        ahead = implicit * (rest + dt * rate)
        return implicit * (rest + dt / 2 * (rate + nonlinear(ahead, t + dt)))

    return euler if scheme == "imex_cn" else heun


def _integrating_factor(linear: Tensor, nonlinear: Rate, dt: float) -> Step:
    half = torch.exp(dt / 2 * linear)
    whole = half * half

    def step(u: Tensor, t: float) -> Tensor:
        start = nonlinear(u, t)
        first = nonlinear(half * (u + dt / 2 * start), t + dt / 2)
        second = nonlinear(half * u + dt / 2 * first, t + dt / 2)
        end = nonlinear(whole * u + dt * half * second, t + dt)
        return whole * u + dt / 6 * (whole * start + 2 * half * (first + second) + end)

    return step
