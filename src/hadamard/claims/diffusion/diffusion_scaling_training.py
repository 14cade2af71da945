"""Small denoisers of several widths and depths, trained alike on pictures of clothes: runs to fit a scaling law to."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.claims.diffusion import clothes
from hadamard.claims.shipping import one_cycle, shipping
from hadamard.diffusion import sdxl_variant
from hadamard.training import load_checkpoint

clothes.torchvision_shim.install()
from diffusers import UNet2DConditionModel  # noqa: E402

__all__ = ["DEPTHS", "WIDTHS", "Conditioned", "name", "train", "trained", "validation_loss"]

WIDTHS = ((4, 1), (8, 1), (12, 1), (16, 1), (24, 1), (32, 1))
DEPTHS = ((12, 3), (12, 6))
_STEPS = {"quick": 20, "full": 400}
_BATCH, _RATE, _TEXT = 32, 2e-3, 32


class Conditioned(nn.Module):
    """A UNet of SDXL's kind with two levels, the lower one with attention, to which the class is one token of text.

    Parameters
    ----------
    width
        Of the first level.
    depth
        Transformer blocks in each layer of the second.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        config = sdxl_variant(width, (0, depth), head_width=4, groups=4, text_width=_TEXT, sample_size=clothes.SIZE)
        one = {"in_channels": 1, "out_channels": 1, "addition_embed_type": None, "layers_per_block": 1}
        self.token = nn.Embedding(clothes.NO_CLASS + 1, _TEXT)
        self.unet = UNet2DConditionModel(**{**config, **one})

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The noise in the pictures."""
        return self.unet(x, t, self.token(labels)[:, None]).sample


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, seed: int = 0, device: str = "cpu"
) -> list[Path]:
    """Train all of them, each as long on the same batches, and write their weights in half precision."""
    if size not in _STEPS:
        raise ValueError(f"size must be one of {', '.join(map(repr, _STEPS))}, got {size!r}")
    with shipping("diffusion_scaling", size, out, resume, seed=seed, device=device) as shelf:
        for width, depth in (*WIDTHS, *DEPTHS):
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                net = Conditioned(width, depth).to(device)
            key = name(width, depth)
            losses = one_cycle(
                net,
                _loss,
                lambda generator: tuple(part.to(device) for part in clothes.draw(generator, _BATCH)),
                steps=_STEPS[size],
                rate=_RATE,
                seed=seed,
                optimizer=torch.optim.AdamW(net.parameters(), lr=_RATE, fused=True),
                state=shelf.state(key),
                progress=key,
            )
            shelf.write(
                key,
                net.cpu().half(),
                data="Fashion-MNIST, 60,000 pictures averaged down to 16 x 16, with their classes (one in ten hidden)",
                steps=f"{_STEPS[size]} of {_BATCH} pictures, AdamW {_RATE:g}",
                loss=f"mean squared error of the noise, last tenth: {float(losses[-len(losses) // 10 :].mean()):.4f}",
            )
    return shelf.paths


def trained(width: int, depth: int) -> Conditioned:
    """Load a shipped network."""
    return load_checkpoint(name(width, depth), Conditioned(width, depth)).eval()


@torch.no_grad()
def validation_loss(net: nn.Module, batches: int) -> float:
    """Mean squared error of the noise in test pictures, on the same pictures, times and noise for every network."""
    generator = torch.Generator().manual_seed(1)
    return sum(float(_loss(net, clothes.draw(generator, 100, "test"), 0)) for _ in range(batches)) / batches


def _loss(net: Any, batch: tuple[Tensor, ...], step: int) -> Tensor:
    noisy, noise, timesteps, labels = batch
    return F.mse_loss(net(noisy, timesteps, labels), noise)


def name(width: int, depth: int) -> str:
    """Name of the checkpoint."""
    return f"diffusion_scaling_{width}_{depth}"
