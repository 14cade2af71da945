"""Half-spaces with known worst cases, images with networks trained under noise, and the time of a certificate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard.certification import (
    DualSmooth,
    RandomizedSmoothing,
    SmoothingCertificate,
    SplitNoise,
    binomial_lower,
    dual_radius,
)
from hadamard.data import digits, fashion_mnist

__all__ = [
    "CIFAR", "COST", "DIMENSIONS", "FEW", "HALF_SPACES", "IMAGENET", "LEFT", "LOOP", "LOOP_LARGE", "OURS", "PLAIN",
    "Images", "problem", "title",
]  # fmt: skip

OURS, PLAIN = "dual smoothing", "plain smoothing"
CIFAR, IMAGENET = "the CIFAR-10 code's radius", "the ImageNet code's radius"
LOOP, LOOP_LARGE = "image by image", "image by image, 1000 at a time"
HALF_SPACES, DIMENSIONS, COST, FEW = "half-spaces", "dimensions", "1000 copies", "20 copies"
LEFT = 0.95  # share of the left half in the plot of the formulas
_CLASSES, _ALPHA, _FILL, _BATCH = 10, 0.001, "mean", 200


def problem(
    seed: int, pairs: int, images: Sequence[tuple[str, float]], steps: int, count: int, n: int, timed: int
) -> dict[str, Any]:
    """The cases by name."""
    cost = partial(_Cost, partial(_trained, "digits 16", 0.25, None, steps, seed), seed)
    return {
        HALF_SPACES: _HalfSpaces(pairs, seed),
        DIMENSIONS: _Dimensions(),
        **{title(data, sigma): Images(data, sigma, steps, count, n, seed) for data, sigma in images},
        COST: cost(timed, 100, 1000),
        FEW: cost(10 * timed, 2, 20),
    }


def title(data: str, sigma: float) -> str:
    """Name of the case of one set of images at one noise."""
    return f"{data}, sigma {sigma:g}"


def radius(kind: str, p_l: Tensor, p_r: Tensor, sigma: float) -> Tensor:
    """The radius by our formula or by one of the two of the published code."""
    if kind == OURS:
        return dual_radius(p_l, p_r, sigma)
    left, right = (sigma * torch.special.ndtri(p.double()).clamp(min=0) for p in (p_l, p_r))
    return torch.hypot(left, right) if kind == CIFAR else (left + right) / math.sqrt(2)


@dataclass(frozen=True)
class _HalfSpaces:
    """Pairs of half-spaces with random shares, for which the worst change of each norm is known."""

    pairs: int
    seed: int

    def __call__(self, kind: str) -> dict[str, Any]:
        """How many radii are broken just inside, and how many are still safe just outside."""
        p = torch.rand(4 * self.pairs, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
        p_l, p_r = p[p.sum(1) > 1][: self.pairs].T
        r, shares = radius(kind, p_l, p_r, 1.0), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
        return {
            "broken": 100 * float((_worst(p_l, p_r, 0.999 * r) < 1).double().mean()),
            "safe outside": 100 * float((_worst(p_l, p_r, 1.001 * r) >= 1).double().mean()),
            "curve": (shares.tolist(), radius(kind, torch.full_like(shares, LEFT), shares, 1.0).tolist()),
        }


def _worst(p_l: Tensor, p_r: Tensor, r: Tensor) -> Tensor:
    """The smallest total share over changes of norm r, whatever part of them is on the left half."""
    a, b = torch.special.ndtri(p_l), torch.special.ndtri(p_r)
    least = torch.full_like(r, torch.inf)
    for angle in np.linspace(0, math.pi / 2, 129):
        total = torch.special.ndtr(a - r * math.cos(angle)) + torch.special.ndtr(b - r * math.sin(angle))
        least = torch.minimum(least, total)
    return least


@dataclass(frozen=True)
class _Dimensions:
    """Radii at a share of 0.9 as the number of pixels grows, the noise having norm 1 in each space."""

    pixels: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    share: float = 0.9

    def __call__(self, kind: str) -> dict[str, Any]:
        """Radii under noise of norm 1 and under noise of standard deviation 1."""
        p = torch.tensor(self.share, dtype=torch.float64)
        if kind == OURS:
            return {
                "radii": [float(dual_radius(p, p, 1 / math.sqrt(d / 2))) for d in self.pixels],
                "same sigma": float(dual_radius(p, p, 1.0)),
            }
        plain = float(torch.special.ndtri(p))
        return {"radii": [plain / math.sqrt(d) for d in self.pixels], "same sigma": plain}


@dataclass(frozen=True)
class Images:
    """Test images of one data set, and networks trained under one noise: one for plain smoothing, two for dual."""

    data: str
    sigma: float
    steps: int
    count: int
    n: int
    seed: int

    def __call__(self, kind: str) -> dict[str, Any]:
        """Train the networks, certify the images, and average the radii of those that are right (0 for others)."""
        found, (_, labels) = _certified(self, kind == PLAIN), _tested(self.data, self.count)
        r = found.radius
        if kind in (CIFAR, IMAGENET):
            r = torch.where(found.label >= 0, radius(kind, found.lower[0], found.lower[1], self.sigma), 0.0)
        right = found.label == labels
        return {
            "average radius": float((r * right).mean()),
            "accuracy": 100 * float(right.double().mean()),
            "largest radius": self._cap(kind),
            "largest excess": 100 * float((r / found.radius)[found.label >= 0].max() - 1),
            "radii": torch.where(right, r, -1.0).tolist(),
        }

    def _cap(self, kind: str) -> float:
        """The radius if every vote is for the label."""
        half = self.n // 2
        if kind == PLAIN:
            return self.sigma * float(torch.special.ndtri(binomial_lower(torch.tensor(self.n), self.n, _ALPHA)))
        p = binomial_lower(torch.tensor(half), half, _ALPHA / 2)
        return float(radius(kind, p, p, self.sigma))


@cache
def _certified(case: Images, plain: bool) -> SmoothingCertificate:
    """Certificates of the test images, once for all formulas of the radius."""
    branches = (None,) if plain else (0, 1)
    nets = [_trained(case.data, case.sigma, branch, case.steps, case.seed) for branch in branches]
    smooth: Any = (
        RandomizedSmoothing(nets[0], _CLASSES, case.sigma)
        if plain
        else DualSmooth(nets[0], nets[1], _CLASSES, case.sigma, fill=_FILL)
    )
    images, _ = _tested(case.data, case.count)
    generator = torch.Generator().manual_seed(case.seed + 1)
    return smooth.certify_batch(images, 100, case.n, _ALPHA, _BATCH, generator=generator)


@cache
def _images(data: str) -> tuple[Tensor, Tensor, int]:
    """Images and labels, mixed, and how many of them are for training."""
    kind, size = data.rsplit(" ", 1)
    if kind == "clothes":
        train, test = fashion_mnist("train"), fashion_mnist("test")
        return torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels]), len(train.images)
    found = digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    images = F.interpolate(found.images[order], size=(int(size), int(size)), mode="bilinear", align_corners=False)
    return images, found.labels[order], 1347


def _tested(data: str, count: int) -> tuple[Tensor, Tensor]:
    images, labels, start = _images(data)
    return images[start : start + count], labels[start : start + count]


@cache
def _trained(data: str, sigma: float, branch: int | None, steps: int, seed: int) -> nn.Module:
    """A small network, trained under the noise that it will vote under."""
    images, labels, size = _images(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _network(images.shape[-1])
    noise: Any = partial(_gaussian, sigma) if branch is None else SplitNoise(sigma, branch, fill=_FILL)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps + 1, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(size, (64,), generator=generator)
        loss = F.cross_entropy(net(noise(images[rows], generator=generator)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def _gaussian(sigma: float, x: Tensor, generator: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator)


def _network(size: int) -> nn.Sequential:
    """Convolutions that halve the image until it is four pixels wide, and a linear layer."""
    parts: list[nn.Module] = []
    channels = 1
    while size > 4:
        wider = 16 if channels == 1 else 32
        parts += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.ReLU()]
        channels, size = wider, -(-size // 2)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels * size**2, _CLASSES))


class _Cost:
    """Images to certify against the clock."""

    def __init__(self, train: Any, seed: int, count: int, n0: int, n: int) -> None:
        self.net, self.seed, self.n0, self.n = train(), seed, n0, n
        self.images = _tested("digits 16", count)[0]

    def __call__(self, kind: str) -> dict[str, Any]:
        """Certify them."""
        generator = torch.Generator().manual_seed(self.seed)
        if kind in (LOOP, LOOP_LARGE):
            return self._loop(generator, 1000 if kind == LOOP_LARGE else _BATCH)
        smooth = RandomizedSmoothing(self.net, _CLASSES, 0.25)
        found = smooth.certify_batch(self.images, self.n0, self.n, _ALPHA, _BATCH, generator=generator)
        return {"labels": found.label, "votes": found.lower[0]}

    @torch.no_grad()
    def _loop(self, generator: torch.Generator, batch: int) -> dict[str, Any]:
        """As Cohen, Rosenfeld and Kolter's program does it: one image at a time, votes counted one by one."""
        labels, bounds = [], []
        for x in self.images:
            tallies = []
            for left in (self.n0, self.n):
                counts = np.zeros(_CLASSES, dtype=np.int64)
                while left > 0:
                    some = x.repeat(min(batch, left), 1, 1, 1)
                    noise = 0.25 * torch.randn(some.shape, generator=generator)
                    for chosen in self.net(some + noise).argmax(1).numpy():
                        counts[chosen] += 1
                    left -= len(some)
                tallies.append(counts)
            label = int(tallies[0].argmax())
            bounds.append(float(binomial_lower(torch.tensor(int(tallies[1][label])), self.n, _ALPHA)))
            labels.append(label if bounds[-1] > 0.5 else -1)
        return {"labels": torch.tensor(labels), "votes": torch.tensor(bounds)}
