"""Pairs of bias-free denoisers on disjoint pictures of clothes, as many steps for few pictures as for many."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.claims.shipping import one_cycle, shipping
from hadamard.data import fashion_mnist
from hadamard.diffusion.bias_free import BiasFreeUNet
from hadamard.training import load_checkpoint

__all__ = ["COUNTS", "SIZE", "STEPS", "clothes", "halves", "name", "network", "train", "trained"]

COUNTS, SIZE = (10, 100, 1000, 20_000), 8
STEPS = {"quick": 100, "full": 3000}
_BATCH, _RATE = 32, 3e-3


def name(count: int) -> str:
    """What the weights of the pair on so many pictures are called."""
    return f"harmonic_denoiser_{count}"


def network() -> BiasFreeUNet:
    """Build one denoiser of 8 x 8 pixels."""
    return BiasFreeUNet(1, channels=24, num_blocks=1)


@cache
def clothes(split: str) -> Float[Tensor, "n 1 8 8"]:
    """Fashion-MNIST with a black margin, averaged down to 8 x 8, in [0, 1]; of equal pictures the first only."""
    small = F.avg_pool2d(F.pad(fashion_mnist(split).images, (2, 2, 2, 2)), 4)
    seen: dict[bytes, int] = {}
    for i, picture in enumerate(small.numpy()):
        seen.setdefault(picture.tobytes(), i)
    return small[list(seen.values())]


def halves(count: int) -> tuple[Tensor, Tensor]:
    """Disjoint sets of training pictures: the first so many, and the last."""
    return clothes("train")[:count], clothes("train")[-count:]


def trained(count: int) -> tuple[nn.Module, nn.Module]:
    """Load the shipped pair."""
    pair = load_checkpoint(name(count), _pair()).eval()
    return pair["a"], pair["b"]


def train(size: str = "full", out: str | Path | None = None, resume: bool = True, *, seed: int = 0) -> list[Path]:
    """Train every pair by the same number of steps, whatever the number of its pictures."""
    if size not in STEPS:
        raise ValueError(f"size must be one of {', '.join(map(repr, STEPS))}, got {size!r}")
    with shipping("harmonic_denoiser", size, out, resume, seed=seed) as shelf:
        for count in (COUNTS[0], COUNTS[-1], *COUNTS[1:-1]):
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                pair = _pair()
            losses = one_cycle(
                pair, _loss, _Draw(halves(count)), steps=STEPS[size], rate=_RATE, seed=seed + 1,
                state=shelf.state(name(count)), progress=name(count),
            )  # fmt: skip
            tenths = losses[: len(losses) // 10 * 10].reshape(10, -1).mean(1)
            shelf.write(
                name(count),
                pair.half(),
                data=f"Fashion-MNIST at 8 x 8, the first {count} training pictures (a) and the last {count} (b)",
                steps=f"{STEPS[size]} of {_BATCH} pictures, Adam {_RATE:g}, noise U^2 with U uniform in [0, 1]",
                losses="squared error a pixel, both nets, by tenths: " + " ".join(f"{v:.5f}" for v in tenths),
            )
    return shelf.paths


def _pair() -> nn.ModuleDict:
    return nn.ModuleDict({"a": network(), "b": network()})


class _Draw:
    """Pictures of both sets, the noise in them, and its level: the square of a uniform number."""

    def __init__(self, sets: tuple[Tensor, Tensor]) -> None:
        self.sets = sets

    def __call__(self, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        batches = []
        for images in self.sets:
            x = images[torch.randint(len(images), (_BATCH,), generator=generator)]
            sigma = torch.rand(_BATCH, 1, 1, 1, generator=generator).square()
            batches.append((x, sigma * torch.randn(x.shape, generator=generator)))
        return batches


def _loss(pair: Any, batches: list[tuple[Tensor, Tensor]], step: int) -> Tensor:
    return sum(F.mse_loss(pair[k](x + noise), noise) for k, (x, noise) in zip("ab", batches))  # type: ignore[return-value]
