"""Pictures as tensors, for the commands that hand them to a network."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hadamard.cli.files import read_image

__all__ = ["as_pixels", "read_colours", "read_missing"]


def read_colours(path: Path) -> tuple[Tensor, bool]:
    """Read a picture as (1, 3, H, W), and say whether it is grey."""
    pixels = read_image(path)
    if not np.isfinite(pixels).all():
        raise ValueError(f"{path}: the picture must be finite, got {int((~np.isfinite(pixels)).sum())} NaN or infinite")
    if pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(f"{path}: values must lie in [0, 1], got {pixels.min():.3g} to {pixels.max():.3g}")
    x = torch.from_numpy(np.ascontiguousarray(pixels))
    grey = x.ndim == 2
    return (x.expand(3, -1, -1) if grey else x.permute(2, 0, 1))[None], grey


def as_pixels(x: Tensor, grey: bool) -> np.ndarray:
    """Turn such a picture into what is written to a file."""
    return (x[0].mean(0) if grey else x[0].permute(1, 2, 0)).numpy()


def read_missing(path: Path, shape: tuple[int, int]) -> Tensor:
    """Read which pixels of a picture of that height and width are missing: the white ones."""
    pixels = read_image(path)
    grey = pixels if pixels.ndim == 2 else pixels.mean(-1)
    if grey.shape != shape:
        raise ValueError(
            f"{path}: the mask must have the picture's size, {shape[0]} by {shape[1]}, got {grey.shape[0]} by "
            f"{grey.shape[1]}"
        )
    if np.all(grey >= 0.5):
        raise ValueError(f"{path}: the mask is white everywhere, so that no pixel is known")
    return torch.from_numpy(grey >= 0.5)
