"""The small class-conditional diffusion model that the claims of this family share, and how it is trained."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.claims import torchvision_shim
from hadamard.claims.shipping import Averaged, one_cycle, shipping
from hadamard.data import fashion_mnist
from hadamard.training import load_checkpoint

torchvision_shim.install()
from diffusers import DDIMScheduler, UNet2DModel  # noqa: E402

__all__ = [
    "NAME", "NO_CLASS", "SIZE", "STEPS", "clothes", "draw", "frechet", "network", "sample", "scheduler",
    "train_network", "trained",
]  # fmt: skip

NAME, NO_CLASS, SIZE = "diffusion_clothes", 10, 16
STEPS = {"quick": 200, "full": 6000}
_BATCH, _RATE, _DECAY = 64, 1e-3, 0.999


def network() -> UNet2DModel:
    """Build the network: three levels of two layers, attention at the lowest, an eleventh class that says nothing."""
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        num_class_embeds=NO_CLASS + 1,
    )


def scheduler(**options: object) -> DDIMScheduler:
    """The noise that it was trained with: 1000 steps, variances rising linearly from 1e-4 to 0.02."""
    return DDIMScheduler(**{"clip_sample": False, **options})


@cache
def clothes(split: str) -> tuple[Float[Tensor, "n 1 16 16"], Tensor]:
    """Fashion-MNIST with a black margin, averaged down to 16 x 16, in [-1, 1], and its labels."""
    data = fashion_mnist(split)
    return F.avg_pool2d(F.pad(data.images, (2, 2, 2, 2)), 2) * 2 - 1, data.labels


def train_network(
    key: str, size: str, out: str | Path | None, resume: bool, *, seed: int = 0, progress: bool = True
) -> list[Path]:
    """Train it on the noise and write the running average of its weights, in half precision, with its provenance."""
    if size not in STEPS:
        raise ValueError(f"size must be one of {', '.join(map(repr, STEPS))}, got {size!r}")
    with shipping(key, size, out, resume, seed=seed) as shelf:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            module = Averaged(network(), _DECAY)
        losses = one_cycle(
            module,
            _loss,
            lambda generator: draw(generator, _BATCH),
            steps=STEPS[size],
            rate=_RATE,
            seed=seed,
            optimizer=torch.optim.AdamW(module.net.parameters(), lr=_RATE, fused=True),
            rise=0.05,
            state=shelf.state(NAME),
            progress=NAME if progress else "",
            after_step=lambda: module.average.update_parameters(module.net),
        )
        net = module.average.module.half()
        tenths = losses[: len(losses) // 10 * 10].reshape(10, -1).mean(1)
        shelf.write(
            NAME,
            net,
            data="Fashion-MNIST, 60,000 pictures averaged down to 16 x 16, with their classes (one in ten hidden)",
            steps=f"{STEPS[size]} of {_BATCH} pictures, AdamW {_RATE:g}, average of decay {_DECAY:g}",
            losses="mean squared error of the noise, by tenths: " + " ".join(f"{v:.4f}" for v in tenths),
            quality=_quality(copy.deepcopy(net).float().eval(), 1000 if size == "full" else 50),
        )
    return shelf.paths


def trained() -> UNet2DModel:
    """Load the shipped network."""
    return load_checkpoint(NAME, network()).eval()


@torch.no_grad()
def sample(net: nn.Module, noise: Tensor, labels: Tensor, steps: int, schedule: DDIMScheduler | None = None) -> Tensor:
    """Denoise by deterministic DDIM on timesteps that end at the noise it was trained with (``"trailing"``)."""
    schedule = schedule or scheduler(timestep_spacing="trailing")
    schedule.set_timesteps(steps)
    x = noise
    for t in schedule.timesteps:
        x = schedule.step(net(x, t, labels).sample, t, x).prev_sample
    return x


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two sets of pictures, on the 64 principal components of the real ones."""
    real = clothes("train")[0].flatten(1).double()
    middle = real.mean(0)
    axes = torch.linalg.eigh((real - middle).T @ (real - middle)).eigenvectors[:, -64:]
    (m, A), (n, B) = ((x.mean(0), x.T.cov()) for x in ((u.flatten(1).double() - middle) @ axes for u in (a, b)))
    root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()
    return float((m - n).square().sum() + A.trace() + B.trace() - 2 * root)


def _quality(net: Any, count: int) -> str:
    """The Fréchet distance of samples from test pictures, beside that of as many training pictures."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % NO_CLASS
    noise = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    made = torch.cat([sample(net, *part, 50) for part in zip(noise.split(50), labels.split(50))])
    images, classes = clothes("train")
    real = torch.cat([images[classes == c][: -(-count // NO_CLASS)] for c in range(NO_CLASS)])[:count]
    test, noisy = clothes("test")[0], 0.1 * torch.randn(real.shape, generator=generator)
    return (
        f"Fréchet distance from the test pictures on 64 principal components: {frechet(made, test):.3f} for {count} "
        f"samples (DDIM, 50 steps), {frechet(real, test):.3f} for as many training pictures, "
        f"{frechet(real + noisy, test):.3f} for those with noise of 0.1"
    )


def _loss(module: Any, batch: tuple[Tensor, ...], step: int) -> Tensor:
    noisy, noise, timesteps, labels = batch
    return F.mse_loss(module.net(noisy, timesteps, labels).sample, noise)


def draw(generator: torch.Generator, count: int, split: str = "train") -> tuple[Tensor, ...]:
    """Noisy pictures, their noise, its timesteps and the classes, of which one in ten is hidden."""
    images, labels = clothes(split)
    at = torch.randint(len(images), (count,), generator=generator)
    noise = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    timesteps = torch.randint(1000, (count,), generator=generator)
    hidden = torch.rand(count, generator=generator) < 0.1
    noisy = scheduler().add_noise(images[at], noise, timesteps)
    return noisy, noise, timesteps, labels[at].masked_fill(hidden, NO_CLASS)
