"""Ridge features with random weights, and the linear fit on top of them.

A feature is ``activation(a . x - b)``. What is linear about the model is solved once, by a singular value
decomposition, and then read off for every strength of the penalty.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = [
    "ACTIVATIONS", "PERIODIC", "Ridge", "RidgeFit", "as_matrix", "bias_reach", "neighbour_frequency", "some_rows",
    "uniform",
]  # fmt: skip

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cos": torch.cos,
    "sin": torch.sin,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gauss": lambda z: torch.exp(-z * z / 2),
}
PERIODIC = ("cos", "sin")


@dataclass(frozen=True)
class Ridge:
    """The feature map ``x -> activation(x W^T - b)``, for points of shape (..., n, d)."""

    weights: Float[Tensor, "features d"]
    bias: Float[Tensor, " features"]
    activation: str

    def __call__(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n features"]:
        """Evaluate all features at all points."""
        return ACTIVATIONS[self.activation](x @ self.weights.mT - self.bias)


def uniform(count: int, d: int, bandwidth: float, reach: float, activation: str, generator: torch.Generator) -> Ridge:
    """Weights uniform in ``[-bandwidth, bandwidth]^d``, biases uniform in ``[-reach, reach]``, in float64.

    The same generator gives the same draw up to scale, whatever the bandwidth.
    """
    draw = torch.rand(count, d + 1, generator=generator, dtype=torch.float64, device=generator.device) * 2 - 1
    return Ridge(bandwidth * draw[:, :d], reach * draw[:, d], activation)


def bias_reach(bandwidth: float, radius: float, activation: str, bias_range: float | None) -> float:
    """How far biases go: as given, else half a period, or as far as puts the ridges' centres among the points."""
    if bias_range is not None:
        return check_range(bias_range, "bias_range", 0)
    return math.pi if activation in PERIODIC else bandwidth * radius


class RidgeFit:
    """Penalised least squares of ``y`` on centred features, for all penalties at once.

    Parameters
    ----------
    features
        Shape (n, m), in float64.
    y
        Targets, shape (n,).
    rcond
        Directions of the features whose singular value is at most ``rcond`` times the largest are left out.
    """

    def __init__(self, features: Float[Tensor, "n m"], y: Float[Tensor, " n"], rcond: float) -> None:
        self.mean, self.y_mean = features.mean(0), y.mean()
        self.y = y - self.y_mean
        u, s, vt = torch.linalg.svd(features - self.mean, full_matrices=False)
        rounding = torch.finfo(s.dtype).eps * max(features.shape) * features.abs().max()
        kept = (s > rcond * s[0]) & (s > rounding)
        self.u, self.s, self.v = u[:, kept], s[kept], vt[kept].mT
        self.uy = self.u.mT @ self.y
        self.rest = self.y - self.u @ self.uy
        self.rest = self.rest - self.u @ (self.u.mT @ self.rest)  # twice: it is far below y where the fit is good

    @property
    def rank(self) -> int:
        """Number of directions that the features span, as far as ``rcond`` sees."""
        return len(self.s)

    def penalties(self) -> Float[Tensor, " alphas"]:
        """Penalties to choose among: 0, and three to a decade below the largest squared singular value."""
        top = self.s[0].square() if self.rank else self.rest.new_ones(())
        exponents = torch.arange(-16, 2.01, 1 / 3, dtype=torch.float64, device=top.device)
        return torch.cat([top.new_zeros(1), top * 10**exponents])

    def residuals(self, alphas: Float[Tensor, " alphas"]) -> Float[Tensor, "n alphas"]:
        """``y - prediction`` on the points of the fit, one column for each penalty."""
        return self.rest[:, None] + self.u @ (self._left(alphas) * self.uy[:, None])

    def _left(self, alphas: Tensor) -> Float[Tensor, "rank alphas"]:
        """The share of each direction that a penalty leaves unexplained."""
        return alphas / (self.s.square()[:, None] + alphas)

    def scores(self, alphas: Float[Tensor, " alphas"], rule: str) -> Float[Tensor, " alphas"]:
        """Mean squared error on points left out: exactly (``"loo"``) or with their average leverage (``"gcv"``)."""
        n, left = len(self.y), self._left(alphas)
        if rule == "loo":
            leverage = 1 / n + self.u.square() @ (1 - left)
            free = 1 - leverage
            score = (self.residuals(alphas) / free.clamp(min=1e-300)).square().mean(0)
        else:
            free = 1 - (1 + (1 - left).sum(0, keepdim=True)) / n
            squares = self.rest.square().sum() + (left * self.uy[:, None]).square().sum(0)
            score = squares / n / free.clamp(min=1e-150)[0].square()
        return torch.where((free <= 1e-10).any(0), torch.inf, score)  # nothing is left to judge by

    def choose(self, alpha: float | str) -> tuple[float, float]:
        """The best penalty by a rule, or the one that is given, and its score (by ``"gcv"``)."""
        if not isinstance(alpha, str):
            return float(alpha), float(self.scores(self.y.new_tensor([alpha]), "gcv"))
        alphas = self.penalties()
        scores = self.scores(alphas, alpha)
        if not bool(scores.isfinite().any()):  # one point, or as many directions as points at every penalty
            return float(alphas[-1]), math.inf
        best = int(scores.argmin())
        return float(alphas[best]), float(scores[best])

    def coefficients(self, alpha: float) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
        """Output weights and intercept."""
        coef = self.v @ (self.s / (self.s.square() + alpha) * self.uy)
        return coef, self.y_mean - self.mean @ coef


def some_rows(n: int, most: int, seed: int) -> Tensor:
    """Indices of all rows where they are few, else of a random choice of them."""
    return torch.arange(n) if n <= most else torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most]


def neighbour_frequency(x: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> float:
    """The angular frequency of ``y`` in one coordinate, root mean square, as nearest neighbours show it.

    The ratio of the mean squares of their differences in ``y`` and in ``x``, over the spread of ``y``: noise makes it
    too large. 0 for a constant.
    """
    variance = float((y - y.mean()).square().mean())
    if len(x) < 2 or variance <= (1e-14 * float(y.abs().max())) ** 2:
        return 0.0
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    near, index = distance.masked_fill_(distance == 0, torch.inf).min(1)
    apart = near.isfinite()
    if not bool(apart.any()):
        return 0.0  # one point, many times
    return float((y - y[index])[apart].square().mean() / near[apart].square().mean() / variance) ** 0.5


def as_matrix(x: Tensor, name: str) -> Float[Tensor, "n d"]:
    """Points as rows in float64; a vector is n points on a line."""
    x = check_tensor(x, name, ndim=(1, 2), dtype="floating").to(torch.float64)
    return x[:, None] if x.ndim == 1 else x
