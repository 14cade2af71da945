"""A signal that may appear in any patch of an image, and a classifier with and without its structure.

An image ``x`` of k patches in R^d holds, in one patch t that is drawn anew for every image, ``y w + sigma g_t``, and in
all others noise only; the label is the sign ``y``. A linear rule sums the noise of all patches; units with a threshold
tell signal from noise. How many images it takes to learn them depends on what the network knows beforehand. Up to
logarithms, for constant noise and a constant error, training that commutes with rotations of the input takes ``k + d``
images for a convolutional network, at least ``k d`` for a locally connected one (and no more than ``k (k + d)``), and
at least ``k^2 d`` for a fully connected one.

References
----------
A. Lahoti, S. Karp, E. Winston, A. Singh, Y. Li, "Role of Locality and Weight Sharing in Image-Based Tasks: A Sample
Complexity Separation between CNNs, LCNs, and FCNs", ICLR 2024, arXiv:2403.15707.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from hadamard.estimators import TorchEstimator
from hadamard.learning.dynamic_signal_nets import PatchThresholdNet, responses, train_patches
from hadamard.validation import check_range

__all__ = ["DSDClassifier", "DynamicSignal", "bayes_error", "make_dynamic_signal"]


@dataclass(frozen=True)
class DynamicSignal:
    """What a sample of :func:`make_dynamic_signal` holds besides images and labels.

    Attributes
    ----------
    signal
        The direction w, shape (patch_dim,).
    location
        Index of the patch that holds the signal, shape (n_samples,).
    """

    signal: NDArray[np.floating]
    location: NDArray[np.integer]


def make_dynamic_signal(
    n_samples: int = 100,
    n_patches: int = 8,
    patch_dim: int = 16,
    *,
    noise: float = 0.25,
    signal: Any = None,
    static: bool = False,
    random_state: Any = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64], DynamicSignal]:
    """Draw images with a signal of random sign in a random patch, in the manner of ``sklearn.datasets``.

    Parameters
    ----------
    n_samples
        Number of images n.
    n_patches, patch_dim
        Number of patches k and their size d.
    noise
        Standard deviation sigma of the noise in every entry, the signal's own patch included.
    signal
        The direction w, shape (patch_dim,), used as it is; ``None``: a random one of norm 1.
    static
        Put the signal into the first patch of every image.
    random_state
        Seed, ``numpy.random.RandomState`` or ``None``.

    Returns
    -------
    X : ndarray of shape (n_samples, n_patches * patch_dim)
        Images, patch after patch: ``X.reshape(n, 1, -1)`` is a one-dimensional image with one channel.
    y : ndarray of shape (n_samples,)
        Labels, -1 or 1.
    info : DynamicSignal
        The direction, and where it was put.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range or no integer, or ``signal`` has another shape or is not finite.

    References
    ----------
    A. Lahoti, S. Karp, E. Winston, A. Singh, Y. Li. Role of Locality and Weight Sharing in Image-Based Tasks. ICLR
    2024. arXiv:2403.15707.

    Examples
    --------
    >>> X, y, info = make_dynamic_signal(500, n_patches=4, patch_dim=3, noise=0.0, random_state=0)
    >>> bool(np.allclose(X.reshape(500, 4, 3).sum(1), y[:, None] * info.signal))
    True
    """
    for value, name in ((n_samples, "n_samples"), (n_patches, "n_patches"), (patch_dim, "patch_dim")):
        check_range(value, name, 1, integer=True)
    check_range(noise, "noise", 0)
    random = check_random_state(random_state)
    if signal is None:
        w = random.normal(size=patch_dim)
        w /= np.linalg.norm(w)
    else:
        w = np.asarray(signal, dtype=np.float64)
        if w.shape != (patch_dim,) or not np.isfinite(w).all():
            raise ValueError(f"signal must be {patch_dim} finite numbers, got {signal!r}")
    y = 2 * random.randint(2, size=n_samples) - 1
    location = np.zeros(n_samples, dtype=int) if static else random.randint(n_patches, size=n_samples)
    X = noise * random.normal(size=(n_samples, n_patches, patch_dim))
    X[np.arange(n_samples), location] += y[:, None] * w
    return X.reshape(n_samples, -1), y.astype(np.int64), DynamicSignal(w, location)


def bayes_error(n_patches: int, noise: float, *, n_draws: int = 100_000, random_state: Any = None) -> float:
    """The least error that any rule can have, even one that knows the signal (of norm 1), by Monte Carlo.

    Knowing w, only ``s_j = <w, x_j>`` matters, whatever the size of the patches; the log-odds of the label are
    ``logsumexp(s / sigma^2) - logsumexp(-s / sigma^2)``. Averaged is the posterior of the less likely label.

    Parameters
    ----------
    n_patches, noise
        As in :func:`make_dynamic_signal`.
    n_draws
        Images that are drawn; the standard error is below ``0.5 / sqrt(n_draws)``.
    random_state
        Seed, ``numpy.random.RandomState`` or ``None``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> [round(bayes_error(8, noise, random_state=0), 2) for noise in (0.25, 0.5)]
    [0.01, 0.19]
    """
    check_range(n_patches, "n_patches", 1, integer=True)
    check_range(noise, "noise", 0)
    check_range(n_draws, "n_draws", 1, integer=True)
    if noise == 0:
        return 0.0
    s = noise * check_random_state(random_state).normal(size=(n_draws, n_patches))
    s[:, 0] += 1
    s /= noise**2
    odds = np.logaddexp.reduce(s, axis=1) - np.logaddexp.reduce(-s, axis=1)
    return float(np.mean(1 / (1 + np.exp(np.minimum(np.abs(odds), 700)))))


class DSDClassifier(ClassifierMixin, TorchEstimator):
    """A network of threshold units over patches, with or without locality and weight sharing, as an estimator.

    Parameters
    ----------
    kind : {"conv", "local", "full"}, default="conv"
        Weight sharing and locality; locality; neither.
    n_patches : int, default=1
        Number k of patches: columns of ``X``, patch after patch, in k equal parts.
    optimizer : {"adam", "gd"}, default="adam"
        As in :func:`train_patches`.
    learning_rate : float, default=0.05
    steps : int, default=150
    weight_decay : float, default=1e-3
        Of the training.
    random_state : int, RandomState instance or None, default=None
        Of the first weights.

    Attributes
    ----------
    coef_ : ndarray
        The weights, of shape (d,), (k, d) or (k, k d).
    threshold_ : float
        The level below which units are silent.
    classes_ : ndarray of shape (2,)
        The labels.

    Raises
    ------
    ValueError
        By ``fit``, if there are not two classes, the columns do not divide into patches, a value is missing or
        infinite, or a parameter is out of range.

    Notes
    -----
    An odd function of the image: ``-x`` gets the other label. It has no intercept. Do not use it as a classifier of
    photographs; it is the smallest model in which locality and weight sharing can be told apart. Where patterns do not
    move, ``"local"`` and ``"full"`` lose nothing that ``"conv"`` has.

    References
    ----------
    A. Lahoti, S. Karp, E. Winston, A. Singh, Y. Li. Role of Locality and Weight Sharing in Image-Based Tasks. ICLR
    2024. arXiv:2403.15707.

    Examples
    --------
    >>> X, y, _ = make_dynamic_signal(600, n_patches=8, patch_dim=16, random_state=0)
    >>> scores = [
    ...     DSDClassifier(kind, n_patches=8, random_state=0).fit(X[:100], y[:100]).score(X[100:], y[100:])
    ...     for kind in ("conv", "local", "full")
    ... ]
    >>> scores[0] > 0.9 > scores[1]
    True
    """

    def __init__(
        self,
        kind: str = "conv",
        n_patches: int = 1,
        *,
        optimizer: str = "adam",
        learning_rate: float = 0.05,
        steps: int = 150,
        weight_decay: float = 1e-3,
        random_state: Any = None,
    ) -> None:
        self.kind = kind
        self.n_patches = n_patches
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.steps = steps
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "DSDClassifier":
        """Train on images of shape (n_samples, n_patches * patch_dim) with two kinds of labels."""
        check_range(self.n_patches, "n_patches", 1, integer=True)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        if (target := type_of_target(y, input_name="y", raise_unknown=True)) != "binary":
            raise ValueError(f"Only binary classification is supported. The type of the target is {target}.")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) != 2:
            raise ValueError(f"y must hold two classes, got one class only: {self.classes_[0]!r}")
        if X.shape[1] % self.n_patches:
            raise ValueError(f"X must have a multiple of n_patches={self.n_patches} columns, got {X.shape[1]}")
        x = torch.from_numpy(X)
        patch_dim = X.shape[1] // self.n_patches
        net = PatchThresholdNet(self.kind, self.n_patches, patch_dim, generator=self._generator(), dtype=x.dtype)
        train_patches(
            net, x, torch.from_numpy(2 * codes - 1).to(x.dtype), optimizer=self.optimizer,
            learning_rate=self.learning_rate, steps=self.steps, weight_decay=self.weight_decay,
        )  # fmt: skip
        self.coef_, self.threshold_ = self._array(net.weight), float(net.threshold.detach())
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of shape (n_samples,): positive for ``classes_[1]``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self.coef_.dtype, reset=False)
        x = torch.from_numpy(X).unflatten(1, (self.n_patches, -1))
        weight = torch.from_numpy(self.coef_)
        return self._array(responses(x, weight, weight.new_tensor(self.threshold_), self.kind))

    def predict(self, X: Any) -> np.ndarray:
        """Labels of shape (n_samples,)."""
        check_is_fitted(self)
        return self.classes_[(self.decision_function(X) > 0).astype(int)]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.poor_score = True  # an odd function: classes on one side of the origin look alike
        return tags
