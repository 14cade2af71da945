"""The discrete cosine transform, orthonormal, of types II and III."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["dct", "idct"]


def dct(
    x: Float[Tensor, "..."], dims: int | Sequence[int] = -1, keep: int | Sequence[int] | None = None
) -> Float[Tensor, "..."]:
    """Expand in cosines: ``X[k] = c[k] sum_n x[n] cos(pi (2 n + 1) k / (2 N))``, type II with orthonormal scale.

    Parameters
    ----------
    x
        Real tensor.
    dims
        Dimension or dimensions to transform.
    keep
        How many of the lowest coefficients to compute, one number for all ``dims`` or one for each; ``None``: all.

    Returns
    -------
    Tensor
        The coefficients; ``c[0] = sqrt(1 / N)`` and ``c[k] = sqrt(2 / N)``, as with ``norm="ortho"`` in
        :func:`scipy.fft.dctn`. The transform of all coefficients is orthogonal: its inverse :func:`idct` is its
        adjoint, and norms are kept.

    Raises
    ------
    TypeError
        If ``x`` is not a floating tensor.
    ValueError
        If a number to keep is not between 1 and the size of its dimension.

    Notes
    -----
    Up to 64 coefficients, and half precision, go through a product with the matrix of cosines, more through a real FFT
    of the same length. A function sampled at cell centres on grids of ``N`` and ``M`` points has
    coefficients in the ratio ``sqrt(N / M)``.

    Examples
    --------
    >>> dct(torch.ones(4))
    tensor([2., 0., 0., 0.])
    >>> dct(torch.ones(4, 6), dims=(-2, -1), keep=(2, 3)).shape
    torch.Size([2, 3])
    """
    check_tensor(x, "x", dtype="floating", finite=False)
    for d, m in _sizes(dims, keep, "keep"):
        n = x.shape[d]
        m = n if m is None else check_range(m, "keep", 1, n)
        line = x.movedim(d, -1)
        line = line @ _cosines(n, m, x).T if _by_matrix(n, m, x) else _forward(line)[..., :m]
        x = line.movedim(-1, d)
    return x


def idct(
    x: Float[Tensor, "..."], dims: int | Sequence[int] = -1, size: int | Sequence[int] | None = None
) -> Float[Tensor, "..."]:
    """Sum cosines, type III with orthonormal scale: the inverse and the adjoint of :func:`dct`.

    Parameters
    ----------
    x
        Coefficients of the lowest frequencies.
    dims
        Dimension or dimensions to transform.
    size
        Numbers of samples, at least those of the coefficients, which are continued by zeros; ``None``: as many
        samples as coefficients.

    Raises
    ------
    TypeError
        If ``x`` is not a floating tensor.
    ValueError
        If a size is less than the number of coefficients.

    Examples
    --------
    >>> idct(dct(torch.tensor([1.0, 2.0, 3.0]))).round()
    tensor([1., 2., 3.])
    >>> idct(torch.tensor([2.0]), size=4)
    tensor([1., 1., 1., 1.])
    """
    check_tensor(x, "x", dtype="floating", finite=False)
    for d, n in _sizes(dims, size, "size"):
        m = x.shape[d]
        n = m if n is None else check_range(n, "size", m)
        line = x.movedim(d, -1)
        if _by_matrix(n, m, x):
            line = line @ _cosines(n, m, x)
        else:
            line = _inverse(torch.nn.functional.pad(line, (0, n - m)))
        x = line.movedim(-1, d)
    return x


def _sizes(dims: int | Sequence[int], sizes: int | Sequence[int] | None, name: str) -> list[tuple[int, int | None]]:
    """The dimensions with the number that belongs to each."""
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    given = [sizes] * len(axes) if sizes is None or isinstance(sizes, int) else list(sizes)
    if len(given) != len(axes):
        raise ValueError(f"{name} must have one entry for each of the {len(axes)} dims, got {len(given)}")
    return list(zip(axes, given))


def _by_matrix(n: int, m: int, x: Tensor) -> bool:
    return m <= 64 or x.dtype in (torch.float16, torch.bfloat16)


def _cosines(n: int, m: int, like: Tensor) -> Tensor:
    """The first ``m`` rows of the orthonormal matrix of type II."""
    points = 2 * torch.arange(n, dtype=torch.float64, device=like.device) + 1
    rows = torch.arange(m, dtype=torch.float64, device=like.device)
    angles = (rows[:, None] * points).remainder(4 * n) * (math.pi / (2 * n))
    return (angles.cos() * _scales(n, like.device)[:m, None]).to(like.dtype)


def _scales(n: int, device: torch.device) -> Tensor:
    scales = torch.full((n,), math.sqrt(2 / n), dtype=torch.float64, device=device)
    return scales.where(torch.arange(n, device=device) > 0, math.sqrt(1 / n))


def _turn(n: int, like: Tensor) -> Tensor:
    """``exp(-i pi k / (2 n))`` for the half spectrum."""
    angle = torch.arange(n // 2 + 1, dtype=torch.float64, device=like.device) * (-math.pi / (2 * n))
    return torch.complex(angle.cos().to(like.dtype), angle.sin().to(like.dtype))


def _forward(x: Tensor) -> Tensor:
    """Along the last dimension, by a real FFT of even samples followed by odd ones backwards (Makhoul, 1980)."""
    n = x.shape[-1]
    half = torch.fft.rfft(torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)) * _turn(n, x)
    all_of_them = torch.cat([half.real, -half.imag[..., 1 : (n + 1) // 2].flip(-1)], -1)
    return all_of_them * _scales(n, x.device).to(x.dtype)


def _inverse(x: Tensor) -> Tensor:
    """Undo :func:`_forward`."""
    n = x.shape[-1]
    x = x / _scales(n, x.device).to(x.dtype)
    reversed_ = torch.cat([torch.zeros_like(x[..., :1]), x[..., n - n // 2 :].flip(-1)], -1)
    y = torch.fft.irfft(torch.complex(x[..., : n // 2 + 1], -reversed_) * _turn(n, x).conj(), n=n)
    even = (n + 1) // 2
    odd = torch.nn.functional.pad(y[..., even:].flip(-1), (0, even - n // 2))
    return torch.stack([y[..., :even], odd], -1).flatten(-2)[..., :n]
