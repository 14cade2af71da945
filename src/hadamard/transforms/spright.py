"""Sparse Walsh-Hadamard transforms: the few coefficients of a function of bits, from few chosen samples of it.

The function is asked only where the method wants to know it. Its samples are hashed into bins by small dense
transforms; a bin that holds one coefficient gives itself away by its signature; coefficients that are found are
subtracted everywhere, which frees further bins (peeling).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import chi2
from torch import Tensor

from hadamard.results import Solution, warn_short
from hadamard.spectral.walsh import fwht
from hadamard.transforms.spright_detectors import Detector, detector, random_full_rank
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["SparseSpectrum", "sparse_wht"]

Oracle = Callable[[Tensor], Tensor]
_CHUNK = 1 << 16  # points that the function is asked for at once


@dataclass(frozen=True, kw_only=True)
class SparseSpectrum(Solution):
    """A function of ``n`` bits by its nonzero Walsh coefficients: ``x[m] = sum_k X[k] (-1)^<m, k>``.

    Attributes
    ----------
    value
        The coefficients ``X[k]`` of shape (K,), largest modulus first.
    indices
        The indices ``k`` as bits of shape (K, n): ``indices[i, q]`` says whether variable ``q`` takes part in the
        interaction ``i``.
    n_samples
        Times that the function was evaluated.
    unresolved_bins
        Bins that hold more than could be told apart; 0 where the spectrum was sparse enough.
    threshold
        Modulus below which a coefficient may have been taken for noise.
    """

    indices: Bool[Tensor, "K n"]
    n_samples: int
    unresolved_bins: int
    threshold: float

    @property
    def integers(self) -> Int64[Tensor, "K"]:
        """The indices as integers with bit ``q`` of weight ``2^q``; for at most 62 bits."""
        n = self.indices.shape[1]
        check_range(n, "n", 1, 62)
        return _as_integers(self.indices)

    def evaluate(self, points: Tensor) -> Float[Tensor, "S"]:
        """Evaluate the function at points given as bits of shape (S, n).

        Raises
        ------
        ValueError
            If ``points`` has another number of bits.
        """
        check_tensor(points, "points", ndim=2, shape=(None, self.indices.shape[1]), dtype=None)
        return _signs(points, self.indices).to(self.value.dtype) @ self.value

    def to_dense(self) -> Float[Tensor, "N"]:
        """Write down the whole spectrum of ``2^n`` entries, for at most 26 bits."""
        n = self.indices.shape[1]
        check_range(n, "n", 1, 26)
        return self.value.new_zeros(1 << n).index_put((self.integers,), self.value)


def sparse_wht(
    function: Oracle | Tensor,
    n: int | None = None,
    *,
    sparsity: int | None = None,
    bins: int | None = None,
    groups: int = 3,
    method: str = "noiseless",
    noise_std: float | str | None = None,
    repeats: int = 4,
    margin: float = 0.5,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
) -> SparseSpectrum:
    """Find the nonzero Walsh-Hadamard coefficients of a function of ``n`` bits from few samples.

    Parameters
    ----------
    function
        The function: takes bits of shape (S, n) (uint8) and returns S real values; or a tensor of all ``2^n`` values,
        whose index has bit ``q`` of weight ``2^q``, of which only the asked ones are read.
    n
        Number of bits; may be left out for a tensor.
    sparsity
        About how many coefficients are expected: the number of bins starts there and doubles, at most twice, until
        every bin is resolved. Where neither this nor ``bins`` is given, it starts at 16 and may grow to ``2^n``. The
        samples of all tries are counted.
    bins
        Base-2 logarithm of the number of bins of each group, 1 to ``n``.
    groups
        Independent hashings, at least 2.
    method
        How a bin finds its coefficient. ``"noiseless"``: exact samples, ``n + 1`` a bin. ``"nso"`` (near
        sample-optimal): noisy samples, ``repeats * (n + 1)`` a bin. ``"so"`` (sample-optimal): noisy samples,
        ``repeats * n`` a bin, read as a codeword of a repeat-accumulate code. ``"ml"``: noisy samples, like ``"nso"``,
        but all candidates of the bin are compared; for small ``n``.
    noise_std
        Standard deviation of the noise of one sample; ``"estimate"`` reads it off the emptiest bins. ``None``: no
        noise for ``"noiseless"``, an estimate otherwise.
    repeats
        How many times the least number of samples the noisy methods take, at least 1 (``"so"``: at least 2).
    margin
        Relative excess over the expected noise energy at which a bin is not empty (the paper's gamma), above 0; four
        standard deviations of that energy are allowed whatever it is.
    dtype
        Of the coefficients.
    generator
        Draws the hashings; ``None``: a fixed seed.

    Returns
    -------
    SparseSpectrum
        ``converged`` says that every bin was explained; otherwise the coefficients that were found may be incomplete.

    Raises
    ------
    ValueError
        If a size is out of range, the tensor's length is no power of two, or the function returns another shape or
        values that are not finite.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If bins remain unresolved: the spectrum is not sparse enough for the bins, or noisier than was said.

    Notes
    -----
    Samples: ``groups * 2^bins * P`` with the ``P`` of the method, O(K n) or, for ``"nso"`` with ``repeats`` growing as
    ``n``, O(K n^2); time O(K n^2), where the dense transform takes ``2^n`` samples and ``n 2^n`` operations. Three
    groups need about ``0.41 K`` bins each for large K. Coefficients are scaled as ``fwht(x, norm="forward")``. The
    hashings are uniformly random, since structured spectra (interactions of few variables) collide under hashings
    that pick out single bits.

    References
    ----------
    X. Li, J. K. Bradley, S. Pawar, K. Ramchandran. SPRIGHT: A Fast and Robust Framework for Sparse Walsh-Hadamard
    Transform. 2015, arXiv:1508.06336. The noiseless case: R. Scheibler, S. Haghighatshoar, M. Vetterli. A Fast Hadamard
    Transform for Signals with Sub-linear Sparsity in the Transform Domain. 2013, arXiv:1310.1803.

    Examples
    --------
    >>> def black_box(bits):  # 30 variables: one interaction of three, one main effect, a constant
    ...     s = 1 - 2 * bits.double()
    ...     return 2.0 + 3.0 * s[:, 0] * s[:, 7] * s[:, 21] - s[:, 4]
    >>> found = sparse_wht(black_box, 30, sparsity=3)
    >>> found.value.round(decimals=6).tolist(), found.n_samples
    ([3.0, 2.0, -1.0], 372)
    >>> [row.nonzero().flatten().tolist() for row in found.indices]
    [[0, 7, 21], [], [4]]
    """
    ask, n = _oracle(function, n, dtype)
    check_option(method, "method", ("noiseless", "nso", "so", "ml"))
    check_range(groups, "groups", 2, integer=True)
    check_range(repeats, "repeats", 2 if method == "so" else 1, integer=True)
    check_range(margin, "margin", 0, closed="neither")
    if noise_std is None:
        noise_std = 0.0 if method == "noiseless" else "estimate"
    if noise_std != "estimate":
        check_range(noise_std, "noise_std", 0)
    if bins is not None:
        sizes = [check_range(bins, "bins", 1, n, integer=True)]
    elif sparsity is not None:
        check_range(sparsity, "sparsity", 1, integer=True)
        start = min(n, max(2, ceil(log2(sparsity))))
        sizes = list(range(start, min(n, start + 2) + 1))
    else:
        sizes = list(range(min(4, n), n + 1))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    samples = 0
    for b in sizes:
        found = _attempt(ask, n, b, groups, method, noise_std, repeats, margin, dtype, generator, samples)
        samples = found.n_samples
        if found.converged:
            return found
    warn_short(found.message)
    return found


def _attempt(
    ask: Oracle,
    n: int,
    b: int,
    groups: int,
    method: str,
    noise_std: float | str,
    repeats: int,
    margin: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    samples: int,
) -> SparseSpectrum:
    """Hash into ``2^b`` bins a group and peel."""
    decide = detector(method, n, repeats, generator)
    hashes = torch.stack([random_full_rank(n, b, generator) for _ in range(groups)])
    U = torch.stack([_bins(ask, M, decide.offsets, dtype) for M in hashes])  # (groups, 2^b, P)
    samples += U.numel()
    energies = U.square().mean(-1)
    variance = _noise_variance(energies, U.shape[-1]) if noise_std == "estimate" else float(noise_std) ** 2 / (1 << b)
    largest = float(energies.max())
    excess = max(margin, 4 * (2 / len(decide.offsets)) ** 0.5)  # four standard deviations of the mean of P squares
    floor = (1 + excess) * variance + largest * torch.finfo(dtype).eps ** 1.5
    keys, values = _peel(U, hashes, decide, floor)
    unresolved = int((U.square().mean(-1) > floor).sum())
    order = values.abs().argsort(descending=True)
    message = (
        f"{unresolved} of {groups << b} bins are unresolved after {samples} samples: "
        "the spectrum is not sparse enough for this number of bins, or the noise is larger than was said"
    )
    return SparseSpectrum(
        value=values[order],
        iterations=len(values),
        residual=float(U.square().mean().sqrt()),
        converged=unresolved == 0,
        message=message if unresolved else "",
        indices=keys[order],
        n_samples=samples,
        unresolved_bins=unresolved,
        threshold=floor**0.5,
    )


def _bins(ask: Oracle, M: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """Small transforms of the samples at ``M l + d``: a tensor of shape (2^b, P)."""
    b = M.shape[1]
    line = torch.arange(1 << b)
    cells = ((line[:, None] >> torch.arange(b)) & 1).float() @ M.T.float() % 2
    points = (cells[:, None].to(torch.uint8) ^ offsets[None].to(torch.uint8)).reshape(-1, M.shape[0])
    values = torch.cat([ask(part) for part in points.split(_CHUNK)]).to(dtype)
    return fwht(values.reshape(1 << b, -1), dim=0, norm="forward")


def _peel(U: Tensor, hashes: Tensor, decide: Detector, floor: float) -> tuple[Tensor, Tensor]:
    """Find coefficients in the bins that hold one, subtract them everywhere, and go on; ``U`` becomes the residual."""
    groups, size, _ = U.shape
    keys, values = [hashes.new_zeros(0, hashes.shape[1])], [U.new_zeros(0)]
    todo = torch.ones(groups, size, dtype=torch.bool)
    for _ in range(16 + 4 * size.bit_length()):  # far more rounds than peeling takes; noise may go round in circles
        group, cell = (todo & (U.square().mean(-1) > floor)).nonzero(as_tuple=True)
        if not len(group):
            break
        V = U[group, cell]
        k = decide(V, hashes[group], cell)
        S = _signs(decide.offsets, k).T.to(U.dtype)
        amplitude = (S * V).mean(-1)
        single = (V - amplitude[:, None] * S).square().mean(-1) <= floor
        single &= (_cells(hashes, k)[group, torch.arange(len(k))] == cell) & (amplitude != 0)
        todo.zero_()
        if not bool(single.any()):
            break
        new, which = _distinct(k[single])
        count = torch.bincount(which, minlength=len(new))
        amplitude = U.new_zeros(len(new)).index_add(0, which, amplitude[single]) / count
        touched = _subtract(U, hashes, decide.offsets, new, amplitude)
        todo.view(-1)[touched] = True
        keys.append(new)
        values.append(amplitude)
    found, which = _distinct(torch.cat(keys))  # one that was found again is corrected by what was found
    return _refit(U, hashes, decide.offsets, found, U.new_zeros(len(found)).index_add(0, which, torch.cat(values)))


def _subtract(U: Tensor, hashes: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Take coefficients out of their bins in all groups; return which bins of ``U.view(-1, P)`` these are."""
    groups, size, _ = U.shape
    touched = (_cells(hashes, keys) + size * torch.arange(groups)[:, None]).flatten()
    S = _signs(offsets, keys).T.to(U.dtype)
    U.view(groups * size, -1).index_add_(0, touched, -(values[:, None] * S).repeat(groups, 1))
    return touched


def _refit(U: Tensor, hashes: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Average each coefficient over the groups: two sweeps on what the residual still holds of it."""
    if not len(values):
        return keys, values
    S, cells = _signs(offsets, keys).T.to(U.dtype), _cells(hashes, keys)
    for _ in range(2):
        change = torch.stack([(S * U[g, cell]).mean(-1) for g, cell in enumerate(cells)]).mean(0)
        values = values + change
        _subtract(U, hashes, offsets, keys, change)
    keep = values.abs() > torch.finfo(U.dtype).eps * values.abs().max()
    return keys[keep], values[keep]


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Each index once, and which of them every row is; compared as words of 62 bits, which is quicker than as bits."""
    words = torch.stack([_as_integers(part) for part in keys.split(62, dim=1)], 1)
    one = words.shape[1] == 1
    distinct, which = torch.unique(words[:, 0] if one else words, dim=None if one else 0, return_inverse=True)
    first = keys.new_zeros(len(distinct), keys.shape[1])
    first[which] = keys
    return first, which


def _as_integers(bits: Tensor) -> Tensor:
    """Rows of at most 62 bits as integers, bit ``q`` of weight ``2^q``."""
    return (bits.long() << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


def _cells(hashes: Tensor, keys: Tensor) -> Tensor:
    """The bin ``M^T k`` of each index in each group: shape (groups, keys)."""
    return _as_integers(keys.float() @ hashes.float() % 2)


def _signs(points: Tensor, k: Tensor) -> Tensor:
    """``(-1)^<m, k>`` for all points and indices: shape (points, indices)."""
    return 1 - 2 * (points.float() @ k.float().T % 2)


def _noise_variance(energies: Tensor, size: int) -> float:
    """Variance of an entry of an empty bin: the emptiest tenth of the bins is taken to be empty."""
    return float(torch.quantile(energies.flatten(), 0.1)) * size / float(chi2.ppf(0.1, size))


def _oracle(function: Oracle | Tensor, n: int | None, dtype: torch.dtype) -> tuple[Oracle, int]:
    """The function with its answers checked, and the number of bits."""
    if isinstance(function, Tensor):
        table = check_tensor(function, "function", ndim=1, dtype="floating", finite=False)
        bits = table.numel().bit_length() - 1
        if table.numel() != 1 << bits or (n is not None and n != bits):
            wanted = "a power of two" if n is None else f"2^n = {1 << n}"
            raise ValueError(f"function must hold {wanted} values, got {table.numel()}")
        n = check_range(bits, "n", 1)

        def read(points: Tensor) -> Tensor:
            return table[_as_integers(points)]

        call: Oracle = read
    else:
        if n is None:
            raise ValueError("n must be given where the function is not a tensor")
        call = function
    check_range(n, "n", 1, integer=True)

    def ask(points: Tensor) -> Tensor:
        values: Any = call(points)
        check_tensor(values, "the function's values", dtype=None, finite=False)
        if values.shape != points.shape[:1]:
            raise ValueError(f"the function must return shape ({len(points)},), got {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError("the function must return finite values, got NaN or infinity")
        return values.to(dtype)

    return ask, n
