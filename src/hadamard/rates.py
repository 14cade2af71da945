"""Rates of growth and decay, read off measurements."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["loglog_slope"]


def loglog_slope(x: ArrayLike, y: ArrayLike) -> tuple[float, float, float]:
    """Fit the exponent ``p`` of a power law ``y = c * x^p`` by least squares on the logarithms.

    Parameters
    ----------
    x, y
        Positive measurements, shape (n,) with n >= 2 and at least two different ``x``.

    Returns
    -------
    slope, low, high : float
        The exponent and its 95 % confidence interval (Student's t; the slope itself where n = 2).

    Raises
    ------
    ValueError
        If the shapes differ or are not one-dimensional, there are fewer than two different ``x``, or a value is not
        positive and finite.

    Examples
    --------
    >>> slope, low, high = loglog_slope([1, 2, 4, 8], [3, 12, 48, 192])
    >>> round(slope, 12)
    2.0
    """
    points = {"x": np.asarray(x, dtype=float), "y": np.asarray(y, dtype=float)}
    for name, values in points.items():
        if values.ndim != 1:
            raise ValueError(f"{name} must have 1 dimension(s), got shape {values.shape}")
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise ValueError(f"{name} must be positive and finite, got {values[bad][0]}")
    u, v = np.log(points["x"]), np.log(points["y"])
    if len(u) != len(v):
        raise ValueError(f"x and y must have the same length, got {len(u)} and {len(v)}")
    if len(np.unique(u)) < 2:
        raise ValueError(f"x must hold at least two different values, got {len(np.unique(u))}")
    u, v = u - u.mean(), v - v.mean()
    slope = float(u @ v / (u @ u))
    if len(u) == 2:
        return slope, slope, slope
    error = np.sqrt(np.sum((v - slope * u) ** 2) / (len(u) - 2) / (u @ u))
    margin = float(stats.t.ppf(0.975, len(u) - 2) * error)
    return slope, slope - margin, slope + margin
