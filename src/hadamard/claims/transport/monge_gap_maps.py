"""Populations to be moved onto each other, and maps that do it: with the Monge gap, without it, and the peers'."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hadamard.transport import (
    Cost,
    Euclidean,
    MongeMapEstimator,
    SquaredEuclidean,
    sinkhorn,
    sinkhorn_divergence,
)

__all__ = [
    "Outcome", "Populations", "best", "cells", "convex", "curves", "divergence", "entropic", "exact_gap", "gaussians",
    "load", "near", "no_gap", "pot_kernel", "pot_linear", "pot_nearest", "trained",
]  # fmt: skip

Pair = tuple[np.ndarray, np.ndarray]


@dataclass
class Populations:
    """Source and target: points to learn from, to choose settings by and to judge by; and what is known of them."""

    train: Pair
    check: Pair
    test: Pair
    cost: Cost
    weights: tuple[float, ...]
    rates: tuple[float, ...]
    training: dict[str, Any]
    best: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass
class Outcome:
    """Where the test points went; or a gap and its gradient."""

    images: np.ndarray | None = None
    gap: float | None = None
    gradient: Tensor | None = None
    check: float = 0.0
    setting: float | None = None
    training: float | None = None  # seconds, without what is compiled before


Settings = tuple[tuple[float, ...], tuple[float, ...], dict[str, Any]]  # weights and learning rates to try; the rest


def gaussians(seed: int, d: int, n: int, settings: Settings) -> Populations:
    """N(0, I) to N(b, A A^T) with a positive definite A: the optimal map is x -> A x + b."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    A, b = Q * rng.uniform(0.5, 2.0, d) @ Q.T, rng.normal(size=d) * 2

    def draw() -> Pair:
        x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d)) @ A + b
        return x.astype(np.float32), y.astype(np.float32)

    return Populations(draw(), draw(), draw(), SquaredEuclidean(), *settings, lambda x: x @ A + b)


def curves(seed: int, n: int, settings: Settings, shallow: bool = False) -> Populations:
    """A half moon to an S-curve below it, or to a shallow arc, with the Euclidean distance.

    Optimal are the maps whose lines do not cross. Some of these lines meet the S-curve three times, so that neighbours
    have to go to different branches of it, and no continuous map is optimal; the arc, a thin band, has no such folds.
    """
    from sklearn.datasets import make_moons, make_s_curve

    turn = np.array([[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]])

    def draw(seed: int) -> Pair:
        moon, _ = make_moons((n, 0), noise=0.01, random_state=seed)
        curve = 0.6 * make_s_curve(n, noise=0.01, random_state=seed)[0][:, [2, 0]]
        if shallow:
            curve = np.stack([curve[:, 0], 0.3 * curve[:, 0] ** 2 + 0.05 * curve[:, 1]], 1)
        return (moon @ turn.T).astype(np.float32), (curve @ turn + [0.5, -2.0]).astype(np.float32)

    _, rates, training = settings
    training = training | {"gap_reg": 0.01}  # OTT's for this cost; more blurs the optimum, and with it the fit
    return Populations(draw(seed), draw(seed + 1), draw(seed + 2), Euclidean(), (2.0,), rates, training)


def cells(seed: int, d: int, settings: Settings) -> Populations:
    """Monocytes to dendritic cells of human blood, in the first principal components of their expression."""
    from hadamard.data import blood_cells

    rng, blood = np.random.default_rng(seed), blood_cells()
    sides = [rng.permutation(blood.of(kind)[:, :d]) for kind in ("CD14+ Monocyte", "Dendritic")]
    train, check, test = zip(*(np.split(z, [len(z) // 2, 3 * len(z) // 4]) for z in sides), strict=True)
    return Populations(train, check, test, SquaredEuclidean(), *settings)


def load() -> None:
    """Load what the first training would load: torch's optimizers import its compiler, which takes seconds."""
    MongeMapEstimator(steps=1).fit(np.eye(3), np.eye(3))


def no_gap(case: Populations) -> Outcome:
    """The same training without the gap."""
    return trained(case, weights=(0.0,))


def near(case: Populations) -> Outcome:
    """Without the gap, but from the estimator's own network, which starts at the identity."""
    return trained(case, weights=(0.0,), map=None)


def convex(case: Populations) -> Outcome:
    """The same fitting loss for the gradient of a convex network, which is optimal whatever it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _ConvexGradient(case.train[0].shape[1])
    return trained(case, weights=(0.0,), map=network)


def trained(case: Populations, weights: tuple[float, ...] | None = None, **options: Any) -> Outcome:
    """The best map from the estimator over the weights and learning rates, by default of a plain network."""
    options = {"map": _perceptron(case.train[0].shape[1]), "cost": case.cost, **case.training, **options}

    def at(weight: float, rate: float) -> Outcome:
        model = MongeMapEstimator(weight=weight, learning_rate=rate, **options)
        start = perf_counter()
        model.fit(*case.train)
        training = perf_counter() - start
        outcome = checked(case, model.transform, weight)
        outcome.training = training
        return outcome

    return best(at(weight, rate) for weight in weights or case.weights for rate in case.rates)


def checked(case: Populations, move: Callable[[np.ndarray], np.ndarray], setting: Any) -> Outcome:
    """Where the test points go, and how good the map looks on points that serve to choose a setting."""
    x, y = case.check
    images = move(x)
    return Outcome(move(case.test[0]), check=divergence(images, y) + exact_gap(x, images, case.cost), setting=setting)


def best(outcomes: Iterable[Outcome]) -> Outcome:
    """The one that looks best on the points that serve to choose."""
    return min(outcomes, key=lambda o: o.check)


def _perceptron(d: int) -> nn.Module:
    """A plain network, as in the paper's experiments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, d))


class _ConvexGradient(nn.Module):
    """The gradient of an input-convex network plus a quadratic."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.into = nn.ModuleList([nn.Linear(d, 64) for _ in range(2)])
        self.between = nn.Parameter(torch.rand(64, 64) / 64)
        self.out = nn.Parameter(torch.rand(64) / 64)
        self.shift = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            z = nn.functional.softplus(self.into[0](x))
            z = nn.functional.softplus(z @ self.between.clamp_min(0).T + self.into[1](x))
            convex = (z @ self.out.clamp_min(0)).sum() + x.square().sum() / 4 + (x @ self.shift).sum()
            return torch.autograd.grad(convex, x, create_graph=self.training)[0]


def entropic(case: Populations) -> Outcome:
    """No training: barycentres of the entropic plan, extended by its potential (Pooladian and Niles-Weed)."""
    x, y = (torch.from_numpy(z).double() for z in case.train)
    M = case.cost.pairwise(x, y)

    def at(relative: float) -> Outcome:
        reg = relative * float(M.mean())
        g = sinkhorn(None, None, M, reg, tol=1e-3).potentials[1]

        def move(points: np.ndarray) -> np.ndarray:
            logits = (g - case.cost.pairwise(torch.from_numpy(points).double(), y)) / reg
            return (logits.softmax(1) @ y).numpy()

        return checked(case, move, relative)

    return best(at(relative) for relative in (0.2, 0.1, 0.05, 0.02))


def pot_linear(case: Populations) -> Outcome:
    """POT's closed form for Gaussians."""
    import ot

    return _pot(case, [ot.da.LinearTransport(reg=reg) for reg in (1e-8, 1e-3, 1e-1)])


def pot_kernel(case: Populations) -> Outcome:
    """POT's kernel map."""
    import ot

    width = float(case.train[0].std())
    settings = [{"mu": mu, "sigma": s * width} for mu in (0.1, 1.0) for s in (1.0, 4.0)]
    return _pot(case, [ot.da.MappingTransport(kernel="gaussian", bias=True, max_iter=10, **s) for s in settings])


def pot_nearest(case: Populations) -> Outcome:
    """POT's exact plan; a new point is moved as its nearest neighbour was."""
    import ot

    return _pot(case, [ot.da.EMDTransport()])


def _pot(case: Populations, models: list[Any]) -> Outcome:
    """The best of some of POT's estimators, which are for the squared Euclidean cost."""
    x, y = (z[: 2 * case.training["batch_size"]].astype(np.float64) for z in case.train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return best(checked(case, partial(_moved, model.fit(Xs=x, Xt=y)), None) for model in models)


def _moved(model: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(model.transform(Xs=x.astype(np.float64)))


def exact_gap(x: np.ndarray, images: np.ndarray, cost: Cost) -> float:
    """Without entropy, by POT's network simplex."""
    import ot

    p, q = torch.from_numpy(x).double(), torch.from_numpy(images).double()
    return float(cost.paired(p, q).mean()) - float(ot.emd2([], [], cost.pairwise(p, q).numpy(), numItermax=1_000_000))


def divergence(images: np.ndarray, y: np.ndarray) -> float:
    """How far the images are from the target, in squared distances."""
    return float(sinkhorn_divergence(torch.from_numpy(images).double(), torch.from_numpy(y).double()))
