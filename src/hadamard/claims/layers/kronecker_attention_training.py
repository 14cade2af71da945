"""Match-3: does a token complete a triple? Small networks with one layer of attention to pairs, or to triples."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard.layers import KroneckerAttention

__all__ = ["train"]

_WIDTH, _HEADS, _BATCH = 32, 4, 128
_HIDDEN = {3: 64, 2: 96}  # as many parameters either way: attention to pairs of positions has two projections more


def match3(n: int, modulus: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random residues, and for each whether two more in its sequence add up with it to 0."""
    x = torch.randint(modulus, (count, n), generator=generator)
    sums = (x[:, :, None, None] + x[:, None, :, None] + x[:, None, None, :]) % modulus
    return x, (sums == 0).flatten(2).any(-1).float()


class _Network(nn.Module):
    """Residues as points on circles, one layer of attention, a small network for each token."""

    angles: Tensor

    def __init__(self, order: int, modulus: int, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("angles", 2 * math.pi * torch.arange(1, frequencies + 1) / modulus)
        self.embed = nn.Linear(2 * frequencies, _WIDTH)
        self.attention = KroneckerAttention(_WIDTH, _HEADS, order, batch_first=True, method="exact")
        hidden = _HIDDEN[order]
        self.read = nn.Sequential(
            nn.LayerNorm(2 * _WIDTH), nn.Linear(2 * _WIDTH, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        angles = x[..., None] * self.angles
        h = self.embed(torch.cat([angles.cos(), angles.sin()], -1))
        return self.read(torch.cat([h, self.attention(h, h, h)[0]], -1))[..., 0]


def train(order: int, seed: int, steps: int, rate: float, n: int, modulus: int, frequencies: int) -> dict[str, Any]:
    """Train on fresh sequences; report losses, parameters, and the balanced accuracy on new ones in %."""
    generator, losses = torch.Generator().manual_seed(seed), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Network(order, modulus, frequencies)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / warm) * (1 + math.cos(math.pi * t / steps)) / 2
    )
    for _ in range(steps):
        x, y = match3(n, modulus, _BATCH, generator)
        loss = F.binary_cross_entropy_with_logits(net(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x, y = match3(n, modulus, 2000, torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        yes = (net(x) > 0).float()
    accuracy = 50 * ((yes * y).sum() / y.sum() + ((1 - yes) * (1 - y)).sum() / (1 - y).sum())
    return {
        "accuracy": accuracy.item(),
        "losses": losses,
        "parameters": sum(p.numel() for p in net.parameters()),
        "positive": 100 * y.mean().item(),
    }
