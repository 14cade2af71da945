"""Lighter networks made of the one in :mod:`clothes`: how they are put together, trained and judged."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hadamard.claims.diffusion import clothes
from hadamard.claims.shipping import one_cycle, shipping
from hadamard.diffusion import Distillation, add_experts, assemble
from hadamard.training import load_checkpoint

__all__ = [
    "BATCH",
    "EXPERTS",
    "NAMES",
    "SCRATCH",
    "STEPS",
    "STUDENT",
    "held_out_error",
    "light",
    "train_all",
    "trained",
]

STUDENT, SCRATCH, EXPERTS = "assembled, distilled", "from scratch", "assembled, distilled, with experts"
NAMES = {STUDENT: "a_sdm_student", SCRATCH: "a_sdm_scratch", EXPERTS: "a_sdm_experts"}
STEPS = {"quick": 60, "full": 1000}
BATCH = 32
_RATE = 1e-3
_KEEP = {f"down_blocks.{i}": [0] for i in range(3)}


def light(kind: str, whole: Any) -> Any:
    """One layer in each block of the encoder, two in each of the decoder: with the whole network's weights, or not."""
    made = assemble(whole, _KEEP)
    if kind == EXPERTS:
        add_experts(made, whole)
    return type(whole).from_config(made.unet.config) if kind == SCRATCH else made.unet


@cache
def trained(kind: str) -> Any:
    """Load one of the shipped networks."""
    return load_checkpoint(NAMES[kind], light(kind, clothes.network())).eval()


def train_all(size: str, out: str | Path | None, resume: bool, *, seed: int = 0, progress: bool = True) -> list[Path]:
    """Train the three by the same steps on the same batches; from scratch there is no teacher."""
    if size not in STEPS:
        raise ValueError(f"size must be one of {', '.join(map(repr, STEPS))}, got {size!r}")
    teacher = clothes.trained()
    with shipping("a_sdm", size, out, resume, seed=seed) as shelf:
        for kind, name in NAMES.items():
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                net = light(kind, teacher).train()
            losses = one_cycle(
                net,
                _plain if kind == SCRATCH else _distilled(Distillation(teacher, net)),
                lambda generator: clothes.draw(generator, BATCH),
                steps=STEPS[size],
                rate=_RATE,
                seed=seed,
                optimizer=torch.optim.AdamW(net.parameters(), lr=_RATE, fused=True),
                rise=0.05,
                state=shelf.state(name),
                progress=name if progress else "",
            )
            tenths = losses[: len(losses) // 10 * 10].reshape(10, -1).mean(1)
            net = net.half()
            shelf.write(
                name,
                net,
                data="Fashion-MNIST, 60,000 pictures averaged down to 16 x 16, with their classes (one in ten hidden)",
                steps=f"{STEPS[size]} of {BATCH} pictures, AdamW {_RATE:g}",
                losses="loss by tenths: " + " ".join(f"{v:.4f}" for v in tenths),
                quality=f"mean squared error of the noise, 1000 test pictures: {_quality(net):.4f}",
            )
    return shelf.paths


@torch.no_grad()
def held_out_error(net: Any, count: int) -> float:
    """Mean squared error of the noise on test pictures, noised with the same noise for every network."""
    images, labels = clothes.clothes("test")
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, *images.shape[1:], generator=generator)
    timesteps = torch.randint(1000, (count,), generator=generator)
    noisy = clothes.scheduler().add_noise(images[:count], noise, timesteps)
    net.eval()
    parts = zip(noisy.split(100), timesteps.split(100), labels[:count].split(100), noise.split(100))
    return sum(float(F.mse_loss(net(x, t, y).sample, e, reduction="sum")) for x, t, y, e in parts) / noise.numel()


def _quality(net: Any) -> float:
    return held_out_error(copy.deepcopy(net).float(), 1000)


def _plain(net: Any, batch: tuple[Tensor, ...], step: int) -> Tensor:
    noisy, noise, timesteps, labels = batch
    return F.mse_loss(net(noisy, timesteps, labels).sample, noise)


def _distilled(compare: Distillation) -> Any:
    def loss(net: Any, batch: tuple[Tensor, ...], step: int) -> Tensor:
        noisy, noise, timesteps, labels = batch
        return compare(noisy, timesteps, labels, target=noise).loss

    return loss
