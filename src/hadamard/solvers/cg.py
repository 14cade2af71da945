"""Conjugate gradients for many Hermitian systems at once."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor

from hadamard.results import Solution, warn_short
from hadamard.validation import check_range, check_same, check_tensor

__all__ = ["cg"]

Map = Callable[[Tensor], Tensor]


def cg(
    matvec: Map,
    b: Inexact[Tensor, "*shape"],
    *,
    x0: Inexact[Tensor, "*shape"] | None = None,
    precondition: Map | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    ndim: int = 1,
    warn: bool = True,
) -> Solution:
    """Solve ``matvec(x) = b`` for a Hermitian, positive (semi-)definite map by conjugate gradients.

    Parameters
    ----------
    matvec
        The map; takes and returns tensors of ``b``'s shape, each system by itself.
    b
        Right-hand sides: the last ``ndim`` dimensions are one system's unknowns, the leading ones count systems.
    x0
        Where to start; ``None``: at zero, which for a singular, consistent system gives the solution of smallest norm.
    precondition
        Approximate inverse of the map, Hermitian positive definite; ``None``: the identity.
    tol
        A system is finished once ``||b - matvec(x)|| <= tol * ||b||``, for the residual that the recurrence carries.
    max_iter
        Greatest number of steps; ``None``: ten times the number of unknowns.
    ndim
        Number of dimensions that make up one system's unknowns.
    warn
        Warn where a system is not finished; ``False`` where stopping short is meant.

    Returns
    -------
    Solution
        ``value`` has the shape of ``b``. ``residual`` is the largest relative residual; ``extras["residuals"]`` and
        ``extras["iterations"]`` hold each system's own. ``value`` is differentiable in ``b`` and in what ``matvec``
        computes with: its gradient solves one more system to the same tolerance, and no step is stored.

    Raises
    ------
    TypeError
        If ``b`` is not a floating or complex tensor.
    ValueError
        If ``b`` is empty or not finite, ``x0`` has another shape, device or type, or ``matvec`` returns a tensor of
        another shape.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If ``warn`` and a system did not meet the tolerance.

    Notes
    -----
    A finished system is frozen: its step lengths are zero from then on, so that it takes no part in the rounding or in
    the stopping of the others. A system along whose search direction the map is not positive is frozen as well, and
    counts as not converged.

    References
    ----------
    M. R. Hestenes, E. Stiefel. Methods of conjugate gradients for solving linear systems. Journal of Research of the
    National Bureau of Standards 49, 1952.

    Examples
    --------
    >>> M = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    >>> found = cg(lambda x: x @ M, torch.tensor([[1.0, 2.0], [5.0, 4.0]]))
    >>> found.value
    tensor([[0.0909, 0.6364],
            [1.0000, 1.0000]])
    >>> found.iterations, found.converged
    (2, True)
    """
    check_tensor(b, "b")
    check_range(tol, "tol", 0)
    check_range(ndim, "ndim", 1, b.ndim, integer=True)
    limit = (
        10 * b[(0,) * (b.ndim - ndim)].numel()
        if max_iter is None
        else check_range(max_iter, "max_iter", 0, integer=True)
    )
    if x0 is not None:
        check_tensor(x0, "x0")
        check_same(b=b, x0=x0)
        if x0.shape != b.shape:
            raise ValueError(f"x0 must have the shape of b, {tuple(b.shape)}, got {tuple(x0.shape)}")
    apply = _Watched(matvec, torch.is_grad_enabled())
    iterate = _one if b.ndim == ndim and b.device.type == "cpu" else _many
    with torch.no_grad():
        x, residuals, steps, positive = iterate(apply, b, x0, precondition, tol, limit, ndim)
    worst, done = float(residuals.max()), bool((residuals <= tol).all())
    message = ""
    if not done:
        stop = f"stopped after {int(steps.max())} steps" if positive else "met a map that is not positive definite"
        message = f"cg {stop} at relative residual {worst:.3g}, above tol={tol:g}"
        if warn:
            warn_short(message)
    if apply.differentiable or (torch.is_grad_enabled() and b.requires_grad):
        x = x + _Inverse.apply(b - matvec(x), matvec, precondition, tol, limit, ndim)
    return Solution(
        value=x,
        iterations=int(steps.max()),
        residual=worst,
        converged=done,
        message=message,
        extras={"residuals": residuals, "iterations": steps},
    )


def _many(
    apply: Map, b: Tensor, x0: Tensor | None, precondition: Map | None, tol: float, limit: int, ndim: int
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Run the iteration: x, each system's relative residual and steps, and whether the map was positive."""
    dims = tuple(range(b.ndim - ndim, b.ndim))

    def dot(u: Tensor, v: Tensor) -> Tensor:
        product = torch.addcmul(u.real * v.real, u.imag, v.imag) if u.is_complex() else u * v
        return product.sum(dims, keepdim=True)

    def norm(u: Tensor) -> Tensor:
        return dot(u, u).sqrt_()

    scale = norm(b)
    scale = torch.where(scale > 0, scale, 1)
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - apply(x)
    residual = norm(r) / scale
    steps = torch.zeros_like(residual, dtype=torch.int64)
    active = residual > tol
    z = r if precondition is None else precondition(r)
    rho, p, positive = dot(r, z), z.clone(), True
    for _ in range(limit):
        if not bool(active.any()):
            break
        q = apply(p)
        curvature = dot(p, q)
        if bool((active & (curvature <= 0)).any()):
            positive, active = False, active & (curvature > 0)
        alpha = (rho / curvature).masked_fill_(~active, 0).to(x.dtype)
        x.addcmul_(p, alpha)
        r.addcmul_(q, alpha, value=-1)
        residual = torch.where(active, norm(r) / scale, residual)
        steps += active
        active = active & (residual > tol)
        z = r if precondition is None else precondition(r)
        before, rho = rho, dot(r, z)
        p.mul_((rho / before).masked_fill_(~active, 0).to(x.dtype)).add_(z)
    lead = b.shape[: b.ndim - ndim]
    return x, residual.reshape(lead), steps.reshape(lead), positive


def _one(
    apply: Map, b: Tensor, x0: Tensor | None, precondition: Map | None, tol: float, limit: int, ndim: int
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Run :func:`_many`'s iteration on a single system, its scalars kept as Python numbers."""

    def dot(u: Tensor, v: Tensor) -> float:
        product = torch.vdot(u, v) if ndim == 1 else torch.vdot(u.reshape(-1), v.reshape(-1))
        return product.real.item()

    scale = dot(b, b) ** 0.5 or 1.0
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - apply(x)
    residual, steps, positive = dot(r, r) ** 0.5 / scale, 0, True
    z = r if precondition is None else precondition(r)
    rho, p = dot(r, z), z.clone()
    while residual > tol and steps < limit:
        q = apply(p)
        curvature = dot(p, q)
        if curvature <= 0:
            positive = False
            break
        x.add_(p, alpha=rho / curvature)
        r.add_(q, alpha=-rho / curvature)
        z = r if precondition is None else precondition(r)
        before, rho = rho, dot(r, z)
        residual = (rho if precondition is None else dot(r, r)) ** 0.5 / scale
        p.mul_(rho / before).add_(z)
        steps += 1
    return x, torch.tensor(residual, dtype=torch.float64), torch.tensor(steps), positive


class _Watched:
    """A map whose first application is looked at: does it keep the shape, and would autograd follow it?"""

    def __init__(self, matvec: Map, recording: bool) -> None:
        self.matvec, self.recording = matvec, recording
        self.seen = self.differentiable = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.seen:
            return self.matvec(x)
        with torch.set_grad_enabled(self.recording):
            y = self.matvec(x)
        if y.shape != x.shape:
            raise ValueError(f"matvec must return a tensor of shape {tuple(x.shape)}, got {tuple(y.shape)}")
        self.seen, self.differentiable = True, y.requires_grad
        return y.detach()


class _Inverse(torch.autograd.Function):
    """The inverse map at a residual that has been solved for: no change forward, one more solve backward."""

    @staticmethod
    def forward(ctx: Any, rest: Tensor, *solver: Any) -> Tensor:
        ctx.solver = solver
        return torch.zeros_like(rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        matvec, precondition, tol, limit, ndim = ctx.solver
        found = cg(matvec, grad, precondition=precondition, tol=tol, max_iter=limit, ndim=ndim, warn=False)
        return found.value, None, None, None, None, None
