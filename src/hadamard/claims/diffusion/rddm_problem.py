"""Pictures of clothes and photographs, and what is done to them that is to be undone."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.claims import torchvision_shim
from hadamard.data import fashion_mnist, photographs
from hadamard.imaging.degradations import GaussianBlur, darkened, rain

torchvision_shim.install()
from hadamard.diffusion.rddm_pipeline import TASKS  # noqa: E402

__all__ = ["SIDE", "TASKS", "clothes", "colours", "degraded_clothes", "degraded_photographs", "patches", "psnr"]

SIDE = 32


@cache
def clothes(split: str) -> Float[Tensor, "n 1 32 32"]:
    """Fashion-MNIST with a black margin, in [0, 1]."""
    return F.pad(fashion_mnist(split).images, (2, 2, 2, 2))


def degraded_clothes(x: Float[Tensor, "b 1 32 32"], generator: torch.Generator) -> Float[Tensor, "b 1 32 32"]:
    """Darken, let it rain, and blur; the streaks alone are random."""
    slant = 1.2 * float(torch.rand((), generator=generator)) - 0.6
    wet = rain(darkened(x, 1.8, 0.7), density=0.02, length=9, slant=slant, strength=0.8, generator=generator)
    return GaussianBlur((SIDE, SIDE), 0.7)(wet)


@cache
def colours(split: str) -> list[Float[Tensor, "3 h w"]]:
    """Photographs, those that exist in grey only with three equal channels."""
    found = photographs(split, colour=True)
    grey = {name: x.expand(3, -1, -1) for name, x in photographs(split).items() if name not in found}
    return [*found.values(), *grey.values()]


def patches(generator: torch.Generator, count: int, side: int, split: str = "train") -> Float[Tensor, "b 3 s s"]:
    """Square parts of photographs, half of them of the photographs in colour, mirrored at random."""
    pictures = colours(split)
    of_colour = len(photographs(split, colour=True))
    found = []
    for i in range(count):
        among = of_colour if i % 2 else len(pictures)
        x = pictures[int(torch.randint(among, (), generator=generator))]
        top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in x.shape[-2:])
        x = x[:, top : top + side, left : left + side]
        found.append(x.flip(-1) if torch.rand((), generator=generator) < 0.5 else x)
    return torch.stack(found)


def degraded_photographs(
    x: Float[Tensor, "b 3 h w"], task: str, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Degrade pictures by one task, as strongly as chance says."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def noisy(y: Tensor, sigma: float) -> Tensor:
        return (y + sigma * torch.randn(y.shape, generator=generator)).clamp(0, 1)

    if task == "noise":
        return noisy(x, between(0.05, 0.2))
    if task == "blur":
        return noisy(GaussianBlur(tuple(x.shape[-2:]), between(0.8, 2.0))(x), 0.01)
    if task == "dark":
        return noisy(darkened(x, between(1.2, 2.2), between(0.3, 0.7)), 0.01)
    if task == "rain":
        return rain(
            x, density=between(0.005, 0.02), length=round(between(7, 15)), slant=between(-0.5, 0.5),
            strength=between(0.4, 0.9), generator=generator,
        )  # fmt: skip
    cells = [-(-n // 6) for n in x.shape[-2:]]
    hole = torch.rand(len(x), 1, *cells, generator=generator) < between(0.1, 0.3)
    return x * ~hole.repeat_interleave(6, -1).repeat_interleave(6, -2)[..., : x.shape[-2], : x.shape[-1]]


def psnr(x: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"]) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1] (clipped), averaged over them."""
    error = (x.clamp(0, 1) - truth).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())
