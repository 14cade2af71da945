"""Two-dimensional incompressible flow on a periodic rectangle: a pseudo-spectral solver for the vorticity.

The vorticity ``w = dv/dx - du/dy`` of a flow ``(u, v)`` obeys ``w_t + u w_x + v w_y = nu (w_xx + w_yy) + f``; the
velocity is ``(psi_y, -psi_x)`` with ``-(psi_xx + psi_yy) = w``. Derivatives are taken in Fourier space, products on the
grid, in the divergence form of the momentum: ``u . grad w = (d_xx - d_yy) (u v) + d_xy (v^2 - u^2)`` costs four
transforms. With the 2/3 rule no product is aliased, so that the discrete flow keeps energy and enstrophy where there is
neither viscosity nor forcing.

References
----------
S. A. Orszag, "On the Elimination of Aliasing in Finite-Difference Schemes by Filtering High-Wavenumber Components",
Journal of the Atmospheric Sciences 28, 1971.
C. Basdevant, "Technical Improvements for Direct Numerical Simulation of Homogeneous Three-Dimensional Turbulence",
Journal of Computational Physics 50, 1983 (the form with fewest transforms).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from hadamard.pde.grids import grid_points
from hadamard.pde.time_steps import SCHEMES, Step, time_stepper
from hadamard.spectral.fft import frequencies
from hadamard.spectral.norms import sobolev_weight
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["NavierStokes2D"]

Forcing = Tensor | Callable[..., Tensor]


@dataclass(frozen=True)
class _Symbols:
    """What derivatives multiply each coefficient of ``rfft2`` by; ``keep`` is 1 where products are kept, else 0."""

    dx: Tensor
    dy: Tensor
    laplacian: Tensor
    inverse: Tensor
    across: Tensor
    mixed: Tensor
    keep: Tensor


class NavierStokes2D:
    """Incompressible flow on a periodic rectangle: batched, differentiable, on the input's device, in its dtype.

    Fields have shape (..., nx, ny), x along the first of the two; trajectories (..., t, nx, ny).

    Parameters
    ----------
    nu
        Viscosity, at least 0, in units of length^2 / time.
    forcing
        Of the vorticity: a field that broadcasts to the vorticity, or a function ``forcing(x, y, t)`` of the
        coordinates (nx, 1) and (1, ny) and the time, such as :func:`diagonal_forcing`; ``None``: none.
    length
        Of the box, or one along x and one along y.
    dealias
        Drop frequencies ``|k| >= n / 3`` before and after products (2/3 rule). ``False`` only where the flow is known
        to be resolved far better than that.

    Raises
    ------
    TypeError, ValueError
        If ``nu`` is negative, a length is not positive, or by the methods: if a field is not a finite real one.

    Warns
    -----
    UserWarning
        By the methods, where the mean vorticity is not zero, as it must be for periodic velocities: the mean does not
        act on the flow.

    Notes
    -----
    An explicit step of length dt is stable up to about ``dt max|u| < dx`` (:meth:`max_step`). Not for flows with walls,
    shocks, or in three dimensions.

    Examples
    --------
    >>> x, y = grid_points((16, 16), 2 * torch.pi)
    >>> flow = NavierStokes2D(nu=0.1, length=2 * torch.pi)
    >>> w = flow.solve(torch.cos(x) * torch.cos(y), dt=0.1, steps=10)  # a Taylor-Green vortex: exp(-2 nu t) w
    >>> w.shape, round(float(w[-1, 0, 0]), 4), round(math.exp(-0.2), 4)
    (torch.Size([11, 16, 16]), 0.8187, 0.8187)
    """

    def __init__(
        self,
        nu: float,
        forcing: Forcing | None = None,
        length: float | Sequence[float] = 1.0,
        dealias: bool = True,
    ) -> None:
        self.nu = check_range(nu, "nu", 0)
        self.forcing = forcing
        if isinstance(forcing, Tensor):
            check_tensor(forcing, "forcing", dtype="floating")
        lengths = (length, length) if isinstance(length, (int, float)) else tuple(length)
        if len(lengths) != 2:
            raise ValueError(f"length must be one number or two, got {len(lengths)}")
        self.length = tuple(check_range(size, "length", 0, None, closed="neither") for size in lengths)
        self.dealias = dealias
        self._known: dict[tuple, _Symbols] = {}

    def step(
        self, w: Float[Tensor, "*batch nx ny"], dt: float, scheme: str = "ifrk4", t: float = 0.0
    ) -> Float[Tensor, "*batch nx ny"]:
        """Advance the vorticity by one step of length ``dt`` from time ``t``; see :meth:`solve`."""
        return self.solve(w, dt, 1, scheme=scheme, t=t)[..., -1, :, :]

    def solve(
        self,
        w: Float[Tensor, "*batch nx ny"],
        dt: float,
        steps: int,
        *,
        every: int = 1,
        scheme: str = "ifrk4",
        t: float = 0.0,
    ) -> Float[Tensor, "*batch t nx ny"]:
        """Integrate in time.

        Parameters
        ----------
        w
            Vorticity at time ``t``.
        dt
            Length of a step.
        steps
            Number of steps.
        every
            Return every this many steps; must divide ``steps``.
        scheme
            ``"ifrk4"`` (fourth order), ``"imex_rk2"`` or ``"imex_cn"``: see
            :func:`~hadamard.pde.time_steps.time_stepper`.
        t
            Time at the start; matters to a forcing that depends on it.

        Returns
        -------
        Tensor
            The start and ``steps // every`` later slices.

        Raises
        ------
        FloatingPointError
            If the result is not finite: the step was too long.
        """
        check_range(dt, "dt", 0, None, closed="neither")
        check_range(steps, "steps", 1, integer=True)
        check_range(every, "every", 1, integer=True)
        check_option(scheme, "scheme", SCHEMES)
        if steps % every:
            raise ValueError(f"every must divide steps={steps}, got {every}")
        self._check(w)
        advance = self._stepper(w, dt, scheme)
        state, slices = torch.fft.rfft2(w), [w]
        for number in range(steps):
            state = advance(state, t + number * dt)
            if (number + 1) % every == 0:
                slices.append(torch.fft.irfft2(state, s=w.shape[-2:]))
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(slices[-1].detach().sum())):
            raise FloatingPointError(f"the flow is not finite after {steps} steps: dt={dt:g} is too long")
        return torch.stack(torch.broadcast_tensors(*slices), -3)

    def residual(
        self, w: Float[Tensor, "*batch t nx ny"], dt: float, t: float = 0.0
    ) -> Float[Tensor, "*batch slabs nx ny"]:
        """By how much a trajectory violates the equation between its slices (Crank-Nicolson).

        ``(w' - w) / dt + (C(w') + C(w)) / 2 - nu (lap w' + lap w) / 2 - f(t + dt / 2)`` for each two successive slices
        w and w', where C is :meth:`convection`. It takes the time derivative from the trajectory itself, so that it
        vanishes, up to O(dt^2), on solutions only.

        Parameters
        ----------
        w
            Vorticity at ``t, t + dt, ...``: two slices at least.
        dt
            Time between slices.
        t
            Time of the first one.
        """
        check_range(dt, "dt", 0, None, closed="neither")
        self._check(w)
        if w.ndim < 3 or w.shape[-3] < 2:
            raise ValueError(f"w must have at least two slices along dim -3, got shape {tuple(w.shape)}")
        return torch.fft.irfft2(self._residual_spectrum(torch.fft.rfft2(w), w, dt, t), s=w.shape[-2:])

    def convection(self, w: Float[Tensor, "*batch nx ny"]) -> Float[Tensor, "*batch nx ny"]:
        """``u . grad w``, without its aliased part where ``dealias``."""
        self._check(w)
        shape = (w.shape[-2], w.shape[-1])
        return torch.fft.irfft2(self._convection(torch.fft.rfft2(w), self._symbols(w), shape), s=shape)

    def velocity(self, w: Float[Tensor, "*batch nx ny"]) -> Float[Tensor, "*batch 2 nx ny"]:
        """The velocity's two components, divergence-free and of mean zero."""
        self._check(w)
        symbols = self._symbols(w)
        psi = torch.fft.rfft2(w) * symbols.inverse
        return torch.fft.irfft2(torch.stack([symbols.dy * psi, -symbols.dx * psi], -3), s=w.shape[-2:])

    def energy(self, w: Float[Tensor, "*batch nx ny"]) -> Float[Tensor, "*batch"]:
        """Kinetic energy per area, ``mean(u^2 + v^2) / 2``."""
        return self.velocity(w).square().sum(-3).mean((-2, -1)) / 2

    def max_step(self, w: Float[Tensor, "*batch nx ny"], courant: float = 0.5) -> float:
        """A step during which the fastest fluid of a batch moves by ``courant`` of the grid's spacing."""
        check_range(courant, "courant", 0, None, closed="neither")
        spacing = min(size / n for size, n in zip(self.length, w.shape[-2:]))
        speed = float(self.velocity(w).detach().square().sum(-3).max().sqrt())
        return courant * spacing / speed if speed > 0 else math.inf

    def sobolev_weight(self, w: Float[Tensor, "*batch nx ny"], s: float, alpha: float) -> Float[Tensor, "nx half"]:
        """``(alpha + 4 pi^2 |k|^2)^s`` on the frequencies of the box that ``rfft2`` gives for a grid like that of w."""
        return sobolev_weight(self._frequencies(w), s, alpha)

    def _check(self, w: Tensor) -> None:
        check_tensor(w, "w", dtype="floating")
        if w.ndim < 2 or min(w.shape[-2:]) < 4:
            raise ValueError(f"w must have shape (..., nx, ny) with at least 4 points each way, got {tuple(w.shape)}")
        if w.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"w must be float32 or float64, got {w.dtype}")
        if torch.compiler.is_compiling():
            return
        mean, size = float(w.detach().mean((-2, -1)).abs().max()), float(w.detach().abs().max())
        if mean > 1e-4 * size:
            text = "w has a mean of {:.3g}, which no periodic flow has: it stays as it is and does not act on the flow"
            warnings.warn(text.format(mean), UserWarning, stacklevel=3)

    def _frequencies(self, w: Tensor) -> list[Tensor]:
        shape = w.shape[-2:]
        spacing = [size / n for size, n in zip(self.length, shape)]
        return frequencies(shape, spacing, real=True, dtype=w.dtype, device=w.device)

    def _symbols(self, w: Tensor) -> _Symbols:
        """The symbols for a grid, made once."""
        shape = (w.shape[-2], w.shape[-1])
        key = (shape, w.dtype, w.device)
        if key not in self._known:
            kx, ky = self._frequencies(w)
            limits = [n / (3 if self.dealias else 2) for n in shape]
            inside = [(k.abs() * size).round() < limit for k, size, limit in zip((kx, ky), self.length, limits)]
            ox, oy = 2 * math.pi * kx, 2 * math.pi * ky
            odd = [(k.abs() * size).round() * 2 < n for k, size, n in zip((kx, ky), self.length, shape)]
            square = ox.square() + oy.square()
            inverse = torch.where(square > 0, 1 / torch.where(square > 0, square, 1), 0)
            self._known[key] = _Symbols(
                1j * ox * odd[0], 1j * oy * odd[1], -square, inverse, oy.square() - ox.square(),
                -ox * oy * odd[0] * odd[1], (inside[0] & inside[1]).to(w.dtype),
            )  # fmt: skip
        return self._known[key]

    def _convection(self, spectrum: Tensor, symbols: _Symbols, shape: tuple[int, int]) -> Complex[Tensor, "..."]:
        psi = spectrum * (symbols.inverse * symbols.keep)
        u, v = torch.fft.irfft2(torch.stack([symbols.dy * psi, -symbols.dx * psi]), s=shape)
        products = torch.fft.rfft2(torch.stack([u * v, (v - u) * (v + u)]))
        return symbols.keep * (symbols.across * products[0] + symbols.mixed * products[1])

    def _forcing(self, w: Tensor, t: float) -> Tensor | None:
        """Spectrum of the forcing at a time."""
        if self.forcing is None:
            return None
        if isinstance(self.forcing, Tensor):
            field = self.forcing.to(w)
        else:
            x, y = grid_points(w.shape[-2:], self.length, w)
            field = self.forcing(x, y, t)
        if field.shape[-2:] != w.shape[-2:]:
            raise ValueError(f"forcing must have the grid of w, {tuple(w.shape[-2:])}, got {tuple(field.shape)}")
        return torch.fft.rfft2(field)

    def _stepper(self, w: Tensor, dt: float, scheme: str) -> Step:
        symbols, shape = self._symbols(w), (w.shape[-2], w.shape[-1])
        steady = self._forcing(w, 0.0) if isinstance(self.forcing, Tensor) else None

        def rate(spectrum: Tensor, t: float) -> Tensor:
            force = self._forcing(w, t) if steady is None else steady
            change = -self._convection(spectrum, symbols, shape)
            return change if force is None else change + force

        return time_stepper(scheme, self.nu * symbols.laplacian, rate, dt)

    def _residual_spectrum(self, spectrum: Tensor, w: Tensor, dt: float, t: float) -> Complex[Tensor, "..."]:
        """The residual's spectrum, from the trajectory's (``w`` gives grid, dtype and device)."""
        symbols = self._symbols(w)
        rate = self._convection(spectrum, symbols, (w.shape[-2], w.shape[-1])) - self.nu * symbols.laplacian * spectrum
        before, after = spectrum[..., :-1, :, :], spectrum[..., 1:, :, :]
        residual = (after - before) / dt + (rate[..., 1:, :, :] + rate[..., :-1, :, :]) / 2
        if isinstance(self.forcing, Tensor):
            force = self._forcing(w, 0.0)
            assert force is not None
            return residual - (force.unsqueeze(-3) if force.ndim > 2 else force)
        if self.forcing is None:
            return residual
        slabs = [self._forcing(w, t + (number + 0.5) * dt) for number in range(residual.shape[-3])]
        return residual - torch.stack([force for force in slabs if force is not None], -3)
