"""Norms of fields weighted by frequency, through Parseval's identity: Sobolev norms of any order."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["half_spectrum_counts", "sobolev_weight", "weighted_norm"]


def sobolev_weight(freqs: Sequence[Float[Tensor, "..."]], s: float, alpha: float = 1.0) -> Float[Tensor, "..."]:
    """``(alpha + 4 pi^2 |k|^2)^s``: the weight of squared amplitudes in the Sobolev norm of order ``s``.

    Parameters
    ----------
    freqs
        Frequencies of each axis in cycles per unit length, as :func:`~hadamard.spectral.frequencies` gives them.
    s
        Order: 0 weighs all alike, 1 stresses high frequencies, -1 damps them.
    alpha
        What the zero frequency counts, at least 0. For 0 and ``s < 0`` it counts nothing.

    Examples
    --------
    >>> k = torch.tensor([0.0, 1.0, 2.0])
    >>> sobolev_weight([k], -1) * (1 + 4 * math.pi**2 * k**2)
    tensor([1., 1., 1.])
    """
    check_range(alpha, "alpha", 0)
    square = alpha + 4 * math.pi**2 * sum((k.square() for k in freqs[1:]), freqs[0].square())
    return torch.where(square > 0, torch.where(square > 0, square, 1) ** s, float(s == 0))


def half_spectrum_counts(
    n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Float[Tensor, " half"]:
    """How many frequencies of n each entry of :func:`torch.fft.rfft` stands for: 2 but for 0 and Nyquist.

    Examples
    --------
    >>> half_spectrum_counts(6), half_spectrum_counts(5)
    (tensor([1., 2., 2., 1.]), tensor([1., 2., 2.]))
    """
    counts = torch.full((n // 2 + 1,), 2.0, dtype=dtype, device=device)
    counts[0] = 1
    if n % 2 == 0:
        counts[-1] = 1
    return counts


def weighted_norm(
    x: Inexact[Tensor, "..."],
    weight: Float[Tensor, "..."] | float = 1.0,
    dims: Sequence[int] = (-2, -1),
    *,
    squared: bool = False,
) -> Float[Tensor, "..."]:
    """Square root of ``sum_k weight(k) |x^(k)|^2``, with amplitudes that do not depend on the grid.

    Parameters
    ----------
    x
        Field, real or complex.
    weight
        On the frequencies of ``dims``: those of :func:`torch.fft.rfftn` where ``x`` is real (with half of them along
        the last one; the other half is counted), else of :func:`torch.fft.fftn`. 1: the root mean square, which is the
        L2 norm on a box of volume 1.
    dims
        Dimensions to sum over.
    squared
        Leave out the root, whose gradient at 0 is not defined.

    Returns
    -------
    Tensor
        Without ``dims``.

    Examples
    --------
    >>> weighted_norm(torch.tensor([[3.0, 3.0], [3.0, -3.0]]))
    tensor(3.)
    """
    check_tensor(x, "x", finite=False)
    axes = [d % x.ndim for d in dims]
    if x.is_complex():
        power = torch.fft.fftn(x, dim=axes, norm="forward").abs().square()
    else:
        X = torch.fft.rfftn(x, dim=axes, norm="forward")
        counts = half_spectrum_counts(x.shape[axes[-1]], dtype=x.dtype, device=x.device)
        power = (X.real.square() + X.imag.square()) * counts.reshape(-1, *[1] * (x.ndim - 1 - axes[-1]))
    moved = power.movedim(axes, tuple(range(-len(axes), 0)))
    total = (moved * weight).sum(tuple(range(-len(axes), 0)))
    return total if squared else total.sqrt()
