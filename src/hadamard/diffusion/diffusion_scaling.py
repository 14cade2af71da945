"""Scaling laws: loss as a sum of power laws of size, data or compute, fitted to runs, with their uncertainty."""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares, nnls
from scipy.special import logsumexp, softmax
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from hadamard.validation import check_range

__all__ = ["ScalingLaw", "extrapolation_error", "pareto_front"]

_EXPONENTS = np.geomspace(0.02, 2.5, 12)
_POLISHED = 3


class ScalingLaw(RegressorMixin, BaseEstimator):
    """Fit ``loss = E + sum_j A_j x_j^(-a_j)`` to finished runs, to forecast the next one before it is paid for.

    One column x (compute, or parameters) gives a power law with or without a floor; two, parameters and data, give the
    law of Hoffmann et al., from which :meth:`optimal_split` reads how to spend a budget.

    Parameters
    ----------
    offset
        Whether there is a floor E, below which no size comes. ``"auto"``: whichever predicts the dearest 40 % of the
        runs better from the others (:func:`extrapolation_error`).
    delta
        Residuals of the logarithm beyond which the Huber loss grows linearly, so that a run that went wrong does not
        bend the law; about the noise of one run. (Hoffmann et al. take 1e-3, which is nearly least absolute values.)
    bootstrap
        Number of times that the law is fitted again to runs drawn with replacement, which its intervals come from;
        0: no intervals.
    random_state
        Seed of these draws.

    Attributes
    ----------
    floor_
        Whether the law has a floor: what ``"auto"`` chose.
    offset_
        E; 0 where there is none.
    scales_, exponents_
        A and a, one for each column.
    replicates_
        The laws of the bootstrap, one a row: E, A, a.
    error_
        Root mean square residual of the logarithm: relative, at small values.

    Raises
    ------
    ValueError
        If sizes or losses are not positive and finite, a column is constant, there are fewer runs than parameters, or
        an argument lies outside its range.

    Notes
    -----
    A fit begins at the best of a grid of exponents, where the other parameters solve a least-squares problem with
    positive coefficients, and ends by nonlinear least squares on the logarithm. It fits errors, which fall: for a score
    that rises to 1 pass ``1 - score``. A floor is only known once the runs come near it; its interval says so. Take
    each run at its end, or the :func:`pareto_front` of curves.

    References
    ----------
    H. Li et al. On the Scalability of Diffusion-based Text-to-Image Generation. CVPR 2024, arXiv:2404.02883.
    J. Hoffmann et al. Training Compute-Optimal Large Language Models. NeurIPS 2022, arXiv:2203.15556 (law of two
    variables, Huber loss).

    Examples
    --------
    >>> size = np.array([1e6, 2e6, 4e6, 8e6, 16e6, 32e6])
    >>> law = ScalingLaw(bootstrap=0).fit(size, 0.5 + 30 * size**-0.3)
    >>> round(float(law.exponents_[0]), 4), round(law.offset_, 4), round(float(law.predict([1e9])[0]), 4)
    (0.3, 0.5, 0.5599)
    """

    def __init__(
        self, offset: bool | str = True, delta: float = 1e-2, bootstrap: int = 200, random_state: Any = None
    ) -> None:
        self.offset = offset
        self.delta = delta
        self.bootstrap = bootstrap
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "ScalingLaw":
        """Fit the law.

        Parameters
        ----------
        X
            Sizes, shape (n,) or (n, k) with k at most 3.
        y
            Losses, shape (n,).
        """
        if self.offset not in (True, False, "auto"):
            raise ValueError(f"offset must be True, False or 'auto', got {self.offset!r}")
        check_range(self.delta, "delta", 0, None, closed="neither")
        check_range(self.bootstrap, "bootstrap", 0, integer=True)
        x, losses = _columns(X), _positive(y, "y")
        if losses.shape != x.shape[:1]:
            raise ValueError(f"y must have one loss for each of the {len(x)} runs in X, got shape {losses.shape}")
        if self.offset == "auto":
            errors = {offset: _trial(self, offset, x, losses) for offset in (False, True)}
            self.floor_ = errors[True] < errors[False]
        else:
            self.floor_ = bool(self.offset)
        self._check_enough(x)
        self.n_features_in_ = k = x.shape[1]
        self._middle = np.log(x).mean(0)
        u, v = np.log(x) - self._middle, np.log(losses)
        theta = _fit(u, v, _starts(u, v, self.floor_), self.delta)
        self._theta = theta
        self.error_ = float(np.sqrt(np.square(_log_loss(theta, u) - v).mean()))
        draws = check_random_state(self.random_state)
        enough = 1 + 2 * k
        found: list[np.ndarray] = []
        while len(found) < self.bootstrap:
            at = draws.randint(len(x), size=len(x))
            if len(np.unique(at)) >= min(enough, len(x)) and np.ptp(u[at], 0).all():
                found.append(_fit(u[at], v[at], [theta], self.delta))
        self._thetas = np.array(found).reshape(-1, enough)
        self.replicates_ = np.array([self._natural(t) for t in found]).reshape(-1, enough)
        self.offset_, self.scales_, self.exponents_ = _parts(self._natural(theta), k)
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Forecast the loss of runs of these sizes, shape (n,)."""
        check_is_fitted(self)
        return np.exp(_log_loss(self._theta, self._centred(X)))

    def predict_interval(self, X: ArrayLike, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """The range of the bootstrapped laws' forecasts, which is the law's uncertainty without a new run's noise.

        Parameters
        ----------
        X
            Sizes, as in :meth:`fit`.
        level
            Share of the laws that the range holds, in (0, 1).

        Returns
        -------
        low, high : numpy.ndarray
            Shape (n,) each.
        """
        forecasts = np.array([_log_loss(theta, self._centred(X)) for theta in self._drawn()])
        return tuple(np.exp(np.quantile(forecasts, _ends(level), axis=0)))

    def intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Percentile intervals of E, A and a by name: ``"E"``, ``"A0"``, ``"a0"``, ..."""
        self._drawn()
        k = self.n_features_in_
        names = ["E", *(f"A{j}" for j in range(k)), *(f"a{j}" for j in range(k))]
        low, high = np.quantile(self.replicates_, _ends(level), axis=0)
        return {name: (float(a), float(b)) for name, a, b in zip(names, low, high)}

    def optimal_split(self, compute: float, cost: float = 6.0) -> tuple[float, float]:
        """Where the law of two columns is least on ``cost * x_0 * x_1 = compute``.

        Parameters
        ----------
        compute
            Budget, in the unit of ``cost`` times that of the columns.
        cost
            Operations for each parameter and sample: 6 for a language model's tokens; for a UNet, whose operations are
            no fixed multiple of its parameters, three times the measured operations over the parameters
            (:func:`hadamard.diffusion.profile`).

        Returns
        -------
        x_0, x_1 : float
            Parameters and samples.
        """
        check_is_fitted(self)
        if self.n_features_in_ != 2:
            raise ValueError(f"optimal_split needs a law of two columns, got one of {self.n_features_in_}")
        check_range(compute, "compute", 0, None, closed="neither")
        check_range(cost, "cost", 0, None, closed="neither")
        (A, B), (a, b) = self.scales_, self.exponents_
        if min(a, b) <= 0:
            raise ValueError(f"both exponents must be positive for a best split, got {a:.3g} and {b:.3g}")
        first = float((a * A / (b * B)) ** (1 / (a + b)) * (compute / cost) ** (b / (a + b)))
        return first, compute / cost / first

    def _check_enough(self, x: np.ndarray) -> None:
        need = 2 * x.shape[1] + self.floor_
        if len(x) < need:
            raise ValueError(f"X must hold at least {need} runs for a law of as many parameters, got {len(x)}")
        for j, column in enumerate(x.T):
            if len(np.unique(column)) < 2:
                raise ValueError(f"X must hold different sizes, got {column[0]:g} everywhere in column {j}")

    def _centred(self, X: ArrayLike) -> np.ndarray:
        x = _columns(X)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} column(s), got shape {x.shape}")
        return np.log(x) - self._middle

    def _drawn(self) -> np.ndarray:
        check_is_fitted(self)
        if not len(self._thetas):
            raise ValueError("bootstrap must be positive for intervals, got 0")
        return self._thetas

    def _natural(self, theta: np.ndarray) -> np.ndarray:
        """E, A, a of a law in the centred logarithms."""
        k = self.n_features_in_
        a = theta[1 + k :]
        return np.concatenate([np.exp(theta[:1]), np.exp(theta[1 : 1 + k] + a * self._middle), a])


def extrapolation_error(law: ScalingLaw, X: ArrayLike, y: ArrayLike, share: float = 0.6) -> float:
    """Fit a law to the smaller runs and say how far off the larger ones it forecasts.

    Parameters
    ----------
    law
        The law to judge; it is left as it is.
    X, y
        Sizes and losses, as in :meth:`ScalingLaw.fit`; smaller is the run with the smaller product of sizes.
    share
        Of the runs that it is fitted to, in (0, 1).

    Returns
    -------
    float
        Mean relative error of the forecasts.
    """
    check_range(share, "share", 0, 1, closed="neither")
    x, losses = _columns(X), np.asarray(y, dtype=float)
    order = np.argsort(np.log(x).sum(1), kind="stable")
    count = min(max(round(share * len(x)), 1), len(x) - 1)
    known, rest = order[:count], order[count:]
    fitted = clone(law).set_params(bootstrap=0).fit(x[known], losses[known])
    return float(np.abs(fitted.predict(x[rest]) / losses[rest] - 1).mean())


def pareto_front(compute: ArrayLike, loss: ArrayLike) -> np.ndarray:
    """The runs than which none was both cheaper and better: their numbers, by rising compute.

    Parameters
    ----------
    compute, loss
        Of the runs, or of points on their curves; shape (n,).

    Examples
    --------
    >>> pareto_front([1, 2, 3, 4], [0.9, 0.5, 0.6, 0.4])
    array([0, 1, 3])
    """
    spent, losses = _positive(compute, "compute"), np.asarray(loss, dtype=float)
    if losses.shape != spent.shape or not np.isfinite(losses).all():
        raise ValueError(f"loss must be finite, one for each of the {len(spent)} runs, got shape {losses.shape}")
    order = np.lexsort([losses, spent])
    best = np.minimum.accumulate(losses[order])
    return order[np.concatenate([[True], losses[order][1:] < best[:-1]])]


def _trial(law: ScalingLaw, offset: bool, x: np.ndarray, y: np.ndarray) -> float:
    try:
        return extrapolation_error(clone(law).set_params(offset=offset), x, y)
    except ValueError:  # too few runs for the part that it would be fitted to
        return np.inf


def _columns(X: ArrayLike) -> np.ndarray:
    x = _positive(X, "X", ndim=(1, 2))
    x = x.reshape(len(x), -1)
    if x.shape[1] > 3:
        raise ValueError(f"X must have at most 3 columns, got shape {x.shape}")
    return x


def _positive(values: ArrayLike, name: str, ndim: tuple[int, ...] = (1,)) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim not in ndim or not x.size:
        raise ValueError(f"{name} must have {' or '.join(map(str, ndim))} dimension(s) and not be empty, got {x.shape}")
    bad = ~(np.isfinite(x) & (x > 0))
    if bad.any():
        raise ValueError(f"{name} must be positive and finite, got {x[bad][0]}")
    return x


def _ends(level: float) -> tuple[float, float]:
    check_range(level, "level", 0, 1, closed="neither")
    return (1 - level) / 2, (1 + level) / 2


def _parts(natural: np.ndarray, k: int) -> tuple[float, np.ndarray, np.ndarray]:
    return float(natural[0]), natural[1 : 1 + k], natural[1 + k :]


def _terms(theta: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Logarithms of the law's terms, (n, 1 + k); theta = log E, log A (at the middle), a."""
    k = u.shape[1]
    return np.column_stack([np.full(len(u), theta[0]), theta[1 : 1 + k] - theta[1 + k :] * u])


def _log_loss(theta: np.ndarray, u: np.ndarray) -> np.ndarray:
    return logsumexp(_terms(theta, u), 1)


def _starts(u: np.ndarray, v: np.ndarray, floor: bool) -> list[np.ndarray]:
    """The best exponents of a grid, with the coefficients that fit best to them."""
    found = []
    for exponents in product(_EXPONENTS, repeat=u.shape[1]):
        terms = np.exp(-np.array(exponents) * u)
        basis = np.column_stack([np.ones(len(u)), terms]) if floor else terms
        weights, error = nnls(basis / np.exp(v)[:, None], np.ones(len(u)))
        if not floor:
            weights = np.concatenate([[0], weights])
        tiny = np.full(len(weights), np.log(1e-3) + v.min())
        tiny[0] = tiny[0] if floor else -np.inf
        logs = np.log(weights, out=tiny, where=weights > 0)
        found.append((error, np.concatenate([logs, exponents])))
    return [theta for _, theta in sorted(found, key=lambda pair: pair[0])[:_POLISHED]]


def _fit(u: np.ndarray, v: np.ndarray, starts: list[np.ndarray], delta: float) -> np.ndarray:
    """Huber's fit from the best of some starts; a floor of log E = -inf stays where it is."""
    free = np.isfinite(starts[0])

    def whole(part: np.ndarray) -> np.ndarray:
        theta = np.full(len(free), -np.inf)
        theta[free] = part
        return theta

    def residual(part: np.ndarray) -> np.ndarray:
        return _log_loss(whole(part), u) - v

    def slope(part: np.ndarray) -> np.ndarray:
        shares = softmax(_terms(whole(part), u), 1)
        return np.column_stack([shares, -shares[:, 1:] * u])[:, free]

    best = min(
        (
            least_squares(residual, start[free], slope, loss="huber", f_scale=delta, xtol=1e-9, ftol=1e-9, gtol=1e-9)
            for start in starts
        ),
        key=lambda found: found.cost,
    )
    return whole(best.x)
