"""The lowest frequencies of a spectrum: cut out, put into a larger one, transformed to and from directly.

``modes`` counts the frequencies ``0, 1, ..., modes - 1`` of an axis; along a two-sided axis the negative ones belong to
them, ``2 modes - 1`` in all, in the order of :func:`torch.fft.fft` for that many points. So the cut spectrum of a real
field is again that of a real field. The Nyquist frequency of an even axis has no partner and is never kept.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["embed", "irfftn_modes", "resample", "rfftn_modes", "truncate"]


def truncate(X: Inexact[Tensor, "..."], modes: Sequence[int], real_last: bool = True) -> Inexact[Tensor, "..."]:
    """Keep the lowest frequencies of a spectrum.

    Parameters
    ----------
    X
        A spectrum along its last ``len(modes)`` dimensions, uncentred.
    modes
        For each of them, how many frequencies from 0 on to keep.
    real_last
        Whether the last dimension is that of :func:`torch.fft.rfftn` (one-sided).

    Returns
    -------
    Tensor
        Of size ``2 m - 1`` along each two-sided dimension and ``m`` along the last one if ``real_last``.

    Raises
    ------
    ValueError
        If there are fewer frequencies than are to be kept.

    Examples
    --------
    >>> truncate(torch.fft.fftfreq(8, 1 / 8), (3,), real_last=False)
    tensor([ 0.,  1.,  2., -2., -1.])
    """
    check_tensor(X, "X", finite=False)
    for dim, m, one_sided in _axes(X, modes, real_last):
        X = _cut(X, dim, m, one_sided)
    return X


def embed(X: Inexact[Tensor, "..."], shape: Sequence[int], real_last: bool = True) -> Inexact[Tensor, "..."]:
    """Put a truncated spectrum among the frequencies of a grid, zeros elsewhere: the adjoint of :func:`truncate`.

    Parameters
    ----------
    X
        What :func:`truncate` gives.
    shape
        Sizes of the *spectrum* wanted along the last dimensions (``n // 2 + 1`` for the last one if ``real_last``).
    real_last
        Whether the last dimension is one-sided.

    Raises
    ------
    ValueError
        If a size is less than that of ``X``, or a two-sided dimension of ``X`` has an even size.

    Notes
    -----
    Spectra of ``norm="forward"`` mean the same amplitudes on every grid. Of ``norm="backward"`` they grow with the
    number of points: multiply by the ratio of those numbers, or use :func:`resample`.

    Examples
    --------
    >>> embed(torch.tensor([0.0, 1.0, 2.0, -2.0, -1.0]), (8,), real_last=False)
    tensor([ 0.,  1.,  2.,  0.,  0.,  0., -2., -1.])
    """
    check_tensor(X, "X", finite=False)
    for dim, size, one_sided in _axes(X, shape, real_last):
        X = _pad(X, dim, size, one_sided)
    return X


def rfftn_modes(x: Float[Tensor, "..."], modes: Sequence[int], norm: str = "forward") -> Complex[Tensor, "..."]:
    """Transform a real field and keep the lowest frequencies, without computing the others where that can be saved.

    The same as ``truncate(torch.fft.rfftn(x, dim=..., norm=norm), modes)`` over the last ``len(modes)`` dimensions.

    Raises
    ------
    ValueError
        If a dimension of n points is asked for more than ``(n + 1) // 2`` modes.

    Examples
    --------
    >>> rfftn_modes(torch.ones(8, 6), (2, 3)).shape
    torch.Size([3, 3])
    """
    check_tensor(x, "x", dtype="floating", finite=False)
    *others, (last, m, _) = _axes(x, modes, True)
    _check_modes(m, x.shape[last])
    X = _cut(torch.fft.rfft(x, dim=last, norm=norm), last, m, True)
    for dim, m, _ in reversed(others):
        X = _cut(torch.fft.fft(X, dim=dim, norm=norm), dim, m, False)
    return X


def irfftn_modes(X: Complex[Tensor, "..."], shape: Sequence[int], norm: str = "forward") -> Float[Tensor, "..."]:
    """Transform a truncated spectrum back to a real field on a grid of any shape that can hold it.

    Parameters
    ----------
    X
        What :func:`rfftn_modes` gives.
    shape
        Numbers of points along the last dimensions.
    norm
        That of the transform which gave ``X``. With ``"forward"`` amplitudes are the same on every grid.

    Raises
    ------
    ValueError
        If the grid is too small.

    Examples
    --------
    >>> irfftn_modes(rfftn_modes(torch.ones(8, 6), (2, 3)), (16, 5)).unique()
    tensor([1.])
    """
    check_tensor(X, "X", dtype="complex", finite=False)
    *others, (last, n, _) = _axes(X, shape, True)
    _check_modes(X.shape[last], n)
    for dim, size, _ in others:
        X = torch.fft.ifft(_pad(X, dim, size, False), dim=dim, norm=norm)
    return torch.fft.irfft(X, n=n, dim=last, norm=norm)


def resample(x: Float[Tensor, "..."], shape: Sequence[int]) -> Float[Tensor, "..."]:
    """Evaluate the trigonometric interpolant of a real, periodic field on another grid.

    Exact for band-limited fields; frequencies that the smaller of the two grids does not tell apart, its Nyquist
    frequency among them, are dropped. A grid of the same shape is the exception: nothing changes.

    Parameters
    ----------
    x
        Field along its last ``len(shape)`` dimensions.
    shape
        Numbers of points wanted.

    Examples
    --------
    >>> t = torch.arange(8) / 8
    >>> bool(torch.allclose(resample(torch.cos(2 * torch.pi * t), (4,)), torch.tensor([1.0, 0, -1, 0]), atol=1e-6))
    True
    """
    check_tensor(x, "x", dtype="floating", finite=False)
    sizes = [x.shape[dim] for dim, _, _ in _axes(x, shape, True)]
    if sizes == list(shape):
        return x
    return irfftn_modes(rfftn_modes(x, [(min(n, m) + 1) // 2 for n, m in zip(sizes, shape)]), shape)


def _axes(X: Tensor, numbers: Sequence[int], real_last: bool) -> list[tuple[int, int, bool]]:
    """Dimension, number and whether it is one-sided, for each of the last dimensions."""
    if not 0 < len(numbers) <= X.ndim:
        raise ValueError(f"there must be 1 to {X.ndim} numbers for a tensor of shape {tuple(X.shape)}, got {numbers}")
    first = X.ndim - len(numbers)
    return [(first + a, n, real_last and a == len(numbers) - 1) for a, n in enumerate(numbers)]


def _check_modes(m: int, n: int) -> None:
    if m > (n + 1) // 2:
        raise ValueError(f"modes must be <= {(n + 1) // 2} along a dimension of {n} points, got {m}")


def _cut(X: Tensor, dim: int, m: int, one_sided: bool) -> Tensor:
    check_range(m, "modes", 1, integer=True)
    n = X.shape[dim]
    if one_sided:
        if m > n:
            raise ValueError(f"modes must be <= {n} along a one-sided dimension of {n} frequencies, got {m}")
        return X.narrow(dim, 0, m)
    _check_modes(m, n)
    if n == 2 * m - 1:
        return X
    return torch.cat([X.narrow(dim, 0, m), X.narrow(dim, n - m + 1, m - 1)], dim)


def _pad(X: Tensor, dim: int, size: int, one_sided: bool) -> Tensor:
    n = X.shape[dim]
    if size < n:
        raise ValueError(f"shape must be at least that of the truncated spectrum, got {size} for {n} frequencies")
    if not one_sided and n % 2 == 0:
        raise ValueError(f"X must have an odd number of frequencies along a two-sided dimension, got {n}")
    if size == n:
        return X
    zeros = X.new_zeros(*X.shape[:dim], size - n, *X.shape[dim + 1 :])
    low = n if one_sided else (n + 1) // 2
    return torch.cat([X.narrow(dim, 0, low), zeros, X.narrow(dim, low, n - low)], dim)
