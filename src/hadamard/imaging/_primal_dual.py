"""The primal-dual method of Condat and Vu for sums of convex functions of linear maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hadamard.operators import LinearOperator
from hadamard.results import Solution
from hadamard.validation import check_range

Prox = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Term:
    """One function of a linear map, ``h(K x)``, in the sum that :func:`condat_vu` minimises.

    Attributes
    ----------
    prox_conj
        ``prox_conj(p, sigma)``: the proximal map of the conjugate of ``h``, that is the minimiser of
        ``sigma h*(u) + ||u - p||^2 / 2`` over ``u``.
    op
        The linear map ``K``.
    norm_squared
        An upper bound on the square of its norm.
    """

    prox_conj: Prox
    op: LinearOperator
    norm_squared: float


def condat_vu(
    smooth_grad: Callable[[Tensor], Tensor] | None,
    L: float,
    prox: Prox,
    terms: Sequence[Term],
    x0: Tensor,
    *,
    step: float | Callable[[int], float] = 1.0,
    relaxation: float = 1.0,
    tol: float = 1e-5,
    max_iter: int = 200,
    every: int = 10,
    callback: Callable[[int, Tensor, float], None] | None = None,
) -> Solution:
    """Minimise ``g(x) + f(x) + sum_i h_i(K_i x)`` with ``g`` smooth and ``f``, ``h_i`` convex.

    Parameters
    ----------
    smooth_grad
        Gradient of ``g``; ``None`` where there is no smooth part (then this is the method of Chambolle and Pock).
    L
        Lipschitz constant of that gradient; 0 without it.
    prox
        ``prox(v, tau)``: the minimiser of ``tau f(u) + ||u - v||^2 / 2`` over ``u``.
    terms
        The functions ``h_i`` with their maps.
    x0
        Start; the leading dimensions that the maps leave alone are a batch.
    step
        Primal step ``tau``, below ``2 / L``, or a function of the iteration that gives it, does not increase, and stays
        constant in the end. The dual steps are as large as ``1 / tau - sigma sum_i norm_i^2 >= L / 2`` allows.
    relaxation
        Each iterate moves this fraction of its way, in ``(0, 2)``, or in ``(0, 1]`` with a smooth part; above 1 is
        usually faster.
    tol
        Stop once the relative change ``||x_new - x|| / ||x_new||`` is at most this.
    max_iter
        Greatest number of iterations.
    every
        The change is looked at, and ``callback`` called, once in so many iterations (and after the last).
    callback
        ``callback(iteration, x, change)``.

    Returns
    -------
    Solution
        ``value`` is the minimiser, ``residual`` the relative change.

    References
    ----------
    Laurent Condat, "A primal-dual splitting method for convex optimization involving Lipschitzian, proximable and
    linear composite terms", Journal of Optimization Theory and Applications, 2013. Bang Cong Vu, "A splitting
    algorithm for dual monotone inclusions involving cocoercive operators", Advances in Computational Mathematics,
    2013, arXiv 1110.1697.

    Examples
    --------
    >>> from hadamard.operators import Matrix
    >>> from hadamard.proximal import soft
    >>> y = torch.tensor([3.0, 0.5])
    >>> fit = Term(lambda p, s: (p - s * y) / (1 + s), Matrix(torch.eye(2)), 1.0)
    >>> condat_vu(None, 0.0, soft, [fit], torch.zeros(2), tol=1e-6).value
    tensor([2., 0.])
    """
    tau_of = step if callable(step) else lambda iteration: step
    check_range(tau_of(1), "step", 0, 2 / L if L else None, closed="neither")
    check_range(relaxation, "relaxation", 0, 1 if L else 2, closed="right" if L else "neither")
    norm_squared = sum(term.norm_squared for term in terms)
    x, duals = x0, [torch.zeros_like(term.op.A(x0)) for term in terms]
    for iteration in range(1, max_iter + 1):
        tau = tau_of(iteration)
        sigma = (1 / tau - L / 2) / norm_squared
        descent = torch.zeros_like(x) if smooth_grad is None else smooth_grad(x)
        for p, term in zip(duals, terms):
            descent = descent + term.op.A_adjoint(p)
        new = prox(torch.sub(x, descent, alpha=tau), tau)
        ahead = torch.lerp(x, new, 2.0)
        for i, (p, term) in enumerate(zip(duals, terms)):
            target = term.prox_conj(torch.add(p, term.op.A(ahead), alpha=sigma), sigma)
            duals[i] = target if relaxation == 1 else torch.lerp(p, target, relaxation)
        if iteration % every == 0 or iteration == max_iter:
            change = _norm(new - x) / max(_norm(new), 1e-30)
            if callback is not None:
                callback(iteration, new, change)
            if change <= tol:
                break
        x = new if relaxation == 1 else torch.lerp(x, new, relaxation)
    converged = change <= tol
    message = "" if converged else f"stopped after {iteration} iterations at change {change:.3g}, above tol={tol:g}"
    return Solution(value=new, iterations=iteration, residual=change, converged=converged, message=message)


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.detach()))
