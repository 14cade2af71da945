"""Limited-memory BFGS on a torch function."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

from hadamard.results import Solution, warn_short
from hadamard.validation import check_range, check_tensor

__all__ = ["minimize"]


def minimize(
    fun: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]],
    x0: Float[Tensor, "*shape"],
    *,
    tol: float = 1e-6,
    max_iter: int = 500,
    warn: bool = True,
) -> Solution:
    """Minimise a smooth function of a tensor by L-BFGS.

    Parameters
    ----------
    fun
        Takes a tensor of ``x0``'s shape, type and device and returns a number, whose gradient autograd computes, or a
        number and the gradient.
    x0
        Where to start; pass float64 where a small gradient is wanted.
    tol
        It is finished once the largest entry of the gradient is at most ``tol`` in modulus. Rounding of ``fun`` ends
        the line search near the square root of ``eps * abs(fun) * curvature``: a smaller ``tol`` is rarely met.
    max_iter
        Greatest number of iterations.
    warn
        Warn where the tolerance was not met; ``False`` where stopping short is meant.

    Returns
    -------
    Solution
        ``value`` is the minimiser, of ``x0``'s type and on its device; ``residual`` the largest modulus in the
        gradient there; ``extras["fun"]`` the minimum; ``extras["evaluations"]`` how often ``fun`` was called.

    Raises
    ------
    TypeError
        If ``x0`` is not a floating tensor.
    ValueError
        If ``x0`` is empty or not finite, ``fun`` does not return one number, or it is not finite at ``x0``.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If ``warn`` and the tolerance was not met.

    Notes
    -----
    The iteration is SciPy's L-BFGS-B (20 corrections), in float64 on the CPU; only ``fun`` runs in ``x0``'s type and on
    its device. The relative decrease of the function is no stopping rule. Where a line search meets a value that is not
    finite, it sees one above all values so far, and backtracks.

    References
    ----------
    D. C. Liu, J. Nocedal. On the limited memory BFGS method for large scale optimization. Mathematical Programming 45,
    1989.

    Examples
    --------
    >>> found = minimize(lambda x: ((x - torch.tensor([1.0, 2.0])) ** 2).sum(), torch.zeros(2))
    >>> found.value, found.converged
    (tensor([1., 2.]), True)
    """
    check_tensor(x0, "x0", dtype="floating")
    check_range(tol, "tol", 0)
    check_range(max_iter, "max_iter", 1, integer=True)

    largest = -np.inf

    def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal largest
        x = torch.as_tensor(point, dtype=x0.dtype, device=x0.device).reshape(x0.shape)
        value, gradient = _value_and_gradient(fun, x)
        number, slope = value.item(), gradient.detach().double().cpu().numpy().ravel()
        if np.isfinite(number) and np.isfinite(slope).all():
            largest = max(largest, number)
            return number, slope
        if largest == -np.inf:
            raise ValueError(f"fun and its gradient must be finite at x0, got {number}")
        return largest + 1 + abs(largest), np.zeros_like(slope)

    start = x0.detach().double().cpu().numpy().ravel()
    options = {"maxiter": max_iter, "maxfun": 20 * max_iter, "maxcor": 20, "maxls": 40, "gtol": tol, "ftol": 0.0}
    found = scipy_minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    residual = float(np.abs(found.jac).max())
    converged = bool(residual <= tol)
    message = ""
    if not converged:
        stop = f"stopped after {found.nit} iterations at gradient {residual:.3g}, above tol={tol:g}"
        message = f"minimize {stop} ({found.message})"
    if warn and not converged:
        warn_short(message)
    return Solution(
        value=torch.as_tensor(found.x, dtype=x0.dtype, device=x0.device).reshape(x0.shape),
        iterations=int(found.nit),
        residual=residual,
        converged=converged,
        message=message,
        extras={"fun": float(found.fun), "evaluations": int(found.nfev)},
    )


def _value_and_gradient(fun: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """Call the function, and autograd where it gives no gradient itself."""
    with torch.enable_grad():
        x.requires_grad_()
        result = fun(x)
        value, gradient = result if isinstance(result, tuple) else (result, None)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"fun must return one number as a tensor, got {value!r}")
        if gradient is None:
            (gradient,) = torch.autograd.grad(value.reshape(()), x)
    if gradient.shape != x.shape:
        raise ValueError(f"fun must return a gradient of shape {tuple(x.shape)}, got {tuple(gradient.shape)}")
    return value, gradient
