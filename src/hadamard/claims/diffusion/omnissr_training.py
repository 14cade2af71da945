"""The small super-resolving diffusion model in pixel space that the claim of omnissr runs on, and how it is trained."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hadamard.claims import torchvision_shim
from hadamard.claims.shipping import one_cycle, shipping
from hadamard.data import panoramas, photographs
from hadamard.diffusion.tangent_sphere import TangentSphere, enlarge
from hadamard.operators import bicubic
from hadamard.training import load_checkpoint

torchvision_shim.install()
from diffusers import DDPMScheduler, UNet2DModel  # noqa: E402

__all__ = ["BOUNDARY", "NAME", "STEPS", "network", "scheduler", "train_network", "trained"]

NAME, BOUNDARY = "omnissr", ("symmetric", "circular")
STEPS = {"quick": 60, "full": 2000}
_BATCH, _CROP, _RATE, _DECAY = 16, 32, 2e-3, 0.999


def network() -> UNet2DModel:
    """Build the network: noisy picture and enlarged small picture in, velocity out; three levels of one layer."""
    return UNet2DModel(
        sample_size=64,
        in_channels=6,
        out_channels=3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )


def scheduler() -> DDPMScheduler:
    """The noise that it is trained with; it predicts the velocity."""
    return DDPMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")


def trained() -> UNet2DModel:
    """Load the shipped network."""
    return load_checkpoint(NAME, network()).eval()


def train_network(size: str, out: str | Path | None, resume: bool, *, seed: int = 0) -> list[Path]:
    """Train it and write the running average of its weights, in half precision, with its provenance."""
    if size not in STEPS:
        raise ValueError(f"size must be one of {', '.join(map(repr, STEPS))}, got {size!r}")
    with shipping("omnissr", size, out, resume, seed=seed) as shelf:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            module = _Averaged(network())
        losses = one_cycle(
            module,
            _loss,
            _draw,
            steps=STEPS[size],
            rate=_RATE,
            seed=seed,
            rise=0.05,
            state=shelf.state(NAME),
            progress=NAME,
            after_step=lambda: module.average.update_parameters(module.net),
        )
        tenths = losses[: len(losses) // 10 * 10].reshape(10, -1).mean(1)
        shelf.write(
            NAME,
            module.average.module.half(),
            data="twelve panoramas, as views of two sizes, and five photographs; reduced by 2 or 4 and enlarged",
            steps=f"{STEPS[size]} of {_BATCH} cut-outs of {_CROP}^2, Adam {_RATE:g}, average of decay {_DECAY:g}",
            losses="mean squared error of the velocity, by tenths: " + " ".join(f"{v:.4f}" for v in tenths),
        )
    return shelf.paths


class _Averaged(nn.Module):
    """A network and the running average of its weights."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(_DECAY))


def _loss(module: Any, batch: tuple[Tensor, ...], step: int) -> Tensor:
    noisy, blurred, velocity, timesteps = batch
    return F.mse_loss(module.net(torch.cat([noisy, blurred], 1), timesteps).sample, velocity)


@cache
def _pairs() -> list[Tensor]:
    """Pictures with the same reduced and enlarged again, (n, 2, 3, h, w) in [-1, 1], one tensor a size of picture."""
    whole = torch.stack(list(panoramas("train").values())) * 2 - 1
    pairs = []
    for x in (whole, F.avg_pool2d(whole, 2)):
        sphere = TangentSphere(x.shape[-2:])
        for factor in (2, 4):
            y = bicubic(factor, x.shape[-2:], boundary=BOUNDARY)(x)
            both = sphere(torch.stack([x, enlarge(y, factor)], 1))
            pairs.append(both.permute(0, 3, 1, 2, 4, 5).flatten(0, 1).contiguous())
    for photo in photographs("train", colour=True).values():
        x = F.avg_pool2d(photo * 2 - 1, 2)
        x = x[:, : x.shape[1] // 4 * 4, : x.shape[2] // 4 * 4]
        for factor in (2, 4):
            y = bicubic(factor, x.shape[-2:])(x)
            again = F.interpolate(y[None], x.shape[-2:], mode="bicubic", antialias=True)[0]
            pairs.append(torch.stack([x, again])[None])
    return pairs


def _draw(generator: torch.Generator) -> tuple[Tensor, ...]:
    """Noisy cut-outs, what they look like blurred, the velocity, and the timesteps."""
    pairs = _pairs()
    chance = torch.tensor([len(p) * p[0, 0, 0].numel() for p in pairs], dtype=torch.float64)
    cuts = []
    for which in torch.multinomial(chance, _BATCH, True, generator=generator).tolist():
        n, (height, width) = len(pairs[which]), pairs[which].shape[-2:]
        i, top, left = (
            int(torch.randint(k, (), generator=generator)) for k in (n, height - _CROP + 1, width - _CROP + 1)
        )
        cut = pairs[which][i, ..., top : top + _CROP, left : left + _CROP]
        cuts.append(cut.flip(-1) if torch.rand((), generator=generator) < 0.5 else cut)
    sharp, blurred = torch.stack(cuts).unbind(1)
    noise = torch.randn(sharp.shape, generator=generator)
    timesteps = torch.randint(1000, (_BATCH,), generator=generator)
    schedule = scheduler()
    noisy, velocity = (make(sharp, noise, timesteps) for make in (schedule.add_noise, schedule.get_velocity))
    return noisy, blurred, velocity, timesteps
