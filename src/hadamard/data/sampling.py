"""Which samples of k-space an accelerated scan takes: at random, in spokes, or whole lines."""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from hadamard.validation import check_option, check_range

__all__ = ["PATTERNS", "undersampling_mask"]

PATTERNS = ("variable-density", "gaussian", "radial", "lines")
_GOLDEN = math.pi * (math.sqrt(5) - 1) / 2


def undersampling_mask(
    height: int,
    width: int,
    acceleration: float,
    pattern: str = "variable-density",
    *,
    centre: float = 0.08,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "h w"]:
    """Draw a mask of ``height * width / acceleration`` samples of k-space, zero frequency at ``n // 2``.

    Parameters
    ----------
    height, width
        Shape of k-space.
    acceleration
        Samples in all over samples taken, at least 1.
    pattern
        ``"variable-density"``: points, with a density that falls with the third power towards the corner;
        ``"gaussian"``: points of Gaussian density; ``"radial"``: grid points along spokes at golden angles from a
        random first one; ``"lines"``: whole rows, denser in the middle.
    centre
        Fraction of the height (and of the width) around the middle that is always measured; not for ``"radial"``.
    generator
        Draws it; ``None``: a fixed seed.

    Returns
    -------
    Tensor
        True where k-space is measured. Spokes, which are whole, may take a few samples more, rows a few more or fewer.

    Raises
    ------
    ValueError
        If a number is out of range or the pattern is not known.

    Examples
    --------
    >>> undersampling_mask(64, 64, 8).sum()
    tensor(512)
    """
    check_range(height, "height", 1, integer=True)
    check_range(width, "width", 1, integer=True)
    check_range(acceleration, "acceleration", 1)
    check_range(centre, "centre", 0, 1)
    check_option(pattern, "pattern", PATTERNS)
    generator = generator or torch.Generator().manual_seed(0)
    count = max(1, round(height * width / acceleration))
    if pattern == "radial":
        return _spokes(height, width, count, generator)
    if pattern == "lines":
        rows = _points(height, 1, max(1, round(height / acceleration)), pattern, centre, generator)
        return rows.expand(height, width).clone()
    return _points(height, width, count, pattern, centre, generator)


def _points(height: int, width: int, count: int, pattern: str, centre: float, generator: torch.Generator) -> Tensor:
    """So many points: those of the middle first, the others by their density, without replacement."""
    y, x = (_offsets(n) for n in (height, width))
    inside = (2 * y.abs() * height < centre * height)[:, None] & (2 * x.abs() * width < centre * width)
    radius = ((2 * y[:, None]) ** 2 + (2 * x) ** 2).sqrt() / math.sqrt(1 if width == 1 else 2)
    density = torch.exp(-((radius / 0.25) ** 2) / 2) if pattern == "gaussian" else (1 - radius).clamp(min=0) ** 3
    density = density + 1e-4
    density[inside] = 1e6  # practically certain
    chosen = torch.multinomial(density.flatten(), count, generator=generator)
    return torch.zeros(height * width, dtype=torch.bool).index_fill_(0, chosen, True).reshape(height, width)


def _offsets(n: int) -> Tensor:
    """Distance from the zero frequency, in cycles per sample; none along an axis of one sample."""
    return (torch.arange(n) - n // 2) / n


def _spokes(height: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    angle = math.pi * float(torch.rand((), generator=generator))
    along = torch.arange(-1, 1, 0.5 / max(height, width))
    for _ in range(4 * (height + width)):
        row = (along * math.sin(angle) * height / 2).round().long() + height // 2
        column = (along * math.cos(angle) * width / 2).round().long() + width // 2
        there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        mask[row[there], column[there]] = True
        angle += _GOLDEN
        if int(mask.sum()) >= count:
            return mask
    return torch.ones_like(mask) if count == mask.numel() else mask
