"""Thresholds: shrink entries, shrink groups, keep the largest ones."""

import torch
from jaxtyping import Inexact, Int64, Real
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["keep_top_k", "soft", "soft_group", "top_k"]


def soft(x: Inexact[Tensor, "*shape"], t: float | Tensor) -> Inexact[Tensor, "*shape"]:
    """Shrink every entry towards zero by ``t``: the proximal map of ``t * ||x||_1``.

    Parameters
    ----------
    x
        Real or complex tensor; complex entries are shrunk by their modulus and keep their phase.
    t
        Threshold, at least 0: a number, or a real tensor that broadcasts against ``x``.

    Returns
    -------
    Tensor
        ``x * max(1 - t / abs(x), 0)``, and 0 where ``x`` is 0.

    Raises
    ------
    TypeError
        If ``x`` is not a floating or complex tensor.
    ValueError
        If ``x`` is empty or not finite, or ``t`` is negative.

    Examples
    --------
    >>> soft(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
    tensor([-2.,  0.,  1.])
    >>> soft(torch.tensor([3.0 + 4.0j]), 2.5)
    tensor([1.5000+2.j])
    """
    check_tensor(x, "x")
    check_range(t, "t", 0, elementwise=True)
    if not x.is_complex():
        return x - torch.clamp(x, min=-t, max=t) if isinstance(t, Tensor) else torch.nn.functional.softshrink(x, t)
    return _shrink(x, squared_modulus(x), t)


def soft_group(
    x: Inexact[Tensor, "*shape"], t: float | Tensor, dim: int | tuple[int, ...] = -1
) -> Inexact[Tensor, "*shape"]:
    """Shrink every group's 2-norm by ``t``: the proximal map of ``t`` times the sum of the groups' norms.

    Parameters
    ----------
    x
        Real or complex tensor.
    t
        Threshold, at least 0: a number, or a real tensor that broadcasts against ``x`` with ``dim`` of size 1.
    dim
        The dimension(s) along which a group extends.

    Returns
    -------
    Tensor
        ``x * max(1 - t / norm, 0)`` with each group's norm, and 0 where the norm is 0.

    Raises
    ------
    TypeError
        If ``x`` is not a floating or complex tensor.
    ValueError
        If ``x`` is empty or not finite, or ``t`` is negative.

    Examples
    --------
    >>> soft_group(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    check_tensor(x, "x")
    check_range(t, "t", 0, elementwise=True)
    return _shrink(x, squared_modulus(x).sum(dim, keepdim=True), t)


def top_k(x: Real[Tensor, "*shape"], k: int, dim: int = -1) -> tuple[Real[Tensor, "..."], Int64[Tensor, "..."]]:
    """Find the ``k`` largest entries along a dimension; of equal entries the one with the lowest index is chosen.

    Parameters
    ----------
    x
        Real tensor; ``-inf`` is allowed and is chosen last.
    k
        How many, at least 1; all of them where there are no more than ``k``.
    dim
        The dimension along which to look.

    Returns
    -------
    values, indices : Tensor
        In descending order, of size ``min(k, x.shape[dim])`` along ``dim``.

    Raises
    ------
    TypeError
        If ``x`` is not a tensor of real numbers or ``k`` is not an integer.
    ValueError
        If ``x`` is empty or ``k`` is less than 1.

    Notes
    -----
    ``torch.topk`` leaves open which of equal entries it takes; it is used here where the choice is unique, and a
    stable sort otherwise.

    Examples
    --------
    >>> top_k(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 2)[1]
    tensor([1, 2])
    """
    check_tensor(x, "x", dtype=None, finite=False)
    check_range(k, "k", 1, integer=True)
    n = x.shape[dim]
    if k < n and not torch.compiler.is_compiling():
        values, indices = torch.topk(x, k + 1, dim=dim)
        kept, dropped = values.narrow(dim, k - 1, 1), values.narrow(dim, k, 1)
        if not bool((kept == dropped).any()):
            return values.narrow(dim, 0, k), indices.narrow(dim, 0, k)
    values, indices = torch.sort(x, dim=dim, descending=True, stable=True)
    return values.narrow(dim, 0, min(k, n)), indices.narrow(dim, 0, min(k, n))


def keep_top_k(x: Inexact[Tensor, "*shape"], k: int, dim: int = -1) -> Inexact[Tensor, "*shape"]:
    """Keep the ``k`` entries of largest modulus along a dimension and set the others to zero.

    This is the projection on the vectors with at most ``k`` nonzero entries. Of entries of equal modulus the one with
    the lowest index is kept.

    Parameters
    ----------
    x
        Real or complex tensor.
    k
        How many entries to keep, at least 1.
    dim
        The dimension along which they are counted.

    Returns
    -------
    Tensor
        ``x`` with all but ``k`` entries along ``dim`` set to 0; its gradient passes through the kept ones.

    Raises
    ------
    TypeError
        If ``x`` is not a floating or complex tensor or ``k`` is not an integer.
    ValueError
        If ``x`` is empty or not finite, or ``k`` is less than 1.

    Examples
    --------
    >>> keep_top_k(torch.tensor([1.0, -3.0, 2.0, -2.0]), 2)
    tensor([ 0., -3.,  2.,  0.])
    """
    check_tensor(x, "x")
    if check_range(k, "k", 1, integer=True) >= x.shape[dim]:
        return x.clone()
    _, indices = top_k(x.detach().abs(), k, dim)
    mask = torch.zeros(x.shape, dtype=torch.bool, device=x.device).scatter_(dim, indices, True)
    return torch.where(mask, x, 0)


def squared_modulus(x: Inexact[Tensor, "*shape"]) -> Real[Tensor, "*shape"]:
    """Square the modulus of every entry, several times faster than ``x.abs().square()`` where ``x`` is complex.

    Parameters
    ----------
    x
        Real or complex tensor.

    Examples
    --------
    >>> squared_modulus(torch.tensor([3.0 + 4.0j]))
    tensor([25.])
    """
    return torch.addcmul(x.real.square(), x.imag, x.imag) if x.is_complex() else x.square()


def _shrink(x: Tensor, square: Tensor, t: float | Tensor) -> Tensor:
    """``x * max(1 - t / norm, 0)`` with ``norm^2 = square``, bounded below so that gradients are finite at zero.

    (Squares, sums and ``clamp`` are many times faster here than ``vector_norm`` along a leading dimension and
    ``where``. Where a square overflows or underflows, the result still is right up to rounding.)
    """
    norm = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
    return x * (1 - t / norm).clamp(min=0)
