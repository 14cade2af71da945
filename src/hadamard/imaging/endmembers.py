"""Pure spectra of a scene, found among its pixels, and abundances for known spectra."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.utils.validation import check_array
from torch import Tensor

from hadamard.imaging._abundances import descend
from hadamard.lowrank import gram
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["fcls", "noisy_bands", "spa", "vca"]


@torch.no_grad()
def spa(X: Float[Tensor, "n bands"], n_endmembers: int) -> Int[Tensor, " k"]:
    """Find the purest pixels by successive projection: each time the one farthest from the span of those before.

    Deterministic. The data are first projected on their leading ``n_endmembers`` singular vectors, which takes most of
    the noise away.

    Parameters
    ----------
    X
        Pixels as rows, shape (n, bands). Leave broken bands out (:func:`noisy_bands`).
    n_endmembers
        How many to find, at most min(n, bands).

    Returns
    -------
    Tensor
        Their row numbers, shape (n_endmembers,); a row is repeated only where fewer are linearly independent.

    References
    ----------
    M. C. U. Araujo et al. The successive projections algorithm for variable selection. Chemometrics and Intelligent
    Laboratory Systems 57, 2001.

    Examples
    --------
    >>> mixtures = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.9], [0.4, 0.6]])
    >>> spa(mixtures, 2)
    tensor([1, 2])
    """
    _check(X, n_endmembers)
    rest = X @ _directions(X, n_endmembers)
    found = []
    for _ in range(n_endmembers):
        found.append(int(rest.square().sum(1).argmax()))
        along = rest[found[-1]] / rest[found[-1]].norm().clamp(min=torch.finfo(X.dtype).tiny)
        rest = rest - (rest @ along)[:, None] * along
    return torch.tensor(found, device=X.device)


@torch.no_grad()
def vca(
    X: Float[Tensor, "n bands"], n_endmembers: int, *, generator: torch.Generator | None = None
) -> Int[Tensor, " k"]:
    """Find the purest pixels by vertex component analysis: extremes along random directions off those before.

    Parameters
    ----------
    X
        Pixels as rows, shape (n, bands). Leave broken bands out (:func:`noisy_bands`).
    n_endmembers
        How many to find, at most min(n, bands).
    generator
        For the random directions; by default one with a fixed seed.

    Returns
    -------
    Tensor
        Their row numbers, shape (n_endmembers,).

    References
    ----------
    J. M. P. Nascimento, J. M. B. Dias. Vertex component analysis: a fast algorithm to unmix hyperspectral data. IEEE
    Transactions on Geoscience and Remote Sensing 43, 2005.

    As there, pixels are divided by their projection on the mean where the signal is strong, and where it is weak (an
    estimated SNR below 15 + 10 log10 K dB) they are centred and lifted by a constant instead.

    Examples
    --------
    >>> mixtures = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.9], [0.4, 0.6]])
    >>> sorted(vca(mixtures, 2).tolist())
    [1, 2]
    """
    _check(X, n_endmembers)
    generator = generator or torch.Generator().manual_seed(0)
    mean = X.mean(0)
    centred = X - mean
    axes = _directions(centred, n_endmembers)
    total, kept = float(X.square().sum()), float((centred @ axes).square().sum() + len(X) * mean.square().sum())
    signal = kept - n_endmembers / X.shape[1] * total
    weak = kept < total and 10 * math.log10(max(signal, 1e-300) / (total - kept)) < 15 + 10 * math.log10(n_endmembers)
    if weak:
        low = centred @ axes[:, : n_endmembers - 1]
        points = torch.cat([low, low.new_full((len(X), 1), float(low.norm(dim=1).max()) if low.numel() else 1.0)], 1)
    else:
        low = X @ _directions(X, n_endmembers)
        scale = low @ low.mean(0)
        points = low / torch.where(scale > 0, scale, scale.new_full((), float("inf")))[:, None]
    found: list[int] = []
    basis = points.new_zeros(n_endmembers, 0)
    for _ in range(n_endmembers):
        direction = torch.randn(n_endmembers, generator=generator, dtype=X.dtype).to(X.device)
        direction = direction - basis @ (basis.mT @ direction)
        found.append(int((points @ direction).abs().argmax()))
        basis = torch.linalg.qr(points[found].mT).Q
    return torch.tensor(found, device=X.device)


@torch.no_grad()
def noisy_bands(X: Float[Tensor, "n bands"], factor: float = 3.0) -> Bool[Tensor, " bands"]:
    """Find the bands whose noise stands out: what the other bands do not explain of a band.

    Parameters
    ----------
    X
        Pixels as rows, shape (n, bands); with fewer than two pixels a band none can be found.
    factor
        A band is marked where the logarithm of its noise is above the median by more than this many robust standard
        deviations, and its noise is more than twice the median.

    Returns
    -------
    Tensor
        True where a band is broken. A constant band is no noise and not marked.

    Notes
    -----
    The residual of each band's regression on all others, from one inverse of the Gram matrix, as in HySime
    (Bioucas-Dias and Nascimento, 2008).
    """
    check_tensor(X, "X", ndim=2, dtype="floating")
    check_range(factor, "factor", 0, closed="neither")
    n, bands = X.shape
    if n < 2 * bands or bands < 3:
        return torch.zeros(bands, dtype=torch.bool, device=X.device)
    gram = (X.mT @ X).double() / n
    gram.diagonal().add_(1e-10 * gram.diagonal().mean().clamp(min=1e-300))
    noise = -0.5 * torch.linalg.inv(gram).diagonal().clamp(min=1e-300).log()
    middle = noise.median()
    spread = 1.4826 * float((noise - middle).abs().median())
    return noise > middle + max(factor * spread, math.log(2))


@torch.no_grad()
def fcls(
    X: Float[Tensor, "n bands"],
    endmembers: Float[Tensor, "k bands"],
    *,
    weights: Float[Tensor, " bands"] | None = None,
    tol: float = 1e-6,
    max_iter: int = 2000,
) -> Float[Tensor, "n k"]:
    """Abundances for known spectra by fully constrained least squares: non-negative, each pixel's sum exactly one.

    Parameters
    ----------
    X
        Pixels as rows, shape (n, bands).
    endmembers
        Spectra as rows, shape (k, bands).
    weights
        Non-negative weight of each band's squared error, shape (bands,): zero leaves a band out. By default all one.
    tol
        Stop when no abundance changes by more than this in ten sweeps.
    max_iter
        Sweeps of coordinate descent at most, each over all pairs of spectra.

    Returns
    -------
    Tensor
        Shape (n, k).

    Examples
    --------
    >>> fcls(torch.tensor([[0.3, 0.7], [2.0, 0.0]]), torch.eye(2))
    tensor([[0.3000, 0.7000],
            [1.0000, 0.0000]])
    """
    check_tensor(X, "X", ndim=2, dtype="floating")
    check_tensor(endmembers, "endmembers", ndim=2, shape=(X.shape[1],), dtype=X.dtype)
    weighted = endmembers
    if weights is not None:
        check_tensor(weights, "weights", ndim=1, shape=(X.shape[1],), dtype=X.dtype)
        check_range(weights, "weights", 0, elementwise=True)
        weighted = endmembers * weights
    H, B = weighted @ endmembers.mT, weighted @ X.mT
    A = B.new_full(B.shape, 1 / len(H))
    for _ in range(0, max_iter, 10):
        before, A = A, descend(A, H, B, 0.0, 10)
        if float((A - before).abs().max()) <= tol:
            break
    return A.mT.contiguous()


def starting_spectra(
    X: Tensor, count: int, init: Any, generator: Callable[[], torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Spectra (count, bands) by name of the method or as given, and which bands are broken and were not looked at."""
    broken = noisy_bands(X)
    if not isinstance(init, str):
        given = check_array(init, dtype=[np.float64, np.float32], input_name="init")
        if given.shape != (count, X.shape[1]):
            raise ValueError(f"init must have shape {(count, X.shape[1])}, got {given.shape}")
        if (given < 0).any():
            raise ValueError(f"init must be >= 0, got {given.min()}")
        return torch.from_numpy(given).to(X), broken
    check_option(init, "init", ("spa", "vca", "random"))
    kept = X[:, ~broken] if int((~broken).sum()) >= count else X
    if init == "random":
        rows = torch.randperm(len(X), generator=generator())[:count]
    else:
        rows = spa(kept, count) if init == "spa" else vca(kept, count, generator=generator())
    return X[rows].clone(), broken


def _check(X: Tensor, n_endmembers: int) -> None:
    check_tensor(X, "X", ndim=2, dtype="floating")
    check_range(n_endmembers, "n_endmembers", 1, min(X.shape), integer=True)


def _directions(X: Tensor, count: int) -> Tensor:
    """Leading right singular vectors, shape (bands, count), from the smaller of the two Gram matrices."""
    if X.shape[0] < X.shape[1]:
        return torch.linalg.svd(X, full_matrices=False).Vh[:count].mT
    return torch.linalg.eigh(gram(X.mT)).eigenvectors[:, -count:].flip(1).to(X.dtype)
