"""Layers that are orthogonal in one way or another, and small classifiers of digits made of them: trained, attacked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from hadamard.data import digits
from hadamard.layers import OrthogonalConv2d, OrthogonalRegularizer, conv_singular_values

__all__ = [
    "AOC",
    "BJORCK",
    "EXACT",
    "PENALTY",
    "PLAIN",
    "RESHAPED",
    "SPECTRAL",
    "Layers",
    "Training",
    "layers",
    "penalised",
]

PLAIN, PENALTY, EXACT = "nn.Conv2d", "nn.Conv2d + L_orth", "OrthogonalConv2d"
AOC, BJORCK = "orthogonium AOC", "deel-torchlip SpectralConv2d"
RESHAPED, SPECTRAL = "torch orthogonal, reshaped", "torch spectral_norm"
SHAPES = (
    (1, 8, 3, 1),
    (8, 16, 4, 2),
    (16, 16, 4, 2),
    (16, 10, 2, 2),
)  # channels in and out, kernel, stride; 8 x 8 pixels
TEMPERATURE = 10.0  # logits of a 1-Lipschitz network are small: all networks are trained on ten times theirs


def penalised(lam: float) -> str:
    """Name of the contender with this weight of the penalty."""
    return f"lambda = {lam:g}"


class _Reshaped(nn.Conv2d):
    """torch's orthogonal parametrisation of the kernel as a matrix, which is what most people reach for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        shape = self.weight.shape
        del self.weight
        self.matrix: nn.Linear = parametrizations.orthogonal(  # type: ignore[assignment]
            nn.Linear(math.prod(shape[1:]), shape[0], bias=False)
        )
        self.shape = shape

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.matrix.weight.reshape(self.shape)


def convolution(kind: str, c: int, m: int, k: int, stride: int = 1) -> nn.Module:
    """A layer with circular padding of one of the contenders."""
    options: dict[str, Any] = {"stride": stride, "padding": (k - 1) // 2, "padding_mode": "circular"}
    if kind == EXACT:
        return OrthogonalConv2d(c, m, k, **options)
    if kind == AOC:
        from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d

        return AdaptiveOrthoConv2d(c, m, k, **options)
    if kind == BJORCK:
        from deel.torchlip import SpectralConv2d

        return SpectralConv2d(c, m, k, **options)
    if kind == RESHAPED:
        return _Reshaped(c, m, k, **options)
    layer = nn.Conv2d(c, m, k, **options)
    return parametrizations.spectral_norm(layer) if kind == SPECTRAL else layer


@dataclass(frozen=True)
class Layers:
    """One training step's work of a layer: forward and backward."""

    x: Tensor
    layers: dict[str, nn.Module]

    def __call__(self, kind: str) -> dict[str, float]:
        """Run it."""
        layer = self.layers[kind]
        y = layer(self.x).square().mean()
        (y + OrthogonalRegularizer(layer, 1.0)() if kind == PENALTY else y).backward()
        return {}


def layers(seed: int, batch: int, channels: int) -> Layers:
    """Layers of 3 x 3 taps on images of 16 x 16 pixels."""
    x = torch.randn(batch, channels, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kinds = (PLAIN, PENALTY, EXACT, AOC, BJORCK, RESHAPED, SPECTRAL)
        return Layers(x, {kind: convolution(kind, channels, channels, 3) for kind in kinds})


@cache
def _data() -> tuple[Tensor, Tensor]:
    """Digits and their labels, mixed: 1,100 to train on, 247 to choose by, 450 to test on."""
    data = digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    return data.images[order], data.labels[order]


TRAIN, CHOOSE, TEST = slice(0, 1100), slice(1100, 1347), slice(1347, None)


@dataclass(frozen=True)
class Training:
    """Networks from several seeds, each at the learning rate that is best on images that it is not tested on."""

    steps: int
    rates: Sequence[float]
    seeds: int
    attack: int
    eps: float = 0.5

    def __call__(self, kind: str, lam: float) -> dict[str, Any]:
        """Train, attack, and average over the seeds."""
        runs = [max((self._train(kind, lam, rate, s) for rate in self.rates), key=_chosen) for s in range(self.seeds)]
        return {name: fmean(run[name] for run in runs) for name in runs[0]}

    def _train(self, kind: str, lam: float, rate: float, seed: int) -> dict[str, float]:
        images, labels = _data()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _network(kind)
        regularizer = OrthogonalRegularizer(net, lam) if lam else None
        optimizer, generator = (
            _Adam([w for w in net.parameters() if w.requires_grad]),
            torch.Generator().manual_seed(seed),
        )
        for t in range(self.steps):
            rows = torch.randint(TRAIN.stop, (64,), generator=generator)
            loss = F.cross_entropy(TEMPERATURE * net(images[rows]), labels[rows])
            optimizer.step(
                loss if regularizer is None else loss + regularizer(),
                rate * (1 + math.cos(math.pi * t / self.steps)) / 2,
            )
        return self._measure(net.eval().requires_grad_(False), rate)

    def _measure(self, net: nn.Module, rate: float) -> dict[str, float]:
        images, labels = _data()
        with parametrize.cached():
            x, y = images[TEST], labels[TEST]
            attacked = pgd(lambda z: TEMPERATURE * net(z), x, y, self.eps, self.attack)
            ranges = _singular_ranges(net)
            return {
                "chosen by": _accuracy(net, images[CHOOSE], labels[CHOOSE]),
                "accuracy": _accuracy(net, x, y),
                "robust accuracy": _accuracy(net, attacked, y),
                "product of sigma_max": math.prod(high for high, _ in ranges),
                "sigma_min": min(low for _, low in ranges),
                "best rate": rate,
            }


class _Adam:
    """Adam, written out: torch.optim takes seconds to import."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights, self.count = weights, 0
        self.first, self.second = ([torch.zeros_like(w) for w in weights] for _ in range(2))

    def step(self, loss: Tensor, rate: float) -> None:
        """One step down."""
        grads = torch.autograd.grad(loss, self.weights, materialize_grads=True)
        self.count += 1
        with torch.no_grad():
            for w, g, m, v in zip(self.weights, grads, self.first, self.second):
                m.lerp_(g, 0.1)
                v.lerp_(g.square(), 0.001)
                root = (v / (1 - 0.999**self.count)).sqrt_().add_(1e-8)
                w.addcdiv_(m, root, value=-rate / (1 - 0.9**self.count))


def pgd(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Raise the loss within an l2 ball of radius ``eps`` around each image, by projected gradient ascent."""
    change = torch.zeros_like(x)
    for _ in range(steps):
        change.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(x + change), y, reduction="sum"), change)
        change = change.detach() + 2.5 * eps / steps * F.normalize(grad.flatten(1)).view_as(x)
        norms = change.flatten(1).norm(dim=1).clamp(min=eps).view(-1, 1, 1, 1)
        change = change * eps / norms
    return x + change


def _network(kind: str) -> nn.Sequential:
    parts: list[nn.Module] = []
    for shape in SHAPES:
        parts += [convolution(kind, *shape), nn.ReLU()]
    return nn.Sequential(*parts[:-1], nn.Flatten())


def _chosen(run: dict[str, float]) -> float:
    return run["chosen by"]


def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).float().mean())


def _singular_ranges(net: nn.Module) -> list[tuple[float, float]]:
    """Largest and smallest singular value of each convolution at the size at which it is used."""
    size, ranges = 8, []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            values = conv_singular_values(layer.weight.detach(), size, layer.stride[0])
            ranges.append((float(values[0]), float(values[-1])))
            size //= layer.stride[0]
    return ranges
