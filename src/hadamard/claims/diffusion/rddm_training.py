"""The networks of residual denoising and of its peers: one architecture, one loss, as many steps on equal pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hadamard.claims import torchvision_shim
from hadamard.claims.diffusion import rddm_problem as problem
from hadamard.claims.shipping import Averaged, one_cycle, shipping
from hadamard.training import load_checkpoint
from hadamard.validation import check_option

torchvision_shim.install()
from diffusers import DDIMScheduler, UNet2DModel  # noqa: E402

from hadamard.diffusion import RDDMScheduler, rddm_loss  # noqa: E402
from hadamard.diffusion.rddm_pipeline import restorer  # noqa: E402

__all__ = ["NAMES", "ddim", "network", "schedule", "train", "trained"]

_QUICK, _STEPS = 20, {"rddm_photographs": 2400, "rddm_noise": 600}  # the others 3000
NAMES = ("rddm_residual", "rddm_regression", "rddm_ddim", "rddm_photographs", "rddm_noise")
_RATE, _DECAY = 1e-3, 0.995
_CLOTHES, _PHOTOGRAPHS, _PATCH = 16, 10, 48


def network(name: str) -> UNet2DModel:
    """Build the network of a checkpoint: that of the restorer that ships, on grey pictures without its classes."""
    channels = 3 if "photographs" in name else 1
    inputs = channels * (1 if "regression" in name else 2)
    return restorer(inputs, channels, len(problem.TASKS) if channels == 3 else None)


def schedule(name: str, **options: Any) -> RDDMScheduler:
    """The scheduler that a network is trained with."""
    kind = "epsilon" if name == "rddm_noise" else "residual"
    time = "timestep" if "photographs" in name else "cumsum"
    return RDDMScheduler(**{"prediction_type": kind, "time_input": time, **options})


def ddim() -> DDIMScheduler:
    """The peer's scheduler: diffusers' own noise, on timesteps that end at the noise it was trained with."""
    return DDIMScheduler(timestep_spacing="trailing")


def trained(name: str) -> UNet2DModel:
    """Load a shipped network."""
    return load_checkpoint(name, network(name)).eval()


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, seed: int = 0,
    names: tuple[str, ...] = NAMES,
) -> list[Path]:  # fmt: skip
    """Train all of them by the same recipe, and write the running averages of their weights in half precision."""
    check_option(size, "size", ("quick", "full"))
    with shipping("rddm", size, out, resume, seed=seed) as shelf:
        for name in names:
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                module = Averaged(network(name).to(memory_format=torch.channels_last), _DECAY)
            photos = "photographs" in name
            steps = _STEPS.get(name, 3000) if size == "full" else _QUICK
            losses = one_cycle(
                module,
                _loss_of(name),
                _draw_photographs if photos else _draw_clothes,
                steps=steps,
                rate=_RATE,
                seed=seed,
                state=shelf.state(name),
                progress=name,
                optimizer=torch.optim.Adam(module.net.parameters(), lr=_RATE, fused=True),
                after_step=_after(module),
            )
            tenths = losses[: len(losses) // 10 * 10].reshape(10, -1).mean(1)
            batch = f"{_PHOTOGRAPHS} patches of {_PATCH} x {_PATCH}" if photos else f"{_CLOTHES} pictures"
            shelf.write(
                name,
                module.average.module.half(),
                data=f"patches of nine photographs, degraded as drawn: {', '.join(problem.TASKS)}" if photos else
                "Fashion-MNIST, 60,000 pictures with a margin, 32 x 32, darkened, rained on and blurred",
                steps=f"{steps} of {batch}, Adam {_RATE:g}, average of decay {_DECAY:g}",
                losses="mean absolute error, by tenths: " + " ".join(f"{v:.4f}" for v in tenths),
            )  # fmt: skip
    return shelf.paths


def _after(module: Averaged) -> Callable[[], None]:
    return lambda: module.average.update_parameters(module.net)


def _draw_clothes(generator: torch.Generator) -> tuple[Any, ...]:
    images = problem.clothes("train")
    x = images[torch.randint(len(images), (_CLOTHES,), generator=generator)]
    return x * 2 - 1, problem.degraded_clothes(x, generator) * 2 - 1, None, generator


def _draw_photographs(generator: torch.Generator) -> tuple[Any, ...]:
    x = problem.patches(generator, _PHOTOGRAPHS, _PATCH)
    parts = x.split(_PHOTOGRAPHS // len(problem.TASKS))
    y = torch.cat([problem.degraded_photographs(part, task, generator) for part, task in zip(parts, problem.TASKS)])
    labels = torch.arange(len(problem.TASKS)).repeat_interleave(_PHOTOGRAPHS // len(problem.TASKS))
    return x * 2 - 1, y * 2 - 1, labels, generator


def _loss_of(name: str) -> Callable[[Any, Any, int], Tensor]:
    def regression(module: Any, batch: tuple[Any, ...], step: int) -> Tensor:
        clean, degraded, labels, _ = batch
        return F.l1_loss(module.net(degraded, 0, labels).sample, degraded - clean)

    def conditional(module: Any, batch: tuple[Any, ...], step: int) -> Tensor:
        clean, degraded, labels, generator = batch
        times = torch.randint(1000, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = ddim().add_noise(clean, noise, times)
        return F.l1_loss(module.net(torch.cat([noisy, degraded], 1), times, labels).sample, noise)

    def residual(module: Any, batch: tuple[Any, ...], step: int) -> Tensor:
        clean, degraded, labels, generator = batch
        return rddm_loss(module.net, scheduler, clean, degraded, class_labels=labels, generator=generator)

    if "regression" in name:
        return regression
    if name == "rddm_ddim":
        return conditional
    scheduler = schedule(name)
    return residual
