"""Pruning of a trained network, at once and in steps with training in between, by four ways of choosing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from hadamard.claims.optim.m_fac_problem import accuracy, batches, network, split_digits
from hadamard.optim import cubic_amounts, loss_gradients, prune_obs

__all__ = ["DIAGONAL", "MAGNITUDE", "ONE_ROUND", "PAPER", "Gradual", "OneShot"]

PAPER, ONE_ROUND = "M-FAC, the paper's correction", "M-FAC in one round"
MAGNITUDE, DIAGONAL = "magnitude", "diagonal Fisher"


@dataclass(frozen=True)
class OneShot:
    """A trained network pruned at once; no training afterwards."""

    sparsities: tuple[float, ...]
    seeds: int
    damps: tuple[float, ...]

    def __call__(self, name: str) -> dict[str, Any]:
        """Test accuracies by sparsity at the damp that is best on the validation data."""
        damps = self.damps[:1] if name == MAGNITUDE else self.damps
        tried = {damp: [self._runs(name, s, damp) for s in self.sparsities] for damp in damps}
        best = max(tried, key=lambda damp: mean(v for runs in tried[damp] for v, _ in runs))
        found = {s: _summary([a for _, a in runs]) for s, runs in zip(self.sparsities, tried[best])}
        dense = mean(accuracy(_trained(seed), *split_digits()[2]) for seed in range(self.seeds))
        return {
            "found": found,
            "dense": dense,
            "damp": None if name == MAGNITUDE else best,
            "accuracy": found[max(self.sparsities)][0],
        }

    def _runs(self, name: str, sparsity: float, damp: float) -> list[tuple[float, float]]:
        pairs = []
        for seed in range(self.seeds):
            net = _trained(seed)
            _prune(name, net, sparsity, damp, 16, _loader(seed))
            pairs.append(_accuracies(net))
        return pairs


@dataclass(frozen=True)
class Gradual:
    """Four prunings by the cubic schedule with training after each: the same budget of epochs for all."""

    sparsities: tuple[float, ...]
    seeds: int
    epochs: int
    rates: tuple[float, ...]
    damps: tuple[float, ...]

    def __call__(self, name: str) -> dict[str, Any]:
        """Test accuracies by sparsity at the setting that is best on the validation data."""
        damps = self.damps[:1] if name == MAGNITUDE else self.damps
        tried = {
            setting: [[self._run(name, s, seed, *setting) for seed in range(self.seeds)] for s in self.sparsities]
            for setting in product(self.rates, damps)
        }
        best = max(tried, key=lambda setting: mean(v for runs in tried[setting] for v, _ in runs))
        found = {s: _summary([a for _, a in runs]) for s, runs in zip(self.sparsities, tried[best])}
        top = found[max(self.sparsities)]
        damp = None if name == MAGNITUDE else best[1]
        return {"found": found, "rate": best[0], "damp": damp, "accuracy": top[0], "half-width": top[1]}

    def _run(self, name: str, sparsity: float, seed: int, rate: float, damp: float) -> tuple[float, float]:
        net, loader = _trained(seed), _loader(seed)
        for step, amount in enumerate(cubic_amounts(sparsity, 4)):
            _prune(name, net, amount, damp, 4, loader)
            _train(net, rate, self.epochs, 100 * seed + step)
        return _accuracies(net)


def _prune(name: str, net: nn.Module, amount: float, damp: float, rounds: int, loader: DataLoader[Any]) -> None:
    weights = [(module, "weight") for module in net.modules() if isinstance(module, nn.Linear)]
    if name == MAGNITUDE:  # without new weights in between, rounds would change nothing
        prune.global_unstructured(weights, prune.L1Unstructured, amount=amount)
    elif name == DIAGONAL:
        for _ in range(rounds):
            _diagonal(net, weights, 1 - (1 - amount) ** (1 / rounds), damp, loader)
    else:
        correction = "independent" if name == PAPER else "joint"
        rounds = 1 if name == ONE_ROUND else rounds
        prune_obs(
            net, loader, F.cross_entropy, amount, damp=damp, correction=correction, rounds=rounds, per_sample=True
        )


def _diagonal(
    net: nn.Module, weights: Sequence[tuple[nn.Module, str]], amount: float, damp: float, loader: DataLoader[Any]
) -> None:
    """By ``w^2 F_qq``, what the surgeon's score is where F is diagonal; no weight changes then."""
    tensors = [next(p for n, p in module.named_parameters() if n.startswith("weight")) for module, _ in weights]
    squares = loss_gradients(net, loader, F.cross_entropy, tensors, per_sample=True).square().mean(0) + damp
    parts = squares.split([w.numel() for w in tensors])
    scores = {pair: w.detach().square() * f.view_as(w) for pair, w, f in zip(weights, tensors, parts)}
    prune.global_unstructured(weights, prune.L1Unstructured, importance_scores=scores, amount=amount)


def _loader(seed: int) -> DataLoader[Any]:
    """Batches of what is learnt from, in another order each time."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*split_digits()[0]), batch_size=256, shuffle=True, generator=generator)


def _accuracies(net: nn.Module) -> tuple[float, float]:
    _, validation, test = split_digits()
    return accuracy(net, *validation), accuracy(net, *test)


def _summary(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's)."""
    n = len(values)
    return mean(values), float(student.ppf(0.975, n - 1)) * stdev(values) / n**0.5 if n > 1 else 0.0


def _train(net: nn.Module, rate: float, epochs: int, seed: int) -> None:
    (x, y), optimizer = split_digits()[0], torch.optim.Adam(net.parameters(), rate)
    for batch in batches(len(x), 32, epochs, seed):
        optimizer.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()


def _trained(seed: int) -> nn.Sequential:
    """A copy of the network that Adam has trained."""
    net = network(seed)
    net.load_state_dict(_weights(seed))
    return net


@cache
def _weights(seed: int) -> dict[str, Tensor]:
    net = network(seed)
    _train(net, 1e-3, 20, seed)
    return net.state_dict()
