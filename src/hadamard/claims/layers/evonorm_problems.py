"""What normalisation layers are tried on: small networks for digits, one image in its batch, and a pass to be timed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard.data import digits
from hadamard.layers import EvoNorm2dB0, EvoNorm2dS0, EvoNorm2dS1, EvoNorm2dS2

__all__ = [
    "ALONE",
    "B0",
    "BN",
    "COST",
    "CUT",
    "DEEP",
    "EAGER",
    "GN",
    "GN_SILU",
    "NONE",
    "S0",
    "S1",
    "S2",
    "TIMM",
    "WHOLE",
    "Cost",
    "problem",
]

S0, S1, S2, B0 = "EvoNorm-S0", "EvoNorm-S1", "EvoNorm-S2", "EvoNorm-B0"
BN, GN, GN_SILU, NONE = "BatchNorm + ReLU", "GroupNorm + ReLU", "GroupNorm + SiLU", "ReLU without norm"
EAGER, TIMM = "S0 composed of torch operations", "timm EvoNorm-S0"
ALONE, WHOLE, CUT, DEEP, COST = "independence", "micro-batch 32 of 32", "micro-batch 2 of 32", "20 layers", "cost"


@cache
def _data(seed: int) -> tuple[Tensor, Tensor, int]:
    """Digits, mixed, their labels, and how many of them (three quarters) are there to train on."""
    data = digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))
    return 2 * data.images[order] - 1, data.labels[order], 3 * len(order) // 4


@dataclass(frozen=True)
class _Training:
    """Several networks from different data orders at once, as groups of channels of one: separate in every respect."""

    seed: int
    net: Callable[[str, int, int | None], nn.Module]
    batch: int
    steps: int
    rates: tuple[float, ...]
    nets: int = 1
    micro: int | None = None
    momentum: float = 0.9

    def __call__(self, kind: str) -> dict[str, Any]:
        """Train at every rate and report what has the best accuracy."""
        return max((self._train(kind, rate) for rate in self.rates), key=lambda outcome: outcome["accuracy"])

    def _train(self, kind: str, rate: float) -> dict[str, Any]:
        images, labels, train = _data(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.net(kind, self.nets, self.micro)
        weights, generator, losses = list(net.parameters()), torch.Generator().manual_seed(1), []
        velocities = [torch.zeros_like(w) for w in weights]
        for t in range(self.steps):
            rows = torch.randint(train, (self.batch, self.nets), generator=generator)
            scores = net(images[rows, 0]).view(self.batch, self.nets, 10)
            loss = F.cross_entropy(scores.flatten(0, 1), labels[rows].flatten())
            losses.append(min(loss.item(), 1e6) if loss.isfinite() else 1e6)
            grads = torch.autograd.grad(loss, weights, torch.tensor(float(self.nets)))
            cosine = rate * (1 + math.cos(math.pi * t / self.steps)) / 2
            with torch.no_grad():  # momentum written out: torch.optim takes seconds to import
                for w, velocity, grad in zip(weights, velocities, grads):
                    w.sub_(velocity.mul_(self.momentum).add_(grad), alpha=cosine)
        net.eval()
        with torch.no_grad():
            scores = net(images[train:].expand(-1, self.nets, -1, -1)).view(-1, self.nets, 10)
        right = (scores.argmax(-1) == labels[train:, None]).float().mean()
        change = fmean(losses[-5:]) / losses[0]
        return {"accuracy": 100 * float(right), "best rate": rate, "losses": losses, "last loss / first": change}


@dataclass(frozen=True)
class _Independence:
    """What the rest of the batch does to one image, and what cutting a batch into pieces does to the gradient."""

    seed: int

    def __call__(self, kind: str) -> dict[str, float]:
        """Measure both."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = _layer(kind, 8, 1, None).train()
            net = _residual(kind, 1, None).double()
        x = torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(0))
        y = layer(x)[:1]
        others = layer(torch.cat([x[:1], 3 * x[4:9]]))[:1]
        seen = max(float((y - z).detach().abs().max()) for z in (others, layer.eval()(x)[:1]))
        images, labels, grads = _data(self.seed)[0][:32].double(), _data(self.seed)[1][:32], []
        for size in (32, 2):
            net.zero_grad()
            for rows in torch.arange(32).split(size):
                F.cross_entropy(net(images[rows]).flatten(1), labels[rows], reduction="sum").backward()
            grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        return {"influence": seen, "gradient change": float((grads[1] - grads[0]).norm() / grads[0].norm())}


@dataclass(frozen=True)
class Cost:
    """One forward and backward pass of a layer."""

    x: Tensor
    grad: Tensor

    def __call__(self, kind: str) -> dict[str, Any]:
        """Run it, and count what it keeps in between."""
        layer, x = _layer(kind, self.x.shape[1], 1, None, 32).to(self.x), self.x.detach().requires_grad_()
        kept: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = layer(x)
        dx = torch.autograd.grad(y, [x, *layer.parameters()], self.grad)[0]
        return {"saved": sum(kept.values()) / 2**20, "y": y[:2].numpy(force=True), "dx": dx[:2].numpy(force=True)}


class _Micro(nn.BatchNorm2d):
    """BatchNorm + ReLU as gradient accumulation sees it: statistics of each micro-batch, one after the other."""

    def __init__(self, channels: int, micro: int) -> None:
        super().__init__(channels)
        self.micro = micro

    def forward(self, x: Tensor) -> Tensor:
        norm = super().forward
        return torch.cat([norm(part) for part in x.split(self.micro if self.training else len(x))]).relu()


class _Composed(EvoNorm2dS0):
    """S0 in plain torch operations, as it is usually written."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        grouped = x.reshape(len(x), self.groups, -1)
        std = grouped.var(2, correction=0, keepdim=True).add(self.eps).sqrt().expand(grouped.shape).reshape(x.shape)
        assert self.v is not None
        return x * (x * self.v.view(shape)).sigmoid() / std * self.weight.view(shape) + self.bias.view(shape)


class _Residual(nn.Module):
    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


def _layer(kind: str, channels: int, nets: int, micro: int | None, groups: int = 4) -> nn.Module:
    c, g = channels * nets, groups * nets
    if kind == TIMM:
        from timm.layers import EvoNorm2dS0 as TimmS0

        return TimmS0(c, groups=g)
    if kind == BN and micro is not None:
        return _Micro(c, micro)
    return {
        S0: lambda: EvoNorm2dS0(c, groups=g),
        S1: lambda: EvoNorm2dS1(c, groups=g),
        S2: lambda: EvoNorm2dS2(c, groups=g),
        B0: lambda: EvoNorm2dB0(c),
        EAGER: lambda: _Composed(c, groups=g),
        BN: lambda: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU()),
        GN: lambda: nn.Sequential(nn.GroupNorm(g, c), nn.ReLU()),
        GN_SILU: lambda: nn.Sequential(nn.GroupNorm(g, c), nn.SiLU()),
        NONE: nn.ReLU,
    }[kind]()


def _conv(inside: int, outside: int, nets: int, size: int = 3, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inside * nets, outside * nets, size, stride, size // 2, groups=nets, bias=False)


def _head(channels: int, nets: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), _conv(channels, 10, nets, size=1)]


def _plain(kind: str, nets: int, micro: int | None) -> nn.Module:
    """Four convolutions with 16 channels; 8 x 8, then 4 x 4 pixels."""
    parts: list[nn.Module] = []
    for i, stride in enumerate((1, 1, 2, 1)):
        parts += [_conv(1 if i == 0 else 16, 16, nets, stride=stride), _layer(kind, 16, nets, micro)]
    return nn.Sequential(*parts, *_head(16, nets))


def _residual(kind: str, nets: int, micro: int | None) -> nn.Module:
    """Three pre-activated residual blocks that end on a single pixel."""
    parts, c = [_conv(1, 8, nets)], 8
    for _ in range(3):
        branch = nn.Sequential(
            _layer(kind, c, nets, micro), _conv(c, 2 * c, nets, stride=2),
            _layer(kind, 2 * c, nets, micro), _conv(2 * c, 2 * c, nets),
        )  # fmt: skip
        parts.append(_Residual(branch, _conv(c, 2 * c, nets, size=1, stride=2)))
        c *= 2
    return nn.Sequential(*parts, _layer(kind, c, nets, micro), *_head(c, nets))


def _deep(kind: str, nets: int, micro: int | None) -> nn.Module:
    """Twenty residual convolutions with 16 channels."""
    blocks = [_Residual(nn.Sequential(_conv(16, 16, nets), _layer(kind, 16, nets, micro))) for _ in range(20)]
    return nn.Sequential(_conv(1, 16, nets), *blocks, *_head(16, nets))


def problem(
    seed: int, steps: tuple[int, int], micro_steps: int, nets: tuple[int, int], rates: tuple[float, ...], deep: int,
    cost: tuple[int, ...],
) -> Mapping[str, Any]:  # fmt: skip
    """Independence of the batch, small batches, batches in pieces, a deep network, and a layer's cost."""
    cases: dict[str, Any] = {ALONE: _Independence(seed)}
    for batch, n in ((64, steps[0]), (4, steps[1]), (2, steps[1])):
        cases[f"batch {batch}"] = _Training(seed, _plain, batch, n, (0.05 * (batch / 32) ** 0.5,), nets[0])
    for name, micro in ((WHOLE, 32), (CUT, 2)):
        cases[name] = _Training(seed, _residual, 32, micro_steps, rates, nets[1], micro)
    cases[DEEP] = _Training(seed, _deep, 32, deep, (0.1,), momentum=0.0)
    generator, device = torch.Generator().manual_seed(seed), "cuda" if torch.cuda.is_available() else "cpu"
    x, grad = (torch.randn(*cost, generator=generator).to(device) for _ in range(2))
    return cases | {COST: Cost(x, grad)}
