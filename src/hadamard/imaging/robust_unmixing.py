r"""Unmix a hyperspectral image some of whose bands are broken and whose pixels are more or less mixed.

A pixel's spectrum is a mixture of K pure ones, x_n = sum_k a_nk m_k. Both are found by minimising

.. math:: \sum_l \|x^l - (A M)^l\|_2 + \lambda \sum_n \sum_k a_{nk}^{p_n}, \qquad p_n = 1 - h_n,

over A, M >= 0: the error of a band enters by its norm and not by its square, so that a broken band counts as any other,
and a pixel is made the sparser the purer it is, by an exponent that is learned with the abundances.
"""

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from hadamard.estimators import TorchEstimator
from hadamard.imaging import _abundances as steps
from hadamard.imaging._abundances import Penalty
from hadamard.imaging.endmembers import fcls, starting_spectra
from hadamard.progress import progress_bar
from hadamard.results import warn_short
from hadamard.validation import check_option, check_range

__all__ = ["RobustUnmixing"]

_BLOCK = 10  # iterations between looks at the guidance and at convergence
_SWEEPS = 2  # over the abundances in an iteration
_ROUNDS = 10  # of guidance and abundances for known endmembers


class RobustUnmixing(ClassNamePrefixFeaturesOutMixin, TransformerMixin, TorchEstimator):
    """Blind unmixing that broken bands do not spoil, as a scikit-learn transformer.

    ``fit`` finds spectra, ``transform`` gives each pixel's shares of them, ``inverse_transform`` mixes them again.

    Parameters
    ----------
    n_endmembers
        Number K of pure spectra, at most min(n_samples, n_features).
    loss
        ``"l21"``: the sum of the bands' error norms; ``"frobenius"``: half of the squared error, as in scikit-learn's
        ``NMF``.
    sparsity
        Exponents of the penalty: ``"adaptive"``, learned for each pixel; ``"l1/2"``, 1/2 everywhere; ``"l1"``;
        ``"none"``, no penalty.
    abundance
        ``"simplex"``: shares are non-negative and sum to one, exactly, by coordinate descent on pairs of shares.
        ``"asc"``: the sum is held near one by a squared penalty, by multiplicative updates as in the paper, which move
        slowly away from the start. ``"nonneg"``: non-negative only, by the same updates.
    reg
        Weight lambda of the penalty, or ``"auto"``: ``reg_scale`` times the loss at the start (the median band's for
        all of them) over its penalty with p = 1/2.
    reg_scale
        Factor of ``"auto"``.
    asc
        With ``abundance="asc"``: weight of the squared error of the sum, in units of the mean curvature of the data
        term at the start.
    h_max
        Greatest guidance, in [0, 1): no pixel's exponent is below ``1 - h_max``.
    init
        ``"spa"`` (deterministic) or ``"vca"``: pixels of the scene, chosen without the bands that
        :func:`~hadamard.imaging.noisy_bands` marks; ``"random"``: pixels drawn at random; or spectra of shape
        (n_endmembers, n_features).
    max_iter
        Iterations at most; each passes twice over the data.
    tol
        Stop when ten iterations change the objective by at most this in relation to itself (plus ``tol`` times what it
        is without any spectra, so that exact mixtures come to an end).
    verbose
        Show a progress bar.
    random_state
        Seed of ``"vca"`` and ``"random"``, ``numpy.random.RandomState`` or ``None``.

    Attributes
    ----------
    endmembers_
        Spectra, shape (n_endmembers, n_features).
    guidance_
        How pure each pixel of ``fit`` is, h_n in [0, ``h_max``], shape (n_samples,).
    channel_weights_
        Weight of each band's squared error, shape (n_features,): 1 / (2 |residual|), or 1/2 with the squared loss.
    bad_bands_
        Bands whose weight is less than a third of the median, bool, shape (n_features,).
    reg_
        The penalty's weight that was used.
    objective_history_
        The objective before each iteration. It does not rise while the guidance is fixed.
    reconstruction_err_
        Sum of the bands' error norms, whichever ``loss`` was minimised.
    n_iter_
        Iterations that were run.

    Warns
    -----
    ConvergenceWarning
        If ``max_iter`` iterations did not reach ``tol``.
    UserWarning
        If values below zero were set to zero.

    References
    ----------
    Feiyun Zhu, Ying Wang, Bin Fan, Gaofeng Meng, Chunhong Pan. Effective Spectral Unmixing via Robust Representation
    and Learning-based Sparsity. 2014. arXiv:1409.0685

    Model and reweighting are the paper's. Its rule for the guidance could not be read: here it is the sparseness of
    Hoyer (2004) of each pixel's abundances, ``(sqrt(K) - |a|_1 / |a|_2) / (sqrt(K) - 1)``, averaged over iterations.
    By default abundances lie on the simplex and the steps are coordinate descent, which gets farther in the same time
    than multiplicative updates; ``abundance="asc"`` gives those.

    Notes
    -----
    The weights of the bands cancel in the endmembers' step, and the residuals come from its matrix products, so that an
    iteration costs two passes over the data like one of ``NMF``, and grows linearly with the number of pixels.

    **When not to use it**: for known spectra :func:`~hadamard.imaging.fcls` is enough (give it ``weights`` for broken
    bands); where every broken band is known or stands out, leaving it out does as well; where the spectra of a material
    vary over the scene, this model has no place for that. A band's error counts by its norm, so that a broken band
    whose values are many times those of the others still pulls: scale such bands, or leave them out.

    Examples
    --------
    >>> from hadamard.data import mixed_scene, smooth_spectra
    >>> scene = mixed_scene(smooth_spectra(3, 60), size=24, bad=0.1)
    >>> model = RobustUnmixing(3)
    >>> shares = model.fit_transform(scene.cube.reshape(-1, 60))
    >>> shares.shape, model.endmembers_.shape
    ((576, 3), (3, 60))
    >>> bool((model.bad_bands_ == scene.bad_bands).all())
    True
    """

    def __init__(
        self,
        n_endmembers: int = 3,
        *,
        loss: str = "l21",
        sparsity: str = "adaptive",
        abundance: str = "simplex",
        reg: float | str = "auto",
        reg_scale: float = 0.1,
        asc: float = 15.0,
        h_max: float = 0.8,
        init: Any = "spa",
        max_iter: int = 1000,
        tol: float = 1e-5,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.n_endmembers = n_endmembers
        self.loss = loss
        self.sparsity = sparsity
        self.abundance = abundance
        self.reg = reg
        self.reg_scale = reg_scale
        self.asc = asc
        self.h_max = h_max
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "RobustUnmixing":
        """Find the spectra that the rows of ``X`` (pixels, shape (n_samples, n_features)) are mixed from."""
        self._fit(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """``fit(X).transform(X)``."""
        return self._array(self._fit(X).mT.contiguous())

    def transform(self, X: Any) -> np.ndarray:
        """Shares of the spectra in the rows of ``X``, shape (n_samples, n_endmembers), each row for itself."""
        check_is_fitted(self)
        return self._array(self._unmix(self._data(X, reset=False))[0].mT.contiguous())

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Mix the spectra: rows of shape (n_features,) from rows of shares."""
        check_is_fitted(self)
        X = check_array(X, dtype=[np.float64, np.float32])
        if X.shape[1] != len(self.endmembers_):
            raise ValueError(f"X must have {len(self.endmembers_)} columns (shares), got {X.shape[1]}")
        return X @ self.endmembers_

    def _data(self, X: Any, reset: bool) -> Tensor:
        X = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32])
        below = int((X < 0).sum())
        if below:
            warnings.warn(f"X has {below} values below zero, taken for zero", UserWarning, stacklevel=4)
            X = np.maximum(X, 0)
        return torch.from_numpy(np.ascontiguousarray(X))

    @torch.no_grad()
    def _fit(self, X: Any) -> Tensor:
        """Alternate between weights, endmembers, abundances and guidance; give the abundances, shape (K, N)."""
        X = self._data(X, reset=True)
        self._check(X.shape)
        (M, A), squares = self._start(X), X.square().sum(0)
        AX, AA = A @ X, A @ A.mT
        norms = steps.residuals(X, A, M, squares, AX, AA)
        weights = steps.weigh(norms, squares, self.loss)[0]
        least = self.tol * steps.weigh(squares.sqrt(), squares, self.loss)[1]  # of what no spectra at all would leave
        rho = self.asc * float((M * M * weights).sum()) / len(M) if self.abundance == "asc" else 0.0
        weight = self.reg_scale * steps.scale(norms, A, self.loss) if self.reg == "auto" else float(self.reg)
        self.reg_ = 0.0 if self.sparsity == "none" else weight
        penalty = Penalty(self.reg_, steps.exponents(A, self.sparsity, self.h_max))
        history: list[float] = []
        gap = float("inf")
        with progress_bar("unmixing", self.max_iter, self.verbose) as advance:
            while len(history) < self.max_iter and gap > self.tol:
                weights, loss = steps.weigh(norms, squares, self.loss)
                history.append(loss + penalty.value(A) + rho * float((A.sum(0) - 1).square().sum()))
                M, A = self._step(X, M, A, AX, AA, weights, penalty, rho)
                AX, AA = A @ X, A @ A.mT
                norms = steps.residuals(X, A, M, squares, AX, AA)
                if len(history) % _BLOCK == 0:
                    gap = abs(history[-_BLOCK] - history[-1]) / (history[-1] + least or 1.0)
                    penalty = Penalty(self.reg_, steps.exponents(A, self.sparsity, self.h_max, penalty.exponents))
                    advance(len(history), history[-1])
        self.endmembers_: np.ndarray = self._array(M)
        self.channel_weights_: np.ndarray = self._array(steps.weigh(norms, squares, self.loss)[0])
        self.bad_bands_: np.ndarray = self.channel_weights_ < np.median(self.channel_weights_) / 3
        self.reconstruction_err_, self.objective_history_ = float(norms.sum()), np.array(history)
        self.n_iter_, self._gap, self._rho = len(history), gap, rho
        if gap > self.tol:
            warn_short(f"stopped after {self.max_iter} iterations at a change of {gap:.1e}, above tol={self.tol:g}")
        A, guidance = self._unmix(X)
        self.guidance_: np.ndarray = self._array(guidance)
        return A

    def _step(
        self, X: Tensor, M: Tensor, A: Tensor, AX: Tensor, AA: Tensor, weights: Tensor, penalty: Penalty, rho: float
    ) -> tuple[Tensor, Tensor]:
        """Endmembers, whose weights cancel, then abundances."""
        if self.abundance == "simplex":
            M = steps.refit(M, AX, AA)
            H, B = (M * weights) @ M.mT, (M * weights) @ X.mT
            return M, steps.descend(A, H, B, penalty.slope(A), _SWEEPS)
        M = steps.multiply(M, AA, AX, 0.0)
        if self.abundance == "nonneg" and penalty.weight:  # otherwise shares shrink for free while spectra grow
            size = M.norm(dim=1, keepdim=True).clamp(min=torch.finfo(M.dtype).tiny) / self._norms
            M, A = M / size, A * size
        H, B = (M * weights) @ M.mT, (M * weights) @ X.mT
        return M, steps.multiply(A, H + rho, B + rho, penalty.slope(A)).clamp(min=1e-10)

    def _unmix(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Abundances (K, N) and guidance (N,) for the endmembers and weights that were found."""
        M, weights = (torch.from_numpy(v).to(X) for v in (self.endmembers_, self.channel_weights_))
        H, B = (M * weights) @ M.mT + self._rho, (M * weights) @ X.mT + self._rho
        step = partial(steps.settle, H=H, B=B, singly=self.abundance != "simplex")  # where the sum may change
        A = step(B.new_full(B.shape, 1 / len(M)), slope=0.0, sweeps=20)
        p = steps.exponents(A, self.sparsity, self.h_max)
        for _ in range(_ROUNDS if self.reg_ else 0):
            A = step(A, slope=Penalty(self.reg_, p).slope(A), sweeps=5)
            p = steps.exponents(A, self.sparsity, self.h_max, p)
        return A, steps.hoyer(A).clamp(max=self.h_max)

    def _start(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Endmembers (K, L) and abundances (K, N) to start from."""
        M, broken = starting_spectra(X, self.n_endmembers, self.init, self._generator)
        A = fcls(X, M, weights=(~broken).to(X)).mT.contiguous()
        if self.abundance == "simplex":
            return M, A
        floor = 1e-3  # what is zero stays zero under multiplicative steps
        self._norms = M.norm(dim=1, keepdim=True)
        return M.clamp(min=floor * float(M.mean())), A.clamp(min=floor)

    def _check(self, shape: tuple[int, int]) -> None:
        check_range(self.n_endmembers, "n_endmembers", 1, integer=True)
        if self.n_endmembers > min(shape):
            raise ValueError(
                f"n_endmembers must be >= 1 and <= min(n_samples, n_features), got n_endmembers={self.n_endmembers} "
                f"with n_samples={shape[0]} and n_features={shape[1]}"
            )
        check_option(self.loss, "loss", ("l21", "frobenius"))
        check_option(self.sparsity, "sparsity", ("adaptive", "l1/2", "l1", "none"))
        check_option(self.abundance, "abundance", ("simplex", "asc", "nonneg"))
        if self.reg != "auto":
            check_range(self.reg, "reg", 0)
        check_range(self.reg_scale, "reg_scale", 0)
        check_range(self.asc, "asc", 0, closed="neither")
        check_range(self.h_max, "h_max", 0, 1, closed="left")
        check_range(self.max_iter, "max_iter", 1, integer=True)
        check_range(self.tol, "tol", 0)

    @property
    def _n_features_out(self) -> int:
        return len(self.endmembers_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
