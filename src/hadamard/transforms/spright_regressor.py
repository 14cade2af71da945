"""A black box of bits learned from chosen questions, in scikit-learn's manner."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from hadamard.transforms.spright import sparse_wht
from hadamard.validation import check_range

__all__ = ["SparseWalshRegressor"]


class SparseWalshRegressor(RegressorMixin, BaseEstimator):
    """Learn the interactions of a Boolean black box by asking it.

    Unlike other regressors it is not given samples: it is given the function and chooses where to ask. A fitted model
    of the black box is a sum of few products of signs, ``sum_k X[k] prod_{q in k} (-1)^bit_q``, so that its
    coefficients are the interactions.

    Parameters
    ----------
    sparsity
        About how many interactions are expected; ``None``: found by doubling.
    method, noise_std, repeats, groups
        As in :func:`~hadamard.transforms.sparse_wht`.
    random_state
        Seed of the choice of samples, or ``None`` for a fixed one.

    Attributes
    ----------
    spectrum_ : SparseSpectrum
        The whole result, with ``converged`` and ``n_samples``.
    coef_ : ndarray of shape (n_interactions,)
        Coefficients, largest modulus first.
    interactions_ : list of tuple of int
        The variables of each.
    n_features_in_ : int
        Number of bits.

    References
    ----------
    X. Li, J. K. Bradley, S. Pawar, K. Ramchandran. SPRIGHT: A Fast and Robust Framework for Sparse Walsh-Hadamard
    Transform. 2015, arXiv:1508.06336.

    Examples
    --------
    >>> def black_box(X):  # any predict function over rows of zeros and ones
    ...     return 1.0 * (X[:, 2] & X[:, 9]) + 0.5 * X[:, 4]
    >>> model = SparseWalshRegressor(sparsity=8).fit(black_box, 20)
    >>> sorted(model.interactions_)
    [(), (2,), (2, 9), (4,), (9,)]
    >>> float(model.predict(np.ones((1, 20), dtype=int))[0].round(6))
    1.5
    """

    def __init__(
        self,
        sparsity: int | None = None,
        *,
        method: str = "noiseless",
        noise_std: float | str | None = None,
        repeats: int = 4,
        groups: int = 3,
        random_state: int | None = None,
    ) -> None:
        self.sparsity = sparsity
        self.method = method
        self.noise_std = noise_std
        self.repeats = repeats
        self.groups = groups
        self.random_state = random_state

    def fit(self, function: Callable[[np.ndarray], Any], n_features: int) -> "SparseWalshRegressor":
        """Ask the black box and find its interactions.

        Parameters
        ----------
        function
            Takes an integer array of zeros and ones of shape (n_points, n_features), returns n_points real values:
            the ``predict`` of a fitted model, for example.
        n_features
            Number of bits.

        Raises
        ------
        TypeError
            If ``function`` cannot be called.
        ValueError
            If it returns another shape or values that are not finite, or a parameter is out of range.
        """
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        check_range(n_features, "n_features", 1, integer=True)

        def ask(points: Tensor) -> Tensor:
            return torch.as_tensor(np.asarray(function(points.numpy().astype(np.int64)), dtype=np.float64))

        self.spectrum_ = sparse_wht(
            ask,
            n_features,
            sparsity=self.sparsity,
            method=self.method,
            noise_std=self.noise_std,
            repeats=self.repeats,
            groups=self.groups,
            generator=torch.Generator().manual_seed(0 if self.random_state is None else self.random_state),
        )
        self.coef_ = self.spectrum_.value.numpy()
        self.interactions_ = [tuple(row.nonzero().flatten().tolist()) for row in self.spectrum_.indices]
        self.n_features_in_ = n_features
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Evaluate the model at rows of zeros and ones.

        Raises
        ------
        ValueError
            If ``X`` has another number of columns or holds anything but 0 and 1.
        """
        check_is_fitted(self)
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have shape (n_points, {self.n_features_in_}), got {X.shape}")
        if not np.isin(X, (0, 1)).all():
            raise ValueError("X must hold zeros and ones only")
        return self.spectrum_.evaluate(torch.as_tensor(X)).numpy()
