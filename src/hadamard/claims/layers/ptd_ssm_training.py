"""Digits read pixel by pixel with diagonal state-space layers, and what a sine added to the pixels does to them.

In float64: rounding that differs from machine to machine then changes nothing that is learned.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard.data import digits
from hadamard.layers import DiagonalSSM

__all__ = ["Training"]


@cache
def _data(seed: int, side: int) -> tuple[Tensor, Tensor, int]:
    """Pixels in order as sequences, labels, and how many there are to train on."""
    data = digits(side, dtype=torch.float64)
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))
    return 2 * data.images[order].flatten(1)[..., None] - 1, data.labels[order], 3 * len(order) // 4


class _Net(nn.Module):
    """Layers of state space, GELU and mixing of channels, with residuals; the mean over time is classified."""

    def __init__(self, width: int, depth: int, generator: torch.Generator, **options: Any) -> None:
        super().__init__()
        self.enter = nn.Linear(1, width)
        self.states = nn.ModuleList([DiagonalSSM(width, generator=generator, **options) for _ in range(depth)])
        self.mixers = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)])
        self.leave = nn.Linear(width, 10)

    def forward(self, u: Tensor) -> Tensor:
        x = self.enter(u)
        for state, mix, norm in zip(self.states, self.mixers, self.norms):
            x = norm(x + F.glu(mix(F.gelu(state(x)))))
        return self.leave(x.mean(1))


@dataclass(frozen=True)
class Training:
    """Train at every rate with every seed; the best rate by clean accuracy is the one that counts."""

    seed: int
    seeds: int
    epochs: int
    rates: tuple[float, ...]
    side: int = 8
    width: int = 32
    depth: int = 2
    d_state: int = 16
    dt: float = 0.02
    omega: float = 80.966
    amplitude: float = 0.3
    frequencies: int = 32

    def __call__(self, options: dict[str, Any]) -> dict[str, Any]:
        """Clean accuracy, its drop with a sine of frequency ``omega``, and accuracy over frequencies, in per cent."""
        runs = [[self._train(options, rate, self.seed + i) for i in range(self.seeds)] for rate in self.rates]
        means = [torch.stack(run).mean(0) for run in runs]
        best = max(range(len(means)), key=lambda i: float(means[i][0]))
        clean, spiked, *noisy = means[best].tolist()
        return {"accuracy": clean, "drop": clean - spiked, "best rate": self.rates[best], "noisy": noisy}

    @property
    def axis(self) -> list[float]:
        """Frequencies of ``noisy`` in radians a sample."""
        return [math.pi * (k + 1) / self.frequencies for k in range(self.frequencies)]

    def _train(self, options: dict[str, Any], rate: float, seed: int) -> Tensor:
        u, labels, train = _data(self.seed, self.side)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            step = {"dt_min": self.dt, "dt_max": self.dt}
            net = _Net(self.width, self.depth, generator, d_state=self.d_state, **step, **options).double()
        slow = [p for state in net.states for p in state.dynamics()]  # type: ignore[operator]
        others = [p for p in net.parameters() if all(p is not q for q in slow)]
        groups = [{"params": slow, "lr": min(rate, 1e-3), "weight_decay": 0.0}, {"params": others, "lr": rate}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        batch, steps = 64, self.epochs * (train // 64)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
        for t in range(steps):
            if t % (train // batch) == 0:
                order = torch.randperm(train, generator=generator)
            rows = order[batch * (t % (train // batch)) :][:batch]
            loss = F.cross_entropy(net(u[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        net.eval()
        test, right = u[train:], labels[train:]
        time = torch.arange(test.shape[1], dtype=torch.float64)
        with torch.no_grad():
            waves = [torch.zeros_like(time)] + [
                self.amplitude * torch.sin(w * time) for w in (self.omega * self.dt, *self.axis)
            ]
            return torch.stack([100 * (net(test + w[:, None]).argmax(-1) == right).float().mean() for w in waves])
