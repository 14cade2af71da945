"""Refinement of a predicted flow, without labels: the last spectral layer, all its frequencies, fitted to the equation.

A network is trained for a few epochs only. Then, for the one case at hand, everything but its last spectral layer is
frozen, that layer is given all frequencies that the grid has, and its coefficients are chosen so that the equation's
residual is least in a negative Sobolev norm. With one case there is one unknown for each frequency: the layer's bias
spectrum, which is a correction of the trajectory; hence the same works for the prediction of any model.

Between slices at distance ``dt`` the residual is that of Crank-Nicolson (:meth:`NavierStokes2D.residual`). The unknown
``e`` is what the correction adds to the residual's linear part, in units of the norm: with the norm's weight ``W^s``
and ``a = dt nu 2 pi^2 |k|^2`` the correction is its integral, ``c_l = ((1 - a) c_{l-1} + dt W^(-s/2) e_l) / (1 + a)``.
Without convection the weighted residual is then linear in ``e``, with the identity as its matrix.

References
----------
S. Cao, F. Brarda, R. Li, Y. Xi, "Spectral-Refiner: Accurate Fine-Tuning of Spatiotemporal Fourier Neural Operator for
Turbulent Flows", ICLR 2025, arXiv:2405.17211.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.pde.navier_stokes import NavierStokes2D
from hadamard.pde.residual_norm import ALPHA
from hadamard.pde.spatiotemporal_fno import STFNO
from hadamard.results import Solution
from hadamard.solvers.lbfgs import minimize
from hadamard.spectral.norms import half_spectrum_counts
from hadamard.validation import check_option, check_range, check_same, check_tensor

__all__ = ["Refinement", "SpectralRefiner"]


@dataclass(frozen=True, kw_only=True)
class Refinement(Solution):
    """A refined trajectory: ``value`` of shape (..., t, nx, ny).

    Attributes
    ----------
    history
        Norm of the residual (:func:`~hadamard.pde.residual_norm`) at the start and at each later evaluation, the least
        so far.
    """

    history: Float[Tensor, " evaluations"]


class SpectralRefiner:
    """Lower the residual of predicted trajectories of a flow, starting from a network or from any prediction.

    Parameters
    ----------
    pde
        The equation.
    dt
        Time between slices.
    s
        Order of the residual's norm: -1 as in the paper, 0 for L2.
    alpha
        What the zero frequency counts in the norm.
    precondition
        Take the residual's linear part as the unknown; ``False``: the correction's plain Fourier coefficients.
    optimizer
        ``"lbfgs"``, or ``"adam"`` as in the paper (at a learning rate that falls to zero along a half cosine).
    lr
        Learning rate of Adam, relative to the root mean square of the unknown's first Newton-like step.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The limit of refinement is the Crank-Nicolson solution on the given slices, whose error is O(dt^2): ask the model
    for more slices to lower it. In float32 residuals stall near 1e-6 of the field; use float64. Do not use it where the
    flow can simply be marched: :meth:`NavierStokes2D.solve` reaches a smaller error in much less time.

    The paper's code takes the time derivative in the residual from the equation itself, which makes the residual vanish
    for every trajectory; here it is that of the trajectory. Without the preconditioner the norm of order -1 is a slower
    objective than L2.

    Examples
    --------
    >>> from hadamard.pde import grid_points
    >>> x, y = grid_points((8, 8), like=torch.zeros((), dtype=torch.float64))
    >>> start = torch.sin(2 * torch.pi * x) * torch.cos(2 * torch.pi * y)
    >>> flow = NavierStokes2D(nu=0.01)
    >>> truth = flow.solve(start, dt=0.1, steps=4)[1:]
    >>> guess = start.expand(4, 8, 8)  # as if nothing happened
    >>> found = SpectralRefiner(flow, dt=0.1).refine_fields(guess, start, max_iter=20)
    >>> bool((guess - truth).norm() > 100 * (found.value - truth).norm())
    True
    """

    def __init__(
        self,
        pde: NavierStokes2D,
        dt: float,
        *,
        s: float = -1.0,
        alpha: float = ALPHA,
        precondition: bool = True,
        optimizer: str = "lbfgs",
        lr: float = 0.05,
    ) -> None:
        self.pde, self.s, self.precondition = pde, s, precondition
        self.dt = check_range(dt, "dt", 0, None, closed="neither")
        self.alpha = check_range(alpha, "alpha", 0, None, closed="neither")
        self.optimizer = check_option(optimizer, "optimizer", ("lbfgs", "adam"))
        self.lr = check_range(lr, "lr", 0, None, closed="neither")

    def refine(
        self,
        model: STFNO,
        w: Float[Tensor, "batch t_in nx ny"],
        out_steps: int | None = None,
        *,
        max_iter: int = 100,
        tol: float = 1e-6,
        t: float = 0.0,
    ) -> Refinement:
        """Predict the slices that follow ``w`` by a network and refine them, in float64.

        Parameters
        ----------
        model
            Its prediction starts the refinement; it is not changed. ``dt`` must be its span of time over ``out_steps``.
        w
            Known slices.
        out_steps
            Number of slices to predict.
        max_iter, tol, t
            As for :meth:`refine_fields`.
        """
        with torch.no_grad():
            guess = model(w.to(next(model.parameters()).dtype), out_steps)
        return self.refine_fields(guess.double(), w[:, -1].double(), max_iter=max_iter, tol=tol, t=t)

    def refine_fields(
        self,
        w: Float[Tensor, "*batch t nx ny"],
        last: Float[Tensor, "*batch nx ny"],
        *,
        max_iter: int = 100,
        tol: float = 1e-6,
        t: float = 0.0,
    ) -> Refinement:
        """Refine predicted slices, by whatever model.

        Parameters
        ----------
        w
            Prediction at ``t + dt, t + 2 dt, ...``; float64 if more than single precision is wanted.
        last
            The known slice at time ``t``, which stays as it is.
        max_iter
            Number of iterations to spend at most; a batch is one problem and shares them. That they are spent is no
            failure: there is no warning, ``converged`` says it.
        tol
            It is finished once no entry of the gradient is larger than ``tol`` times the largest at the start.
        t
            Time of the known slice; matters to a forcing that depends on it.

        Returns
        -------
        Refinement
            ``residual`` is the largest entry of the gradient relative to the start's.

        Raises
        ------
        ValueError
            If shapes, dtypes or devices do not fit, or a value is not finite.
        """
        check_tensor(w, "w", dtype="floating")
        check_tensor(last, "last", dtype="floating")
        check_same(w=w, last=last)
        check_range(max_iter, "max_iter", 1, integer=True)
        check_range(tol, "tol", 0)
        if w.ndim < 3 or w.shape[:-3] + w.shape[-2:] != last.shape:
            raise ValueError(
                f"last must have the shape of w without its time, got {tuple(last.shape)} for {tuple(w.shape)}"
            )
        problem = _Problem(self, w.detach(), last.detach(), t)
        unknown = torch.zeros(*problem.spectrum.shape, 2, dtype=w.dtype, device=w.device)
        slope, scale = problem.start(unknown)
        if slope == 0:
            history = w.new_tensor(problem.history)
            return Refinement(value=w.detach(), iterations=0, residual=0.0, converged=True, history=history)
        if self.optimizer == "lbfgs":
            found = minimize(
                lambda e: problem(scale * e) / (slope * scale), unknown, tol=tol, max_iter=max_iter, warn=False
            )
            best, iterations, residual = scale * found.value, found.iterations, found.residual
        else:
            best, residual = _adam(problem, unknown, self.lr * scale, max_iter, slope)
            iterations = max_iter
        converged = residual <= tol
        message = (
            "" if converged else f"stopped after {iterations} iterations at gradient {residual:.3g}, above tol={tol:g}"
        )
        return Refinement(
            value=problem.trajectory(best), iterations=iterations, residual=residual, converged=converged,
            message=message, history=w.new_tensor(problem.history),
        )  # fmt: skip


class _Problem:
    """Squared norm of the residual as a function of the unknown, for the trajectories of one batch."""

    def __init__(self, refiner: SpectralRefiner, w: Tensor, last: Tensor, t: float) -> None:
        self.pde, self.dt, self.t, self.w, self.last = refiner.pde, refiner.dt, t, w, last
        self.spectrum = torch.fft.rfft2(w)
        self.first = torch.fft.rfft2(last).unsqueeze(-3)
        counts = half_spectrum_counts(w.shape[-1], dtype=w.dtype, device=w.device)
        points = float(w.shape[-1] * w.shape[-2])
        self.weight = self.pde.sobolev_weight(last, refiner.s, refiner.alpha) * counts / points**2
        damping = self.dt / 2 * self.pde.nu * self.pde.sobolev_weight(last, 1.0, 0.0)
        self.decay = (1 - damping) / (1 + damping)
        self.unit = self.dt / (1 + damping) / self.weight.sqrt()
        self.plain = None if refiner.precondition else self.dt * points / counts.sqrt()
        self.history: list[float] = []

    def corrected(self, e: Tensor) -> Tensor:
        """Spectrum of the trajectory."""
        change = torch.view_as_complex(e)
        if self.plain is not None:
            return self.spectrum + self.plain * change
        slices = [self.unit * change[..., 0, :, :]]
        for number in range(1, change.shape[-3]):
            slices.append(self.decay * slices[-1] + self.unit * change[..., number, :, :])
        return self.spectrum + torch.stack(slices, -3)

    def trajectory(self, e: Tensor) -> Tensor:
        return torch.fft.irfft2(self.corrected(e), s=self.w.shape[-2:])

    def __call__(self, e: Tensor) -> Tensor:
        whole = torch.cat([self.first, self.corrected(e)], -3)
        residual = self.pde._residual_spectrum(whole, self.last, self.dt, self.t)
        square = self.dt * (self.weight * (residual.real.square() + residual.imag.square())).sum()
        norm = float(square.detach()) ** 0.5
        if norm == norm:
            self.history.append(min(norm, self.history[-1]) if self.history else norm)
        return square

    def start(self, e: Tensor) -> tuple[float, float]:
        """Largest entry of the gradient, and the size of a step against it that would halve the residual."""
        e = e.clone().requires_grad_()
        with torch.enable_grad():
            value = self(e)
            (gradient,) = torch.autograd.grad(value, e)
        slope = float(gradient.abs().max())
        return slope, float(value.detach()) / float(gradient.norm()) if slope > 0 else 1.0


def _adam(problem: Callable[[Tensor], Tensor], e: Tensor, lr: float, steps: int, slope: float) -> tuple[Tensor, float]:
    """Adam from zero; the best unknown that it met, and the gradient's largest entry there over ``slope``."""
    e = e.clone().requires_grad_()
    optimizer = torch.optim.Adam([e], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, least, residual = e.detach().clone(), float("inf"), 1.0
    for _ in range(steps + 1):
        optimizer.zero_grad()
        with torch.enable_grad():
            value = problem(e)
            value.backward()
        assert e.grad is not None
        if float(value.detach()) < least:
            best, least, residual = e.detach().clone(), float(value.detach()), float(e.grad.abs().max()) / slope
        optimizer.step()
        schedule.step()
    return best, residual
