"""The semi-discrete optimal transport map in scikit-learn's manner."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from hadamard.estimators import TorchEstimator
from hadamard.transport.semi_discrete import Source, semi_discrete_ot

__all__ = ["SemiDiscreteOT"]


class SemiDiscreteOT(OneToOneFeatureMixin, TransformerMixin, TorchEstimator):
    """Transport a distribution that can be sampled onto the rows of ``X``, each point to one row, at the least cost.

    ``fit`` takes the targets; ``transform`` sends points of the source to them.

    Parameters
    ----------
    source : {"normal", "uniform"} or callable, default="normal"
        Independent standard normals, the unit cube, or a function of a count and a ``torch.Generator`` that returns a
        tensor of so many points.
    tol : float, default=0.1
        Stop once the cells' masses and the weights differ by at most this in the 1-norm.
    max_iter : int, default=5000
        Most steps.
    batch_size : int, default=None
        Points of the source in a step; ``None``: five for each target.
    learning_rate : float, default=3.0
        Length of the first step, in mean gaps between the best and the second best target.
    random_state : int, RandomState instance or None, default=None
        Of the samples.
    progress : bool, default=False
        Show a progress bar.
    state : str or Path, default=None
        File to save to now and then, and to go on from if it exists.

    Attributes
    ----------
    map_ : SemiDiscreteMap
        The map, for tensors.
    heights_, potentials_ : ndarray of shape (n_targets,)
        ``h``, and ``alpha = h + |y|^2 / 2``.
    residual_ : float
        Mass error in the 1-norm.
    n_iter_ : int
        Steps that were taken.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    semi_discrete_ot : The same for tensors on any device.

    References
    ----------
    Z. Li, S. Li, Z. Wang, N. Lei, Z. Luo, X. Gu. DPM-OT: A New Diffusion Probabilistic Model Based on Optimal
    Transport. ICCV 2023, arXiv:2307.11308.

    Examples
    --------
    >>> model = SemiDiscreteOT("uniform", tol=0.02, random_state=0).fit([[0.0], [1.0], [5.0]])
    >>> model.transform([[0.2], [0.5], [0.9]]).ravel()  # thirds of the unit interval
    array([0., 1., 5.])
    >>> model.cell_masses(100_000).round(1)
    array([0.3, 0.3, 0.3])
    """

    def __init__(
        self,
        source: Source = "normal",
        *,
        tol: float = 0.1,
        max_iter: int = 5000,
        batch_size: int | None = None,
        learning_rate: float = 3.0,
        random_state: Any = None,
        progress: bool = False,
        state: str | Path | None = None,
    ) -> None:
        self.source = source
        self.tol = tol
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.progress = progress
        self.state = state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "SemiDiscreteOT":
        """Find the map onto the rows of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_targets, n_features)
            The targets.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_targets,), default=None
            Their weights, not negative; ``None``: equal ones.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        weights = None
        if sample_weight is not None:
            weights = torch.from_numpy(_check_sample_weight(sample_weight, X, ensure_non_negative=True, copy=True))
        self.map_ = semi_discrete_ot(
            torch.from_numpy(X),
            self.source,
            weights,
            tol=self.tol,
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            generator=self._generator(),
            progress=self.progress,
            state=self.state,
        )
        self.heights_, self.potentials_ = self._array(self.map_.heights), self._array(self.map_.potentials)
        self.residual_, self.n_iter_ = self.map_.residual, self.map_.iterations
        return self

    def assign(self, X: Any) -> np.ndarray:
        """Find the number of the target that each point of the source goes to.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Points of the source.

        Returns
        -------
        ndarray of shape (n_samples,)
            Rows of the targets.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._array(self.map_.assign(torch.from_numpy(X)))

    def transform(self, X: Any) -> np.ndarray:
        """Transport points of the source.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Points of the source.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The target of each.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._array(self.map_(torch.from_numpy(X))).astype(X.dtype, copy=False)

    def cell_masses(self, samples: int) -> np.ndarray:
        """Estimate the share of the source that goes to each target, from so many points of it."""
        check_is_fitted(self)
        return self._array(self.map_.masses(samples, self._generator()))
