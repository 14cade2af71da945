"""Generated images for tomography: random ellipses, of even density or shaded, in a larger one."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range

__all__ = ["ellipses"]


def ellipses(
    count: int, size: int = 64, *, generator: torch.Generator | None = None
) -> Float[Tensor, "count 1 size size"]:
    """Draw random cross-sections: a body of density near 1, often with a shell like bone, organs, and fine detail.

    They are made up, and honest about it: no anatomy is copied.

    Parameters
    ----------
    count
        Number of images.
    size
        Height and width in pixels.
    generator
        Draws them; ``None``: a fixed seed.

    Returns
    -------
    Tensor
        Densities in [0, 2.5], 0 outside the inscribed circle, shape (count, 1, size, size). Edges are as sharp as
        pixels allow: a pixel on an edge has the mean of both sides.

    Raises
    ------
    ValueError
        If a number is not positive.

    Examples
    --------
    >>> ellipses(2, 32).shape
    torch.Size([2, 1, 32, 32])
    """
    check_range(count, "count", 1, integer=True)
    check_range(size, "size", 1, integer=True)
    generator = generator or torch.Generator().manual_seed(0)
    return torch.stack([_one(size, generator) for _ in range(count)])[:, None]


def _one(size: int, generator: torch.Generator) -> Tensor:
    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    line = (torch.arange(size) - (size - 1) / 2) * (2 / size)
    x, y = line[None, :], -line[:, None]
    soft = 2 / size  # a pixel

    def ellipse(a: float, b: float, x0: float, y0: float, angle: float) -> tuple[Tensor, Tensor]:
        """How much of each pixel lies inside, and how far out it is (1 on the edge)."""
        u = (x - x0) * math.cos(angle) + (y - y0) * math.sin(angle)
        v = (y - y0) * math.cos(angle) - (x - x0) * math.sin(angle)
        far = ((u / a) ** 2 + (v / b) ** 2).sqrt()
        return ((1 - far) * min(a, b) / soft + 0.5).clamp(0, 1), far

    a, b, angle = number(0.45, 0.85), number(0.45, 0.85), number(0, math.pi)
    x0, y0 = number(-0.1, 0.1), number(-0.1, 0.1)
    body, far = ellipse(a, b, x0, y0, angle)
    image = body * (number(0.8, 1.1) + number(-0.1, 0.1) * far)
    if number(0, 1) < 0.6:  # a shell
        thickness = number(0.04, 0.12)
        inner, _ = ellipse(a - thickness, b - thickness, x0, y0, angle)
        image = torch.where(body > inner, image + (body - inner) * number(0.3, 1.2), image)
    for _ in range(int(number(4, 16))):
        where, reach = number(0, 2 * math.pi), number(0, 0.75)
        at = reach * a * math.cos(where), reach * b * math.sin(where)
        large = number(0, 1) ** 2 * 0.3 + 0.02
        part, far = ellipse(
            large, large * number(0.3, 1), x0 + at[0] * math.cos(angle) - at[1] * math.sin(angle),
            y0 + at[0] * math.sin(angle) + at[1] * math.cos(angle), number(0, math.pi),
        )  # fmt: skip
        kind = number(0, 1)
        if kind < 0.15:  # air
            image = image * (1 - part)
        elif kind < 0.3:  # bone
            image = image + part * number(0.4, 1.2)
        else:
            image = image + part * number(-0.25, 0.25) * (1 - number(0, 0.6) * far.clamp(max=1))
    inside = (x**2 + y**2 <= 1).to(image.dtype)
    return (image * inside * body.clamp(min=0)).clamp(0, 2.5)
