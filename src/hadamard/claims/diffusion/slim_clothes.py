"""Narrow networks that learn from the one in :mod:`clothes`, with gates and without: their training and judgement."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.claims.diffusion import clothes
from hadamard.claims.shipping import one_cycle, shipping
from hadamard.diffusion import SpectralDistillation, make_spectral_unet, narrow
from hadamard.training import load_checkpoint

__all__ = ["BATCH", "FOLLOWS", "GATES", "NAMES", "OURS", "PLAIN", "SHIPPED", "SPATIAL", "STEPS", "errors", "slim",
           "train_all", "trained"]  # fmt: skip

OURS, SPATIAL, GATES = "gates and spectral loss", "gates and spatial loss", "gates"
FOLLOWS, PLAIN = "plain, with spectral loss", "plain"
NAMES = {
    OURS: "spectral_diffusion",
    SPATIAL: "spectral_diffusion_spatial",
    GATES: "spectral_diffusion_gates",
    FOLLOWS: "spectral_diffusion_follows",
    PLAIN: "spectral_diffusion_plain",
}
SHIPPED = (OURS, GATES, FOLLOWS, PLAIN)
STEPS = {"quick": 200, "full": 2000}
BATCH = 16
_RATE, _WIDTH, _GROUPS = 2e-3, 8, 4


def slim(kind: str) -> Any:
    """The shared network a quarter as wide, with or without gates, with new weights."""
    whole = clothes.network()
    if kind in (PLAIN, FOLLOWS):
        return type(whole).from_config(narrow(whole, _WIDTH, norm_num_groups=_GROUPS))
    return make_spectral_unet(whole, _WIDTH, norm_num_groups=_GROUPS)


@cache
def trained(kind: str) -> Any:
    """Load one of the shipped networks."""
    return load_checkpoint(NAMES[kind], slim(kind)).eval()


class _Students(nn.Module):
    """Several students in one training: each has its own loss and weights, all have the batches and the teacher."""

    def __init__(self, kinds: tuple[str, ...], seed: int) -> None:
        super().__init__()
        self.nets, self.compare = nn.ModuleDict(), nn.ModuleDict()
        teacher = clothes.trained()
        for kind in kinds:
            torch.manual_seed(seed)
            self.nets[kind] = slim(kind)
            if kind in (OURS, SPATIAL, FOLLOWS):
                weight = 0.0 if kind == SPATIAL else 0.1
                self.compare[kind] = SpectralDistillation(teacher, self.nets[kind], frequency_weight=weight)

    def forward(self, noisy: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """The sum of the students' losses; no weight belongs to two of them, so that they do not notice each other."""
        scales = clothes.scheduler().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        clean = (noisy - (1 - scales).sqrt() * noise) / scales.sqrt()
        taught: dict[str, Tensor] | None = None
        losses = []
        for kind, net in self.nets.items():
            if kind not in self.compare:
                losses.append(F.mse_loss(net(noisy, timesteps, labels).sample, noise))
                continue
            compare: Any = self.compare[kind]
            taught = taught or compare.taught(noisy, timesteps, labels)
            losses.append(compare(noisy, timesteps, labels, target=noise, x0=clean, taught=taught).loss)
        return torch.stack(losses).sum()


def train_all(
    size: str,
    out: str | Path | None,
    resume: bool,
    *,
    seed: int = 0,
    kinds: tuple[str, ...] = SHIPPED,
    progress: bool = True,
) -> list[Path]:
    """Train the networks by the same steps on the same batches."""
    if size not in STEPS:
        raise ValueError(f"size must be one of {', '.join(map(repr, STEPS))}, got {size!r}")
    with shipping("spectral_diffusion", size, out, resume, seed=seed) as shelf:
        with torch.random.fork_rng([]):
            students = _Students(kinds, seed)
        losses = one_cycle(
            students,
            lambda net, batch, step: net(*batch),
            lambda generator: clothes.draw(generator, BATCH),
            steps=STEPS[size],
            rate=_RATE,
            seed=seed,
            optimizer=torch.optim.AdamW(students.parameters(), lr=_RATE, fused=True),
            rise=0.05,
            state=shelf.state("students"),
            progress="spectral_diffusion" if progress else "",
        )
        tenths = losses[: len(losses) // 10 * 10].reshape(10, -1).mean(1)
        for kind in kinds:
            net = students.nets[kind].half()
            found = errors(copy.deepcopy(net).float(), 500)
            shelf.write(
                NAMES[kind],
                net,
                data="Fashion-MNIST, 60,000 pictures averaged down to 16 x 16, with their classes (one in ten hidden)",
                steps=f"{STEPS[size]} of {BATCH} pictures, AdamW {_RATE:g}, {kind}",
                losses="sum of all networks' losses by tenths: " + " ".join(f"{v:.4f}" for v in tenths),
                quality="500 test pictures: " + ", ".join(f"{name} {float(v.mean()):.4f}" for name, v in found.items()),
            )
    return shelf.paths


@torch.no_grad()
def errors(net: Any, count: int, seed: int = 1) -> dict[str, Float[Tensor, " timesteps"]]:
    """Mean squared errors on test pictures, by timestep: of the noise, of the picture, and of its high frequencies.

    The timesteps are 0 to 999 in steps of 1000 / count, the noise that of the seed, the same for every network. The
    picture is what the predicted noise leaves, limited to [-1, 1], as samplers do; its high frequencies are those above
    0.25 cycles a pixel.
    """
    images, labels = clothes.clothes("test")
    images, labels = images[:count], labels[:count]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    timesteps = torch.arange(count) * 1000 // count
    noisy = clothes.scheduler().add_noise(images, noise, timesteps)
    net.eval()
    parts = zip(noisy.split(100), timesteps.split(100), labels.split(100))
    made = torch.cat([net(x, t, y).sample for x, t, y in parts])
    scales = clothes.scheduler().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    pictures = ((noisy - (1 - scales).sqrt() * made) / scales.sqrt()).clamp(-1, 1)
    f = torch.fft.fftfreq(clothes.SIZE)
    high = (f[:, None].square() + f.square()).sqrt() > 0.25
    power = torch.fft.fft2(pictures - images, norm="ortho").abs().square()
    return {
        "noise": (made - noise).square().mean((1, 2, 3)),
        "picture": (pictures - images).square().mean((1, 2, 3)),
        "high frequencies": (power * high).mean((1, 2, 3)),
    }
