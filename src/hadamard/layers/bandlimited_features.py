"""Random ridge features: a layer, and a transformer that draws them from a set that fits the target.

References
----------
M. Li, S. Sonoda, F. Cao, Y. G. Wang, J. Liang, "How Powerful are Shallow Neural Networks with Bandlimited Random
Weights?", ICML 2023, arXiv:2008.08427.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from hadamard.estimators import TorchEstimator
from hadamard.layers._bandlimited import (
    ACTIVATIONS,
    Ridge,
    RidgeFit,
    bias_reach,
    neighbour_frequency,
    some_rows,
    uniform,
)
from hadamard.layers.bandlimited_bounds import RIDGELETS
from hadamard.validation import check_option, check_range

__all__ = ["ROWS", "Bandlimited", "BandlimitedRandomFeatures", "RandomFeatures"]

ROWS = 2000  # by which a bandwidth is chosen, and a bound made
_LADDER = [2.0**k for k in range(1, -9, -1)]  # what "auto" tries, times the frequency that neighbours suggest
_CANDIDATES = 16  # weights among which one is drawn by the ridgelet transform
_RHO = {"cos": "cos", "sin": "sin", "gauss": "gauss2", "tanh": "gauss3", "sigmoid": "gauss3", "relu": "gauss4"}


class RandomFeatures(nn.Module):
    """A linear layer with an activation whose weights are drawn once and not trained.

    Parameters
    ----------
    in_features, out_features
        As in ``torch.nn.Linear``.
    bandwidth
        Weights are uniform in ``[-bandwidth, bandwidth]``: radians per unit of the input.
    activation
        ``"cos"``, ``"sin"``, ``"tanh"``, ``"sigmoid"``, ``"relu"`` or ``"gauss"`` (``exp(-z^2/2)``).
    bias_range
        Biases are uniform in ``[-bias_range, bias_range]``; ``None``: pi for cos and sin, else ``bandwidth *
        sqrt(in_features)``, which is right for inputs in [-1, 1].
    generator
        For the draw; ``None``: torch's own.
    device, dtype
        Of the weights.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, is out of range or unknown.

    Notes
    -----
    ``weight`` (out, in) and ``bias`` (out) are buffers: they are saved in the ``state_dict`` and moved by ``to``, and
    no optimizer sees them. The bias is added, as in ``torch.nn.Linear``.

    Do not use it where the hidden layer can be trained: with the same width, trained weights fit better.

    References
    ----------
    M. Li, S. Sonoda, F. Cao, Y. G. Wang, J. Liang. How Powerful are Shallow Neural Networks with Bandlimited Random
    Weights? ICML 2023. arXiv:2008.08427.

    Examples
    --------
    >>> net = nn.Sequential(RandomFeatures(3, 64, bandwidth=5.0), nn.Linear(64, 1))
    >>> net(torch.zeros(10, 3)).shape
    torch.Size([10, 1])
    >>> [name for name, _ in net.named_parameters()]
    ['1.weight', '1.bias']
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bandwidth: float = 1.0,
        activation: str = "cos",
        bias_range: float | None = None,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features: int = check_range(in_features, "in_features", 1, integer=True)
        self.out_features: int = check_range(out_features, "out_features", 1, integer=True)
        self.bandwidth: float = check_range(bandwidth, "bandwidth", 0, closed="neither")
        self.activation: str = check_option(activation, "activation", ACTIVATIONS)
        self.bias_range: float = bias_reach(bandwidth, math.sqrt(in_features), activation, bias_range)
        weight = torch.empty(out_features, in_features, device=device, dtype=dtype)
        self.register_buffer("weight", weight.uniform_(-bandwidth, bandwidth, generator=generator))
        bias = torch.empty(out_features, device=device, dtype=dtype)
        self.register_buffer("bias", bias.uniform_(-self.bias_range, self.bias_range, generator=generator))

    def forward(self, x: Float[Tensor, "*batch {self.in_features}"]) -> Float[Tensor, "*batch {self.out_features}"]:
        """Features of ``x``."""
        return ACTIVATIONS[self.activation](nn.functional.linear(x, self.weight, self.bias))

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"{self.in_features}, {self.out_features}, bandwidth={self.bandwidth:g}, activation={self.activation!r}"


class Bandlimited(TorchEstimator):
    """What transformer and regressor share: scaling, the draw of the features, the choice of the bandwidth."""

    def _check(self) -> None:
        check_range(self.n_components, "n_components", 1, integer=True)
        check_option(self.activation, "activation", ACTIVATIONS)
        check_option(self.sampling, "sampling", ("uniform", "ridgelet"))
        if isinstance(self.bandwidth, str):
            check_option(self.bandwidth, "bandwidth", ("auto",))
        else:
            check_range(self.bandwidth, "bandwidth", 0, closed="neither")
        if self.bias_range is not None:
            check_range(self.bias_range, "bias_range", 0)

    def _fit_scale(self, X: np.ndarray) -> Tensor:
        """Points in float64, in units of the columns' standard deviations if these are asked for."""
        X = X.astype(np.float64)
        self.mean_ = X.mean(0) if self.standardize else np.zeros(X.shape[1])
        spread = X.std(0) if self.standardize else np.ones(X.shape[1])
        self.scale_ = np.where(spread > 1e-12 * np.abs(X).max(0), spread, 1.0)
        return torch.from_numpy((X - self.mean_) / self.scale_)

    def _features(self, X: Any) -> tuple[Tensor, Any]:
        """The fitted features of new points in float64, and the dtype that the answer has."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        features = Ridge(torch.from_numpy(self.weights_), torch.from_numpy(self.bias_), self.activation)
        return features(torch.from_numpy((X - self.mean_) / self.scale_).to(torch.float64)), X.dtype

    def _reach(self, x: Tensor, bandwidth: float) -> float:
        return bias_reach(bandwidth, float(x.norm(dim=1).max()), self.activation, self.bias_range)

    def _draw(self, x: Tensor, y: Tensor | None, bandwidth: float, seed: int) -> Ridge:
        """The hidden weights: uniform, or where the target's ridgelet transform is large."""
        generator, (count, d) = torch.Generator().manual_seed(seed), (self.n_components, x.shape[1])
        reach = self._reach(x, bandwidth)
        if self.sampling == "uniform":
            return uniform(count, d, bandwidth, reach, self.activation, generator)
        if y is None:
            raise ValueError("sampling='ridgelet' requires y to be passed, but the target y is None")
        pool = uniform(_CANDIDATES * count, d, bandwidth, reach, self.activation, generator)
        size = (RIDGELETS[_RHO[self.activation]](x @ pool.weights.mT - pool.bias).mT @ (y - y.mean())).abs()
        size = size + 1e-12 * (float(size.max()) or 1.0)  # a constant target asks for nothing in particular
        chosen = torch.multinomial(size, count, generator=generator)
        return Ridge(pool.weights[chosen], pool.bias[chosen], self.activation)

    def _choose(self, x: Tensor, y: Tensor, alpha: float | str, rcond: float, seed: int) -> float:
        """The bandwidth whose fit predicts points left out best, among multiples of what neighbours suggest."""
        rows = some_rows(len(x), ROWS, seed)
        start = neighbour_frequency(x[rows], y[rows])
        if start == 0:
            return 0.0  # a constant target: the intercept says it all
        scores = {b: self._score(x[rows], y[rows], b, alpha, rcond, seed) for b in (start * f for f in _LADDER)}
        best = min(scores, key=lambda b: scores[b])
        scores |= {
            b: self._score(x[rows], y[rows], b, alpha, rcond, seed) for b in (best * 2**0.5, best / 2**0.5)
        }  # fmt: skip
        return min(scores, key=lambda b: scores[b])

    def _score(self, x: Tensor, y: Tensor, bandwidth: float, alpha: float | str, rcond: float, seed: int) -> float:
        """Mean squared error on points left out."""
        return RidgeFit(self._draw(x, y, bandwidth, seed)(x), y, rcond).choose(alpha)[1]


class BandlimitedRandomFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Bandlimited):
    """Random ridge features with a bandwidth that fits the target, as a scikit-learn transformer.

    Parameters
    ----------
    n_components : int, default=100
        Number of features m.
    bandwidth : float or "auto", default="auto"
        Weights are uniform in ``[-bandwidth, bandwidth]``, in radians per unit of ``X`` (per standard deviation where
        ``standardize``). ``"auto"``: chosen by the error that a penalised linear fit of ``y`` on the features makes on
        points left out; without ``y``, ``sqrt(6 / n_features)``, which spreads weights as
        ``RBFSampler(gamma="scale")`` does.
    activation : {"cos", "sin", "tanh", "sigmoid", "relu", "gauss"}, default="cos"
        What is applied to ``a . x - b``; ``gauss`` is ``exp(-z^2/2)``.
    bias_range : float, default=None
        Biases are uniform in ``[-bias_range, bias_range]``; ``None``: pi for cos and sin, else ``bandwidth`` times the
        largest norm of a sample.
    sampling : {"uniform", "ridgelet"}, default="uniform"
        ``"ridgelet"``: of 16 m uniform draws, m are kept with probabilities in proportion to the modulus of the
        target's ridgelet transform; needs ``y``.
    standardize : bool, default=True
        Whether features of ``X`` are centred and divided by their standard deviations first.
    random_state : int, RandomState instance or None, default=None
        Of the draw.

    Attributes
    ----------
    bandwidth_ : float
        The bandwidth that was used.
    weights_, bias_ : ndarray of shape (n_components, n_features) and (n_components,)
        The features are ``activation(z @ weights_.T - bias_)``, with z the (standardised) input.

    Raises
    ------
    ValueError
        By ``fit``, if a parameter is out of range or ``y`` is needed and missing.

    References
    ----------
    M. Li, S. Sonoda, F. Cao, Y. G. Wang, J. Liang. How Powerful are Shallow Neural Networks with Bandlimited Random
    Weights? ICML 2023. arXiv:2008.08427.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.pipeline import make_pipeline
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> model = make_pipeline(BandlimitedRandomFeatures(100, random_state=0), Ridge(1e-6))
    >>> round(model.fit(X, np.sin(40 * X[:, 0])).score(X, np.sin(40 * X[:, 0])), 3)
    1.0
    """

    def __init__(
        self,
        n_components: int = 100,
        *,
        bandwidth: float | str = "auto",
        activation: str = "cos",
        bias_range: float | None = None,
        sampling: str = "uniform",
        standardize: bool = True,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.bandwidth = bandwidth
        self.activation = activation
        self.bias_range = bias_range
        self.sampling = sampling
        self.standardize = standardize
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "BandlimitedRandomFeatures":
        """Choose the bandwidth and draw the features."""
        self._check()
        if y is None:
            X, target = validate_data(self, X, dtype=[np.float64, np.float32]), None
        else:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True)
            target = torch.from_numpy(y.astype(np.float64))
        z = self._fit_scale(X)
        seed = self._generator().initial_seed()
        if self.bandwidth != "auto":
            self.bandwidth_ = float(self.bandwidth)
        elif target is None:
            self.bandwidth_ = math.sqrt(6 / z.shape[1])
        else:
            self.bandwidth_ = self._choose(z, target, "gcv", 1e-8, seed)
        features = self._draw(z, target, self.bandwidth_, seed)
        self.weights_, self.bias_ = self._array(features.weights), self._array(features.bias)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features of the rows of ``X``, of shape (n_samples, n_components)."""
        features, dtype = self._features(X)
        return self._array(features).astype(dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return len(self.bias_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.target_tags.required = self.sampling == "ridgelet"
        return tags
