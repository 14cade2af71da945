"""A mixture of 25 narrow Gaussians, whose score is known exactly: samples between the modes, by sampler."""

from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor, nn

from hadamard.claims.diffusion import clothes
from hadamard.diffusion import DPMOTPipeline, LatentTransport

clothes.torchvision_shim.install()
from diffusers import DPMSolverMultistepScheduler  # noqa: E402

__all__ = ["LEVELS", "Exact", "Modes"]

LEVELS = (50, 250)
_WIDTH = 0.05


class Exact(nn.Module):
    """What a perfect network would predict: the noise in samples of a mixture of 25 narrow Gaussians."""

    modes: Tensor
    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        grid = torch.cartesian_prod(*(torch.arange(5.0) - 2,) * 2)
        self.register_buffer("modes", grid / grid.std(0, correction=0))
        self.register_buffer("kept", clothes.scheduler().alphas_cumprod)
        self.config = SimpleNamespace(num_class_embeds=None)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x: Tensor, t: Any, labels: Any = None) -> Any:
        """Give the noise, as a network does; classes are ignored."""
        kept = self.kept[int(t)]
        offset = x.flatten(1)[:, None] - kept.sqrt() * self.modes
        variance = kept * _WIDTH**2 + 1 - kept
        nearness = (-offset.square().sum(2) / (2 * variance)).softmax(1)
        noise = (1 - kept).sqrt() * (nearness[..., None] * offset).sum(1) / variance
        return SimpleNamespace(sample=noise.reshape(x.shape))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples of the mixture, as pictures of two channels and one pixel."""
        at = torch.randint(len(self.modes), (count,), generator=generator)
        return (self.modes[at] + _WIDTH * torch.randn(count, 2, generator=generator))[..., None, None]


@dataclass(frozen=True)
class Modes:
    """The exact network, stored data, data that were held out, and the noise of every sampler."""

    net: Exact
    stored: Tensor
    held_out: Tensor
    noise: Tensor

    def plain(self, multistep: bool) -> dict[int, dict[str, float]]:
        """By evaluations: of DDIM, or of DPM-Solver++."""
        found = {}
        for steps in (5, 10, 20, 50):
            schedule = DPMSolverMultistepScheduler(timestep_spacing="trailing") if multistep else None
            found[steps] = self._measured(clothes.sample(self.net, self.noise, self.noise, steps, schedule))
        return found

    def real(self) -> dict[int, dict[str, float]]:
        """Fresh samples of the mixture."""
        return {0: self._measured(self.net.draw(len(self.noise), torch.Generator().manual_seed(99)))}

    def express(self, coupling: str) -> dict[tuple[int, int], dict[str, float]]:
        """By level and evaluations."""
        found = {}
        for level, pipe in self.pipelines.items():
            for last in (5, 10):
                x = pipe(
                    noise=self.noise, coupling=coupling, generator=torch.Generator().manual_seed(5),
                    num_inference_steps=last * 1000 // level, last_steps=last, output_type="latent",
                ).images  # fmt: skip
                found[level, last] = self._measured(x)
        return found

    @cached_property
    def pipelines(self) -> dict[int, DPMOTPipeline]:
        """One for each level."""
        made = {}
        for level in LEVELS:
            schedule = clothes.scheduler(timestep_spacing="trailing")
            transport = LatentTransport.fit(self.stored, schedule, 10_000 // level, 10)
            made[level] = DPMOTPipeline(self.net, schedule, transport)
            made[level].set_progress_bar_config(disable=True)
        return made

    def _measured(self, x: Tensor) -> dict[str, float]:
        x = x.flatten(1)
        a, b = (np.full(len(u), 1 / len(u)) for u in (x, self.held_out))
        M = torch.cdist(x.double(), self.held_out.flatten(1).double()).square().numpy()
        off = torch.cdist(x, self.net.modes).amin(1) > 4 * _WIDTH
        return {"off": float(off.double().mean()), "w2": float(ot.emd2(a, b, M, numItermax=10**7)) ** 0.5}
