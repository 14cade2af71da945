"""The UNet of Stable Diffusion 1.5, and the same blocks in other widths, with random weights."""

from typing import Any

import torch
from torch import Tensor

from hadamard.claims import torchvision_shim

torchvision_shim.install()
from diffusers import DDIMScheduler, UNet2DConditionModel  # noqa: E402

__all__ = ["denoised", "network"]

_BLOCKS = ("CrossAttn",) * 3 + ("",)


def network(width: int = 320, latent: int = 64, device: str = "cpu") -> tuple[Any, Tensor, Tensor]:
    """The network, a latent and a text of 77 tokens; on the ``meta`` device it takes no memory."""
    with torch.device(device), torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = UNet2DConditionModel(
            sample_size=latent,
            cross_attention_dim=768,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            down_block_types=[f"{kind}DownBlock2D" for kind in _BLOCKS],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(_BLOCKS)],
            norm_num_groups=32,
        )
        return net.eval(), torch.randn(1, 4, latent, latent), torch.randn(1, 77, 768)


@torch.no_grad()
def denoised(net: Any, latent: Tensor, text: Tensor, schedule: DDIMScheduler, steps: int) -> Tensor:
    """The last latent of so many steps."""
    schedule.set_timesteps(steps)
    for t in schedule.timesteps:
        latent = schedule.step(net(latent, t, text).sample, t, latent).prev_sample
    return latent
