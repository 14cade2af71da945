"""Plug-and-play reconstruction: any denoiser as the prior of a linear inverse problem, with residuals and objective.

Solves for an image ``x`` from ``y = A x + noise``. Where the denoiser is a learned proximal map, the solvers minimise
``||A x - y||^2 / 2 + weight R(x)``, and the objective that they trace is that function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.operators.base import operator_norm
from hadamard.results import Solution, warn_short
from hadamard.solvers.cg import cg
from hadamard.validation import check_range, check_tensor

__all__ = ["Reconstruction", "pnp_admm", "pnp_pgd"]

Denoiser = Callable[[Tensor], Tensor]
Callback = Callable[[int, Tensor], Any]


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Solution):
    """An image, and how the solver came to it.

    Attributes
    ----------
    residuals
        ``residuals[k]``: norm of the change in iteration k (for ADMM the larger of ``||x - z||`` and the change of z).
    objective
        ``objective[k]``: ``||A x - y||^2 / 2 + weight R(x)`` after iteration k, summed over the batch and up to a
        constant; ``None`` where the denoiser has no ``prox_and_prior``.
    """

    residuals: Float[Tensor, " iterations"]
    objective: Float[Tensor, " iterations"] | None


def pnp_pgd(
    operator: Any,
    y: Float[Tensor, "..."],
    denoiser: Denoiser,
    *,
    step: float | None = None,
    x0: Float[Tensor, "..."] | None = None,
    tol: float = 1e-4,
    max_iter: int = 200,
    warn: bool = True,
    callback: Callback | None = None,
) -> Reconstruction:
    """Reconstruct by proximal gradient descent: ``x = denoiser(x - step A^T (A x - y))``.

    Parameters
    ----------
    operator
        A :class:`~hadamard.operators.LinearOperator`, or anything with ``A`` and ``A_adjoint`` (then give ``step``).
    y
        Measurements, with the leading dimensions that ``denoiser`` wants.
    denoiser
        Takes and returns an image; a :class:`~hadamard.imaging.LearnedProximal` makes this a descent method.
    step
        Step length; ``None``: ``0.99 / ||A||^2``. Up to ``1 / ||A||^2`` the objective, in which R has weight
        ``1 / step``, never rises, for any R, convex or not.
    x0
        Where to start; ``None``: ``A^T y``.
    tol
        It is finished once the change is at most ``tol`` times the norm of the image.
    max_iter
        Greatest number of iterations.
    warn
        Warn where ``tol`` was not met; ``False`` where stopping short is meant.
    callback
        Called with the number of the iteration and the image.

    Returns
    -------
    Reconstruction
        ``value`` is the image, ``residual`` the last relative change.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described here.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If ``warn`` and the tolerance was not met.

    References
    ----------
    Z. Fang, S. Buchanan, J. Sulam. What's in a Prior? Learned Proximal Networks for Inverse Problems. ICLR 2024,
    arXiv:2310.14344.

    Examples
    --------
    >>> from hadamard.imaging import GaussianBlur
    >>> blur = GaussianBlur((16, 16), 1.0)
    >>> found = pnp_pgd(blur, torch.ones(1, 1, 16, 16), lambda x: x)
    >>> found.converged, bool(torch.allclose(found.value, torch.ones(16, 16)))
    (True, True)
    """
    x = _start(operator, y, x0)
    step = 0.99 / operator_norm(operator) ** 2 if step is None else check_range(step, "step", 0, closed="neither")

    def iterate(x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        new, prior = _denoise(denoiser, x - step * operator.A_adjoint(operator.A(x) - y))
        return new, torch.linalg.vector_norm(new - x), _objective(operator, y, new, prior, 1 / step)

    return _run(iterate, x, "pnp_pgd", tol, max_iter, warn, callback)


def pnp_admm(
    operator: Any,
    y: Float[Tensor, "..."],
    denoiser: Denoiser,
    *,
    rho: float = 0.1,
    x0: Float[Tensor, "..."] | None = None,
    tol: float = 1e-4,
    max_iter: int = 50,
    warn: bool = True,
    callback: Callback | None = None,
) -> Reconstruction:
    """Reconstruct by the alternating direction method: a linear solve, the denoiser, and the sum of their differences.

    ``x = (A^T A + rho)^-1 (A^T y + rho (z - u))`` by conjugate gradients, ``z = denoiser(x + u)``, ``u = u + x - z``.

    Parameters
    ----------
    operator, y, x0, tol, warn, callback
        As for :func:`pnp_pgd`.
    denoiser
        Takes and returns an image.
    rho
        Weight of R in the objective, above 0: small values trust the data. Fewer, dearer iterations than
        :func:`pnp_pgd`, whose weight is at least ``||A||^2``.
    max_iter
        Greatest number of iterations.

    Returns
    -------
    Reconstruction
        ``value`` is the denoiser's last output, ``residual`` the larger of ``||x - z||`` and the change of z, over the
        norm of z. The objective need not fall in every iteration. Errors and warnings are those of :func:`pnp_pgd`.

    References
    ----------
    S. V. Venkatakrishnan, C. A. Bouman, B. Wohlberg. Plug-and-Play Priors for Model Based Reconstruction. GlobalSIP
    2013.

    Examples
    --------
    >>> from hadamard.imaging import GaussianBlur
    >>> blur = GaussianBlur((16, 16), 1.0)
    >>> found = pnp_admm(blur, torch.ones(1, 1, 16, 16), lambda x: x)
    >>> found.converged, bool(torch.allclose(found.value, torch.ones(16, 16), atol=1e-3))
    (True, True)
    """
    start = _start(operator, y, x0)
    check_range(rho, "rho", 0, closed="neither")
    back = operator.A_adjoint(y)

    def solve(v: Tensor, x: Tensor) -> Tensor:
        return cg(
            lambda u: operator.A_adjoint(operator.A(u)) + rho * u, back + rho * v, x0=x, tol=1e-5, max_iter=30,
            ndim=v.ndim, warn=False,
        ).value  # fmt: skip

    def denoise(v: Tensor) -> tuple[Tensor, Tensor | None]:
        z, prior = _denoise(denoiser, v)
        return z, _objective(operator, y, z, prior, rho)

    return _run(_admm(solve, denoise, start), start, "pnp_admm", tol, max_iter, warn, callback)


def _admm(
    x_step: Callable[[Tensor, Tensor], Tensor], z_step: Callable[[Tensor], tuple[Tensor, Tensor | None]], x0: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
    """Make one iteration of ADMM in scaled form, as a function of z; x and the dual variable live here."""
    x, u = x0, torch.zeros_like(x0)

    def iterate(z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        nonlocal x, u
        x = x_step(z - u, x)
        new, value = z_step(x + u)
        u = u + x - new
        residual = torch.maximum(torch.linalg.vector_norm(x - new), torch.linalg.vector_norm(new - z))
        return new, residual, value

    return iterate


def _run(
    iterate: Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]],
    x: Tensor,
    name: str,
    tol: float,
    max_iter: int,
    warn: bool,
    callback: Callback | None,
) -> Reconstruction:
    """Repeat an iteration until the image changes by less than ``tol``, and collect what it reports."""
    check_range(tol, "tol", 0)
    check_range(max_iter, "max_iter", 1, integer=True)
    residuals: list[Tensor] = []
    objective: list[Tensor] = []
    relative = float("inf")
    with torch.no_grad():
        for k in range(max_iter):
            x, residual, value = iterate(x)
            residuals.append(residual)
            objective += [] if value is None else [value]
            relative = float(residual / torch.linalg.vector_norm(x).clamp_min(torch.finfo(x.dtype).tiny))
            if callback is not None:
                callback(k, x)
            if relative <= tol:
                break
            if not relative < float("inf"):
                raise ValueError(f"denoiser and step must keep the image finite, got NaN or infinity in iteration {k}")
    message = ""
    if not relative <= tol:
        message = f"{name} stopped after {max_iter} iterations at relative change {relative:.3g}, above tol={tol:g}"
        if warn:
            warn_short(message)
    return Reconstruction(
        value=x,
        iterations=len(residuals),
        residual=relative,
        converged=not message,
        message=message,
        residuals=torch.stack(residuals),
        objective=torch.stack(objective) if objective else None,
    )


def _start(operator: Any, y: Tensor, x0: Tensor | None) -> Tensor:
    if not (hasattr(operator, "A") and hasattr(operator, "A_adjoint")):
        raise TypeError(f"operator must have the methods A and A_adjoint, got {type(operator).__name__}")
    check_tensor(y, "y", dtype="floating")
    with torch.no_grad():
        back = operator.A_adjoint(y)
    if x0 is None:
        return back
    check_tensor(x0, "x0", dtype=y.dtype)
    if x0.shape != back.shape:
        raise ValueError(f"x0 must have the shape of the image, {tuple(back.shape)}, got {tuple(x0.shape)}")
    return x0


def _denoise(denoiser: Any, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Denoise, and evaluate the prior at the result where the denoiser knows it."""
    if hasattr(denoiser, "prox_and_prior"):
        return denoiser.prox_and_prior(v)
    return denoiser(v), None


def _objective(operator: Any, y: Tensor, x: Tensor, prior: Tensor | None, weight: float) -> Tensor | None:
    return None if prior is None else (operator.A(x) - y).square().sum() / 2 + weight * prior.sum()
