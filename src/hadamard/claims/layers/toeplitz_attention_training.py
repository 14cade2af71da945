"""Small causal transformers that read text by character, which differ in their attention only."""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard.data import Characters, help_topics
from hadamard.features import heads, merge
from hadamard.layers import ToeplitzAttention
from hadamard.layers.toeplitz_matmul import offset_index

__all__ = ["NPRF", "NPRF_RPE", "PRF", "SOFTMAX_RPE", "train"]

NPRF_RPE, NPRF = "unit vectors + relative positions", "unit vectors, absolute positions"
PRF, SOFTMAX_RPE = "Performer, absolute positions", "softmax + relative positions"
_LENGTH, _WIDTH, _HEADS, _FEATURES, _BATCH = 64, 32, 4, 16, 16


class _Softmax(nn.Module):
    """Causal softmax attention with a learned bias for each offset."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.rel_bias = nn.Parameter(torch.zeros(_HEADS, 2 * _LENGTH - 1))
        self.index = offset_index((0, _LENGTH), _LENGTH, _LENGTH, None, torch.device("cpu"))
        self.ahead = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool).triu(1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(t, _HEADS) for t in self.inside(x).chunk(3, -1))
        bias = self.rel_bias[:, self.index].masked_fill(self.ahead, -math.inf)
        return self.outside(merge(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))


class _Kernelized(nn.Module):
    def __init__(self, normalize: bool, relative: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = ToeplitzAttention(
            _WIDTH, _HEADS, _LENGTH, batch_first=True, num_features=_FEATURES, normalize=normalize, is_causal=True,
            generator=generator,
        )  # fmt: skip
        self.attention.rel_bias.requires_grad_(relative)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class _Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.norms = attention, nn.ModuleList([nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)])
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class _Network(nn.Module):
    """Characters and their learned absolute positions, blocks, a score for each next character."""

    def __init__(self, kind: str, layers: int, characters: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.characters = nn.Embedding(characters, _WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(_LENGTH, _WIDTH))
        self.blocks = nn.Sequential(*(
            _Block(_Softmax() if kind == SOFTMAX_RPE else _Kernelized(kind != PRF, kind == NPRF_RPE, generator))
            for _ in range(layers)
        ))  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, characters))

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.blocks(self.characters(text) + self.positions))


@cache
def _text() -> Characters:
    return help_topics()


def train(kind: str, seed: int, steps: int, rate: float, layers: int) -> dict[str, Any]:
    """Train with AdamW, warm-up and a cosine; report losses and the share of test characters foretold, in %."""
    text = _text()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Network(kind, layers, len(text.alphabet), seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / warm) * (1 + math.cos(math.pi * t / steps)) / 2
    )
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        starts = torch.randint(len(text.train) - _LENGTH, (_BATCH, 1), generator=generator)
        piece = text.train[starts + torch.arange(_LENGTH + 1)]
        loss = F.cross_entropy(net(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten())
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return {"accuracy": 0.0, "losses": losses}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    pieces = text.test.unfold(0, _LENGTH + 1, _LENGTH)
    with torch.no_grad():
        hits = net(pieces[:, :-1]).argmax(-1) == pieces[:, 1:]
    return {"accuracy": 100 * hits.float().mean().item(), "losses": losses}
