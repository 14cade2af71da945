"""Networks whose hidden weights are drawn once and kept: what scale to draw them from, and when no width will do.

A random-feature network ``g(x) = sum_{i <= m} c_i sigma(a_i . x - b_i)`` draws ``(a_i, b_i)`` and fits only ``c``. If
the weights are drawn from a bounded set, ``|a_ij| <= bandwidth``, targets with higher frequencies stay out of reach
however large m is; if they are drawn from too large a set, most features are wasted. Here the bandwidth is chosen from
the data, the weights can be drawn where the target's ridgelet transform is large, and the fit says which of bandwidth
and width limits it.

References
----------
M. Li, S. Sonoda, F. Cao, Y. G. Wang, J. Liang, "How Powerful are Shallow Neural Networks with Bandlimited Random
Weights?", ICML 2023, arXiv:2008.08427.
"""

from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data
from torch import Tensor

from hadamard.layers._bandlimited import Ridge, RidgeFit, neighbour_frequency, some_rows
from hadamard.layers.bandlimited_bounds import witness_bound
from hadamard.layers.bandlimited_features import ROWS, Bandlimited
from hadamard.validation import check_option, check_range

__all__ = ["BandlimitedRegressor"]

_HELPS = 0.95**2  # what leaves more than this share of the squared error does not help
_SMALL = 1e-4  # shares of the variance below this are not looked into
_ALLOWED = 10  # the output weights that the bound allows in any case, over the largest target
_JUDGED = 500  # rows of the fits that the diagnosis compares


class BandlimitedRegressor(RegressorMixin, Bandlimited):
    """Penalised linear regression on random ridge features whose scale fits the target.

    Takes the place of ``make_pipeline(RBFSampler(), Ridge())`` and of extreme learning machines, and says whether a
    larger bandwidth or more features would help.

    Parameters
    ----------
    n_components : int, default=200
        Number of features m.
    bandwidth : float or "auto", default="auto"
        Weights are uniform in ``[-bandwidth, bandwidth]``, in radians per unit of ``X`` (per standard deviation where
        ``standardize``). ``"auto"``: the one of twelve with the least error on points left out, around the frequency
        that differences between nearest neighbours suggest.
    activation : {"cos", "sin", "tanh", "sigmoid", "relu", "gauss"}, default="cos"
        What is applied to ``a . x - b``; ``gauss`` is ``exp(-z^2/2)``.
    bias_range : float, default=None
        Biases are uniform in ``[-bias_range, bias_range]``; ``None``: pi for cos and sin, else ``bandwidth`` times the
        largest norm of a sample.
    alpha : float, "gcv" or "loo", default="gcv"
        Penalty on the squared output weights: given, or the best by generalised cross-validation or by the exact
        leave-one-out error. 0: least squares, without the directions that ``rcond`` cuts off.
    sampling : {"uniform", "ridgelet"}, default="uniform"
        ``"ridgelet"``: of 16 m uniform draws, m are kept with probabilities in proportion to the modulus of the
        target's ridgelet transform. It helps where the bandwidth is much too large for m uniform draws.
    rcond : float, default=1e-8
        Directions of the feature matrix with a singular value of at most ``rcond`` times the largest are left out.
    standardize : bool, default=True
        Whether columns of ``X`` are centred and divided by their standard deviations first.
    random_state : int, RandomState instance or None, default=None
        Of the draw.

    Attributes
    ----------
    bandwidth_ : float
        The bandwidth that was used; 0 where it is chosen and the target is constant.
    alpha_ : float
        The penalty that was used.
    coef_, intercept_ : ndarray of shape (n_components,) and float
        Output weights.
    weights_, bias_ : ndarray of shape (n_components, n_features) and (n_components,)
        The features are ``activation(z @ weights_.T - bias_)``, with z the (standardised) input.
    rank_ : int
        Numerical rank of the (centred) feature matrix: how many of the m features count.
    cv_error_ : float
        Root mean square error on points left out, by ``alpha``'s rule (``"gcv"`` where a number is given).
    lower_bound_ : float
        Root mean square error on the training points that no wider network with weights in this band beats, as
        :func:`~hadamard.layers.bandwidth_lower_bound` has it (from 2000 samples where there are more), for output
        weights whose absolute values add up to as much as this one's, or to ten times the largest deviation of the
        target from its mean. It counts noise in the target, too.
    out_of_band_energy_ : float
        Its square over the variance of those targets: the share of the target that lies outside the band.
    diagnosis_ : str
        What would lower the error on points left out by more than 5 %, judged from at most 500 samples.
        ``"bandwidth-limited"``: a larger ``bandwidth``, and no width does; ``"width-limited"``: a larger
        ``n_components``, or a smaller ``bandwidth`` for as many; ``"resolved"``: neither, or the error is below 1 % of
        the target's standard deviation already.

    Raises
    ------
    TypeError, ValueError
        By ``fit``, if a parameter has another type or is out of range, or a value is missing or infinite.

    Notes
    -----
    Costs a singular value decomposition of an (n, m) matrix in float64, twelve more of at most 2000 rows for
    ``bandwidth="auto"``, and up to seven of 500 rows for the diagnosis; memory is n m numbers.

    Do not use it where inputs are many and frequencies high: features must fill a box, m grows like bandwidth^d. Trees
    do better on tables with unordered categories; a network with trained hidden weights finds directions by itself.

    The paper proves the bound in terms of the ridgelet spectrum on the whole space; here it is evaluated on the samples
    and for output weights of bounded size. The choice of the bandwidth and the diagnosis are additions.

    References
    ----------
    M. Li, S. Sonoda, F. Cao, Y. G. Wang, J. Liang. How Powerful are Shallow Neural Networks with Bandlimited Random
    Weights? ICML 2023. arXiv:2008.08427.

    Examples
    --------
    >>> X = np.linspace(-1, 1, 400)[:, None]
    >>> y = np.sin(50 * X[:, 0])
    >>> narrow = BandlimitedRegressor(bandwidth=10, standardize=False, random_state=0).fit(X, y)
    >>> narrow.diagnosis_, narrow.score(X, y) < 0.1
    ('bandwidth-limited', True)
    >>> model = BandlimitedRegressor(standardize=False, random_state=0).fit(X, y)
    >>> model.diagnosis_, 50 < model.bandwidth_ < 250, model.score(X, y) > 0.999
    ('resolved', True, True)
    """

    def __init__(
        self,
        n_components: int = 200,
        *,
        bandwidth: float | str = "auto",
        activation: str = "cos",
        bias_range: float | None = None,
        alpha: float | str = "gcv",
        sampling: str = "uniform",
        rcond: float = 1e-8,
        standardize: bool = True,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.bandwidth = bandwidth
        self.activation = activation
        self.bias_range = bias_range
        self.alpha = alpha
        self.sampling = sampling
        self.rcond = rcond
        self.standardize = standardize
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "BandlimitedRegressor":
        """Choose bandwidth and penalty, draw the features, fit the output weights, and say what limits the fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Points.
        y : array-like of shape (n_samples,)
            Targets.
        """
        self._check()
        if isinstance(self.alpha, str):
            check_option(self.alpha, "alpha", ("gcv", "loo"))
        else:
            check_range(self.alpha, "alpha", 0)
        check_range(self.rcond, "rcond", 0, 1, closed="left")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True)
        x, target = self._fit_scale(X), torch.from_numpy(y.astype(np.float64))
        seed = self._generator().initial_seed()
        if self.bandwidth == "auto":
            self.bandwidth_ = self._choose(x, target, self.alpha, self.rcond, seed)
        else:
            self.bandwidth_ = float(self.bandwidth)
        features = self._draw(x, target, self.bandwidth_, seed)
        values = features(x)
        fit = RidgeFit(values, target, self.rcond)
        self.alpha_, score = fit.choose(self.alpha)
        coef, intercept = fit.coefficients(self.alpha_)
        self.coef_, self.intercept_ = self._array(coef), float(intercept)
        self.weights_, self.bias_ = self._array(features.weights), self._array(features.bias)
        self.rank_ = fit.rank
        self.cv_error_ = score**0.5
        self._bound(x, target, values, fit, features, seed)
        rows = some_rows(len(x), _JUDGED, seed)
        self.diagnosis_ = self._diagnose(x[rows], target[rows], values[rows], score, seed)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions for the rows of ``X``, of shape (n_samples,)."""
        features, dtype = self._features(X)
        return (self._array(features) @ self.coef_ + self.intercept_).astype(dtype, copy=False)

    def _bound(self, x: Tensor, y: Tensor, values: Tensor, fit: RidgeFit, features: Ridge, seed: int) -> None:
        """What lies outside the band."""
        rows = some_rows(len(x), ROWS, seed)
        if len(rows) < len(x):
            fit = RidgeFit(values[rows], y[rows], self.rcond)
        allowed = max(float(np.abs(self.coef_).sum()), _ALLOWED * float(fit.y.abs().max()))
        reach, generator = self._reach(x, self.bandwidth_), torch.Generator().manual_seed(seed + 1)
        self.lower_bound_, _ = witness_bound(fit, x[rows], features, self.bandwidth_, reach, allowed, generator)
        variance = float(fit.y.square().mean())
        self.out_of_band_energy_ = self.lower_bound_**2 / variance if variance > 0 else 0.0

    def _diagnose(self, x: Tensor, y: Tensor, values: Tensor, score: float, seed: int) -> str:
        """What would help: another band, more features, or neither."""
        if score <= _SMALL * float((y - y.mean()).square().mean()):
            return "resolved"
        score = RidgeFit(values, y, self.rcond).choose(self.alpha)[1]
        if self.bandwidth != "auto":
            suggested = neighbour_frequency(x, y)
            bands = [self.bandwidth_ * 4.0**k for k in (-2, -1, 1)] + [suggested / 2, 2 * suggested]
            scores = [self._score(x, y, b, self.alpha, self.rcond, seed) for b in bands]
            if min(scores) < _HELPS * score:
                wider = bands[int(np.argmin(scores))] > self.bandwidth_
                return "bandwidth-limited" if wider else "width-limited"
        half = RidgeFit(values[:, : (self.n_components + 1) // 2], y, self.rcond).choose(self.alpha)[1]
        return "width-limited" if score < _HELPS * half else "resolved"
