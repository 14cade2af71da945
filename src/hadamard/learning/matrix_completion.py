"""Fill in a partly observed matrix with one of low rank, by alternating least squares with inexact solves.

With one factor of M = U V^T fixed, each row of the other is a small regression on that row's observed entries. Solving
these exactly costs |observed| k^2 a sweep; a few warm-started conjugate-gradient steps cost |observed| k and, because
the sweeps are robust to inexact solves, need hardly more of them.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from hadamard.learning._estimators import IncompleteEstimator
from hadamard.learning._factored import LowRank, spectral_init
from hadamard.learning._regressions import Observations, conjugate, exact, observe, sketched
from hadamard.results import warn_short
from hadamard.validation import check_option, check_range

__all__ = ["LowRank", "RobustALS", "complete"]

_CG_FROM_RANK = 8  # below, a Cholesky decomposition a row is as quick as three steps of conjugate gradients
_DAMPING = 10.0  # pseudo-observations of zero in the offsets that the sweeps start from


@torch.no_grad()
def complete(
    indices: Int[Tensor, "2 nnz"],
    values: Float[Tensor, " nnz"],
    shape: tuple[int, int],
    rank: int,
    *,
    solver: str = "auto",
    max_iter: int = 20,
    inner_steps: int = 3,
    reg: float = 0.0,
    weighted: bool = False,
    biases: bool = False,
    tol: float = 1e-6,
    init: str | LowRank = "spectral",
    clip: float | None = None,
    generator: torch.Generator | None = None,
) -> LowRank:
    """Find a matrix of low rank that agrees with the entries that were observed.

    Minimises 1/2 sum over observed (M_ij - <u_i, v_j>)^2 + reg/2 (|U|^2 + |V|^2) by sweeps that improve V with U fixed,
    then U with V fixed. The result is not differentiable in ``values``.

    Parameters
    ----------
    indices
        Rows above columns of the observed entries, integers of shape (2, nnz), each position once, in any order.
    values
        What was observed there, floating, shape (nnz,); its device and dtype are those of the work and the result.
    shape
        Numbers of rows and columns (n, m).
    rank
        Number of columns k of the factors, at most min(n, m).
    solver
        How each half of a sweep is solved: ``"cg"``, ``inner_steps`` steps of conjugate gradients for all rows at
        once; ``"sketch"``, the same steps preconditioned by a sketch of each row's regression (for badly conditioned
        rows with many more than ``6 k`` observations); ``"cholesky"``, exactly; ``"auto"``, ``"cg"`` from rank 8 on
        and ``"cholesky"`` below.
    max_iter
        Sweeps at most.
    inner_steps
        Steps of conjugate gradients in each half of a sweep, at least 1.
    reg
        Ridge on both factors, at least 0. Without it (and without ``biases``) the fixed factor is orthonormalised
        before each half sweep, which keeps the regressions well conditioned.
    weighted
        Multiply ``reg`` by the number of observations of the row or column in question.
    biases
        Fit M_ij = mean + b_i + c_j + <u_i, v_j>: as ratings want it. The factors then have k + 2 columns,
        ``U = [b, u, 1]`` and ``V = [1, v, mean + c]``.
    tol
        Stop when the observed RMSE, relative to that of ``values``, or its relative change in a sweep is at most this.
    init
        How U starts (V starts at zero): ``"spectral"``, from the leading singular vectors of the zero-filled matrix;
        ``"random"``; or an earlier result to go on from.
    clip
        Incoherence mu: rows of the spectral start with a norm above ``2 mu sqrt(k / n)`` are set to zero.
    generator
        For the random parts (block power iteration, sketches); by default one with a fixed seed.

    Returns
    -------
    LowRank
        The factors; ``residual`` is the smaller of the two numbers that ``tol`` is compared with. Rows and columns
        without observations are zero (with ``biases``: the others' offset), with a warning. ``V`` has orthonormal
        columns where the regressions were orthonormalised.

    Raises
    ------
    TypeError
        If an argument has another type, such as integer ``values``.
    ValueError
        If an argument is out of range, a position is repeated or outside ``shape``, or a value is not finite.

    Warns
    -----
    ConvergenceWarning
        If ``max_iter`` sweeps did not reach ``tol``.
    UserWarning
        If a row or column has no observation, or there are fewer observations than free numbers and ``reg`` is 0.

    References
    ----------
    Yuzhou Gu, Zhao Song, Junze Yin, Lichen Zhang. Low Rank Matrix Completion via Robust Alternating Minimization in
    Nearly Linear Time. ICLR 2024. arXiv:2302.11068

    The paper draws fresh samples for each half sweep and solves each regression to high accuracy through a sketch of
    its own; here all samples are used throughout, the previous factor is the warm start, and a fixed small number of
    steps takes the place of the accuracy (on well conditioned rows the preconditioner does not pay for itself).

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> M = torch.randn(60, 2, generator=generator) @ torch.randn(2, 50, generator=generator)
    >>> seen = (torch.rand(60, 50, generator=generator) < 0.3).nonzero().T
    >>> found = complete(seen, M[seen[0], seen[1]], (60, 50), rank=2, max_iter=100)
    >>> bool((found.to_dense() - M).norm() < 1e-3 * M.norm())
    True
    """
    check_range(max_iter, "max_iter", 1, integer=True)
    check_range(inner_steps, "inner_steps", 1, integer=True)
    check_range(reg, "reg", 0)
    check_range(tol, "tol", 0)
    seen = observe(indices, values, shape)
    check_range(rank, "rank", 1, min(shape), integer=True)
    if generator is None:
        generator = torch.Generator(values.device).manual_seed(0)
    step = _solver(solver, rank, inner_steps, generator)
    _warn_if_thin(seen, rank, reg)
    mean = values.mean() if biases else values.new_zeros(())
    seen = seen.with_values(seen.values - mean)
    U, V = _start(init, seen, rank, biases, mean, clip, generator)
    fixed = int(biases)  # columns of ones: the last of U, the first of V
    width = U.shape[1] - fixed
    orthonormal = reg == 0 and not biases
    ridges = [reg * (p.counts.to(values) if weighted else values.new_ones(p.shape[0])) for p in (seen.rows, seen.cols)]
    residual = seen.values - seen.rows.sample(U, V)
    scale, errors, gap = float(seen.values.norm()) or 1.0, [float(residual.norm())], float("inf")
    while len(errors) <= max_iter and gap > tol:
        if orthonormal:
            U, V = _orthonormalise(U, V)
        residual = residual.index_select(0, seen.to_cols)
        new, moved = step(seen.cols, U[:, fixed:].contiguous(), V[:, fixed:], residual, ridges[1])
        V = torch.cat([V[:, :fixed], new], 1)
        residual = torch.empty_like(moved).scatter_(0, seen.to_cols, moved)
        if orthonormal:
            V, U = _orthonormalise(V, U)
        new, residual = step(seen.rows, V[:, :width].contiguous(), U[:, :width], residual, ridges[0])
        U = torch.cat([new, U[:, width:]], 1)
        errors.append(float(residual.norm()))
        gap = min(errors[-1] / scale, abs(errors[-2] - errors[-1]) / (errors[-2] or 1.0))
    if biases:
        V = torch.cat([V[:, :-1], V[:, -1:] + mean], 1)
    message = (
        "" if gap <= tol else f"stopped after {max_iter} sweeps at a relative change of {gap:.1e}, above tol={tol:g}"
    )
    if message:
        warn_short(message)
    rmse = tuple(e / values.numel() ** 0.5 for e in errors[1:])
    return LowRank(
        value=rmse[-1], iterations=len(rmse), residual=gap, converged=not message, message=message,
        extras={"rmse_history": rmse}, U=U, V=V,
    )  # fmt: skip


class RobustALS(ClassNamePrefixFeaturesOutMixin, TransformerMixin, IncompleteEstimator):
    """Low-rank completion of a table with missing entries, as a scikit-learn transformer.

    ``fit`` explains the observed entries by ``X ~ U_ V_^T + offset_``; ``transform`` folds rows in (new users, say) by
    regression on ``V_``; ``inverse_transform`` predicts whole rows; ``complete`` fills in what is missing. A missing
    entry is NaN in a dense array and what is not stored in a SciPy sparse one (stored zeros are observations).

    Parameters
    ----------
    n_components
        Rank k, at most min(n_samples, n_features).
    solver, max_iter, inner_steps, reg, weighted, biases, tol, init, clip
        As in :func:`complete`.
    random_state
        Seed, ``numpy.random.RandomState`` or ``None``.

    Attributes
    ----------
    U_
        Scores of the rows that were fitted, shape (n_samples, k); with ``biases`` the first column, of k + 1, is the
        row's offset.
    V_
        Loadings, shape (n_features, k); with ``biases`` the first column, of k + 1, is ones.
    offset_
        Offset of each feature, shape (n_features,); zeros without ``biases``.
    rmse_history_
        Root mean square error on the observed entries after each sweep.
    n_iter_
        Sweeps.

    Raises
    ------
    ValueError
        By ``fit`` and ``transform``, if ``X`` has infinite values, no observation, repeated positions (sparse COO), or
        a parameter is out of range.

    References
    ----------
    Yuzhou Gu, Zhao Song, Junze Yin, Lichen Zhang. Low Rank Matrix Completion via Robust Alternating Minimization in
    Nearly Linear Time. ICLR 2024. arXiv:2302.11068. :func:`complete` says where the code departs from it.

    Examples
    --------
    >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 2.0])
    >>> X[1, 2] = X[3, 0] = np.nan
    >>> RobustALS(n_components=1, max_iter=50, random_state=0).fit(X).complete(X).round(2)
    array([[1., 1., 2.],
           [2., 2., 4.],
           [3., 3., 6.],
           [4., 4., 8.]])
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        solver: str = "auto",
        max_iter: int = 20,
        inner_steps: int = 3,
        reg: float = 0.0,
        weighted: bool = False,
        biases: bool = False,
        tol: float = 1e-6,
        init: str = "spectral",
        clip: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.max_iter = max_iter
        self.inner_steps = inner_steps
        self.reg = reg
        self.weighted = weighted
        self.biases = biases
        self.tol = tol
        self.init = init
        self.clip = clip
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "RobustALS":
        """Find factors that explain the observed entries of ``X``, of shape (n_samples, n_features)."""
        indices, values, shape = self._tensors(X, reset=True)
        if not 1 <= self.n_components <= min(shape):
            raise ValueError(
                f"n_components must be >= 1 and <= min(n_samples, n_features), got n_components={self.n_components} "
                f"with n_samples={shape[0]} and n_features={shape[1]}"
            )
        found = complete(
            indices, values, shape, self.n_components, solver=self.solver, max_iter=self.max_iter,
            inner_steps=self.inner_steps, reg=self.reg, weighted=self.weighted, biases=self.biases, tol=self.tol,
            init=self.init, clip=self.clip, generator=self._generator(),
        )  # fmt: skip
        U, V = self._array(found.U), self._array(found.V)
        free = V.shape[1] - int(self.biases)  # the last columns of both are the offsets of features and their ones
        self.U_: np.ndarray = U[:, :free].copy()
        self.V_: np.ndarray = V[:, :free].copy()
        self.offset_ = V[:, -1].copy() if self.biases else np.zeros(shape[1], V.dtype)
        self.rmse_history_ = np.array(found.extras["rmse_history"])
        self.n_iter_ = found.iterations
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and return ``U_``: what :meth:`transform` gives, to the accuracy that the sweeps reached."""
        return self.fit(X).U_

    def transform(self, X: Any) -> np.ndarray:
        """Scores of the rows of ``X`` by exact (ridge) regression on ``V_``; the shortest where not unique."""
        check_is_fitted(self)
        indices, values, shape = self._tensors(X, reset=False)
        seen = observe(indices, values, shape)
        V, offset = torch.from_numpy(self.V_).to(values), torch.from_numpy(self.offset_).to(values)
        ridge = self.reg * (seen.rows.counts.to(values) if self.weighted else values.new_ones(shape[0]))
        start = values.new_zeros(shape[0], V.shape[1])
        scores, _ = exact(seen.rows, V, start, seen.values - offset[seen.rows.cols], ridge)
        return self._array(scores)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Predictions of whole rows, of shape (n_samples, n_features), from scores."""
        check_is_fitted(self)
        X = check_array(X, dtype=[np.float64, np.float32])
        if X.shape[1] != self.V_.shape[1]:
            raise ValueError(f"X must have {self.V_.shape[1]} columns (scores), got {X.shape[1]}")
        return X @ self.V_.T + self.offset_

    def complete(self, X: Any) -> np.ndarray:
        """``X`` as a dense array with its missing entries predicted and its observed ones kept."""
        filled = self.inverse_transform(self.transform(X))
        indices, values, _ = self._tensors(X, reset=False)
        filled[tuple(indices.numpy())] = values
        return filled

    @property
    def _n_features_out(self) -> int:
        return self.V_.shape[1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _warn_if_thin(seen: Observations, rank: int, reg: float) -> None:
    for name, pattern in (("row", seen.rows), ("column", seen.cols)):
        empty = int((pattern.counts == 0).sum())
        if empty:
            warnings.warn(f"{empty} {name}(s) without observations; their factors are zero", UserWarning, stacklevel=4)
    n, m = seen.rows.shape
    count, free = seen.values.numel(), rank * (n + m - rank)
    if reg == 0 and count < free:
        text = (
            f"under-determined: {count} observations for {free} free numbers; use reg > 0 or a lower rank than {rank}"
        )
        warnings.warn(text, UserWarning, stacklevel=4)


def _solver(solver: str, rank: int, steps: int, generator: torch.Generator) -> Callable[..., tuple[Tensor, Tensor]]:
    """``step(pattern, design, X, residual, ridge) -> (X, residual)``."""
    check_option(solver, "solver", ("auto", "cg", "sketch", "cholesky"))
    if solver == "cholesky" or (solver == "auto" and rank < _CG_FROM_RANK):
        return exact
    if solver == "sketch":
        return lambda p, d, x, r, ridge: conjugate(p, d, x, r, ridge, steps, sketched(p, d, ridge, generator))
    return lambda p, d, x, r, ridge: conjugate(p, d, x, r, ridge, steps)


def _orthonormalise(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The same ``A B^T`` with orthonormal columns in the first factor."""
    basis, rest = torch.linalg.qr(A)
    return basis, B @ rest.mT


def _start(
    init: str | LowRank,
    seen: Observations,
    rank: int,
    biases: bool,
    mean: Tensor,
    clip: float | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Factors to start from: ``(u, 0)``, or ``([b, u, 1], [1, 0, c])`` with offsets of rows and columns."""
    (n, m), k = seen.rows.shape, rank + 2 * biases
    if clip is not None:
        check_range(clip, "clip", 0, closed="neither")
    if isinstance(init, LowRank):
        if init.U.shape != (n, k) or init.V.shape != (m, k):
            given = f"{tuple(init.U.shape)} and {tuple(init.V.shape)}"
            raise ValueError(f"init must have factors of shapes {(n, k)} and {(m, k)}, got {given}")
        U, V = init.U.to(seen.values), init.V.to(seen.values)
        return U, torch.cat([V[:, :-1], V[:, -1:] - mean], 1)
    check_option(init, "init", ("spectral", "random"))
    if biases:
        c = seen.cols.sum(seen.values.index_select(0, seen.to_cols)) / (seen.cols.counts + _DAMPING)
        seen = seen.with_values(seen.values - c.index_select(0, seen.rows.cols))
        b = seen.rows.sum(seen.values) / (seen.rows.counts + _DAMPING)
        seen = seen.with_values(seen.values - seen.rows.each(b))
    if init == "random":
        U = torch.randn(n, rank, generator=generator, dtype=mean.dtype, device=mean.device)
        U = torch.linalg.qr(U * (seen.rows.counts > 0)[:, None]).Q
    else:
        matrix, transpose = seen.rows.matrix(seen.values), seen.cols.matrix(seen.values.index_select(0, seen.to_cols))
        U = spectral_init(matrix, transpose, rank, clip=clip, generator=generator)
    V = mean.new_zeros(m, rank)
    if biases:
        U = torch.cat([b[:, None], U, torch.ones_like(b)[:, None]], 1)
        V = torch.cat([torch.ones_like(c)[:, None], V, c[:, None]], 1)
    return U, V
