"""Projections on the simplex, on norm balls and on boxes."""

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from hadamard.proximal.thresholds import squared_modulus, top_k
from hadamard.validation import check_range, check_tensor

__all__ = ["box", "l1_ball", "l2_ball", "simplex"]


def simplex(
    x: Float[Tensor, "*shape"], radius: float | Tensor = 1.0, dim: int = -1, k: int | None = None
) -> Float[Tensor, "*shape"]:
    """Project on the vectors with non-negative entries that sum to ``radius``, optionally with at most ``k`` nonzeros.

    Parameters
    ----------
    x
        What is projected; ``-inf`` marks an entry that must be 0.
    radius
        The sum, at least 0: a number, or a tensor that broadcasts against ``x.sum(dim)``, one sum a vector.
    dim
        The dimension along which a vector extends; the others are batch dimensions.
    k
        Greatest number of nonzero entries; ``None``: no limit. The ``k`` largest entries are projected and the others
        are 0, which is a nearest point of the (non-convex) set [2]_; of equal entries the lowest index is kept.

    Returns
    -------
    Tensor
        ``max(x - tau, 0)`` with the ``tau`` that gives each vector its sum. Its gradient, in ``x`` and in ``radius``,
        is that of the projection on the support that was found.

    Raises
    ------
    TypeError
        If ``x`` is not a floating tensor or ``k`` is not an integer.
    ValueError
        If ``x`` is empty, holds NaN or ``inf`` or a vector of ``-inf`` only, ``radius`` is negative, or ``k`` is less
        than 1.

    Notes
    -----
    ``tau`` solves ``sum(max(x - tau, 0)) = radius``, a decreasing, convex, piecewise linear equation. Newton's method
    started at ``max(x) - radius`` approaches it from below, as in Michelot's algorithm [1]_, and ends at the exact
    support after a number of steps that grows with the logarithm of the length: there is no sort, and a vector may lie
    along any dimension. ``radius`` is never divided by, so that it may be tiny or zero.

    References
    ----------
    .. [1] C. Michelot. A finite algorithm for finding the projection of a point onto the canonical simplex of R^n.
           Journal of Optimization Theory and Applications 50, 1986.
    .. [2] A. Kyrillidis, S. Becker, V. Cevher, C. Koch. Sparse projections onto the simplex. ICML 2013,
           arXiv:1206.1529.

    Examples
    --------
    >>> simplex(torch.tensor([0.5, 1.0, -2.0]))
    tensor([0.2500, 0.7500, 0.0000])
    >>> simplex(torch.tensor([[0.5, 1.0], [0.4, 0.0]]), radius=torch.tensor([2.0, 0.0]))
    tensor([[0.7500, 1.2500],
            [0.0000, 0.0000]])
    >>> simplex(torch.tensor([0.5, 1.0, 0.9]), k=1)
    tensor([0., 1., 0.])
    """
    check_tensor(x, "x", dtype="floating", finite=False)
    top = x.detach().amax(dim, keepdim=True)
    if not bool(torch.isfinite(top).all()):
        raise ValueError("x must have a largest entry that is finite in every vector, got NaN, inf or only -inf")
    r = _radius(radius, x, dim)
    if k is None or k >= x.shape[dim]:
        return _simplex(x - top, r, dim)
    _, indices = top_k(x.detach(), k, dim)
    kept = _simplex(x.gather(dim, indices) - top, r, dim)
    return torch.zeros_like(x).scatter(dim, indices, kept)


def l1_ball(x: Inexact[Tensor, "*shape"], radius: float | Tensor = 1.0, dim: int = -1) -> Inexact[Tensor, "*shape"]:
    """Project on the vectors whose moduli sum to at most ``radius``.

    Parameters
    ----------
    x
        Real or complex tensor; a complex entry keeps its phase.
    radius
        At least 0: a number, or a tensor that broadcasts against ``x.sum(dim)``.
    dim
        The dimension along which a vector extends.

    Returns
    -------
    Tensor
        The nearest point of the ball; ``x`` itself where it lies in the ball.

    Raises
    ------
    TypeError
        If ``x`` is not a floating or complex tensor.
    ValueError
        If ``x`` is empty or not finite, or ``radius`` is negative.

    Notes
    -----
    The moduli are projected on the simplex [1]_.

    References
    ----------
    .. [1] J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra. Efficient projections onto the l1-ball for learning in
           high dimensions. ICML 2008.

    Examples
    --------
    >>> l1_ball(torch.tensor([3.0, -2.0, 0.5]), 2.0)
    tensor([ 1.5000, -0.5000,  0.0000])
    """
    check_tensor(x, "x")
    modulus = x.abs()
    r = _radius(radius, modulus, dim)
    inside = modulus.sum(dim, keepdim=True) <= r
    moved = _simplex(modulus - modulus.detach().amax(dim, keepdim=True), r, dim)
    phase = x / torch.where(modulus > 0, modulus, 1) if x.is_complex() else x.sign()
    return torch.where(inside, x, phase * moved)


def l2_ball(
    x: Inexact[Tensor, "*shape"], radius: float | Tensor = 1.0, dim: int | tuple[int, ...] = -1
) -> Inexact[Tensor, "*shape"]:
    """Project on the vectors whose 2-norm is at most ``radius``.

    Parameters
    ----------
    x
        Real or complex tensor.
    radius
        At least 0: a number, or a tensor that broadcasts against ``x.sum(dim)``.
    dim
        The dimension(s) along which a vector extends.

    Returns
    -------
    Tensor
        The nearest point of the ball; ``x`` itself where it lies in the ball.

    Raises
    ------
    TypeError
        If ``x`` is not a floating or complex tensor.
    ValueError
        If ``x`` is empty or not finite, or ``radius`` is negative.

    Examples
    --------
    >>> l2_ball(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    check_tensor(x, "x")
    square = squared_modulus(x).sum(dim, keepdim=True)
    norm = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()  # bounded below: finite gradients at zero
    return x * (_radius(radius, square, dim) / norm).clamp(max=1)


def box(
    x: Float[Tensor, "*shape"], low: float | Tensor | None = None, high: float | Tensor | None = None
) -> Float[Tensor, "*shape"]:
    """Project on the tensors whose entries lie between ``low`` and ``high``.

    Parameters
    ----------
    x
        What is projected.
    low, high
        The ends: numbers, or tensors that broadcast against ``x``; ``None``: no bound.

    Returns
    -------
    Tensor
        ``x`` clipped to the interval.

    Raises
    ------
    TypeError
        If ``x`` is not a floating tensor.
    ValueError
        If ``x`` is empty or not finite, or ``low`` exceeds ``high``.

    Examples
    --------
    >>> box(torch.tensor([-3.0, 0.5, 2.0]), -1.0, 1.0)
    tensor([-1.0000,  0.5000,  1.0000])
    """
    check_tensor(x, "x", dtype="floating")
    ends = [None if end is None else torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in (low, high)]
    if ends[0] is not None and ends[1] is not None and bool((ends[0] > ends[1]).any()):
        raise ValueError(f"low must not exceed high, got {low} and {high}")
    return x if low is None and high is None else torch.clamp(x, *ends)


def _simplex(y: Tensor, r: Tensor, dim: int) -> Tensor:
    """Projection of vectors whose largest entry is 0 on the simplex of radius ``r`` (size 1 along ``dim``)."""
    with torch.no_grad():
        support = y >= -r
        count = support.sum(dim, keepdim=True)
        while True:
            tau = (torch.where(support, y, 0).sum(dim, keepdim=True) - r) / count
            smaller = support & (y >= tau)
            left = smaller.sum(dim, keepdim=True)
            if torch.equal(left, count):
                break
            support, count = smaller, left
    if y.requires_grad or r.requires_grad:  # tau once more, now as a function of y and r
        y = torch.where(support, y, 0)
        tau = (y.sum(dim, keepdim=True) - r) / count
    return torch.where(support, torch.clamp(y - tau, min=0), 0)


def _radius(radius: float | Tensor, x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The radius as a tensor that broadcasts against ``x``: one value a vector, size 1 along ``dim``."""
    check_range(radius, "radius", 0, elementwise=True)
    if not isinstance(radius, Tensor):
        return torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    dims = sorted({d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)})
    batch = [size for d, size in enumerate(x.shape) if d not in dims]
    try:
        radius = radius.to(x.dtype).expand(batch)
    except RuntimeError:
        raise ValueError(f"radius must broadcast to shape {tuple(batch)}, got {tuple(radius.shape)}") from None
    for d in dims:
        radius = radius.unsqueeze(d)
    return radius
