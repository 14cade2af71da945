"""Digits on noisy canvases: three networks with the same hidden units, of which each contains the one before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hadamard.data import digits
from hadamard.layers import LocallyConnected2d
from hadamard.learning import SampleComplexity, sample_complexity

__all__ = ["Digits"]

_SIDE, _STEP, _PLACES, _CHANNELS = 24, 4, 5, 32


@dataclass(frozen=True)
class Digits:
    """Real digits of 8 x 8 pixels at one of 25 places on a canvas of 24 x 24, with noise; new digits in the test."""

    seed: int
    sizes: Sequence[int]
    seeds: int
    steps: int
    noise: float = 0.1

    def __call__(self, kind: str) -> SampleComplexity:
        """Canvases for an accuracy of 80 %."""

        def errors(n: int, seeds: Sequence[int]) -> list[float]:
            return [self.error(kind, n, seed) for seed in seeds]

        return sample_complexity(errors, self.sizes, 0.2, range(self.seed, self.seed + self.seeds))

    def error(self, kind: str, n: int, seed: int) -> float:
        """Test error after training on n canvases."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(1797, generator=generator)
        x, y = self.canvases(order[:1297], n, generator)
        x_test, y_test = self.canvases(order[1297:], 1000, generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _Net(kind)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, self.steps)
        for _ in range(self.steps):
            rows = torch.randint(n, (64,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return float((net(x_test).argmax(1) != y_test).double().mean())

    def canvases(self, rows: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Digits of these rows, each at a random place; more than once where n is larger than their number."""
        data = digits()
        turns = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-n // len(rows)))]
        chosen = torch.cat(turns)[:n]
        x = self.noise * torch.randn(n, 1, _SIDE, _SIDE, generator=generator)
        corner = _STEP * torch.randint(_PLACES, (n, 2, 1, 1), generator=generator)
        inside = torch.arange(8)
        x[torch.arange(n)[:, None, None], 0, corner[:, 0] + inside[:, None], corner[:, 1] + inside] += data.images[
            chosen, 0
        ]
        return x, data.labels[chosen]


class _Net(nn.Module):
    """32 units at each of 25 places, the largest response of each, and a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        hidden: dict[str, nn.Module] = {
            "conv": nn.Conv2d(1, _CHANNELS, 8, _STEP),
            "local": LocallyConnected2d(1, _CHANNELS, _SIDE, 8, _STEP),
            "full": nn.Sequential(nn.Flatten(), nn.Linear(_SIDE**2, _PLACES**2 * _CHANNELS)),
        }
        self.hidden, self.out = hidden[kind], nn.Linear(_CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).reshape(len(x), _CHANNELS, -1).relu().amax(-1))
