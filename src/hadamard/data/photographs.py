"""Photographs that come with scikit-image and scikit-learn, split by photograph."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_option

__all__ = ["photographs"]

_NEEDS = "photographs need scikit-image and pillow: pip install 'hadamard[imaging]'"

# name: (split, where it lies, terms)
_PHOTOGRAPHS = {
    "astronaut": ("train", "skimage", "public domain (NASA)"),
    "brick": ("train", "skimage", "CC0 (CC0Textures)"),
    "china": ("train", "sklearn", "CC BY 2.0 (danielbuechele)"),
    "coffee": ("train", "skimage", "CC0 (Rachel Michetti)"),
    "grass": ("train", "skimage", "CC0 (linolafett)"),
    "gravel": ("train", "skimage", "CC0 (CC0Textures)"),
    "hubble_deep_field": ("train", "skimage", "public domain (NASA)"),
    "moon": ("train", "skimage", "public domain (NASA)"),
    "retina": ("train", "skimage", "CC0 (Haggstrom, WikiJournal of Medicine)"),
    "camera": ("test", "skimage", "CC0 (Lav Varshney)"),
    "cat": ("test", "skimage", "CC0 (Stefan van der Walt)"),
    "coins": ("test", "skimage", "no known restrictions (Brooklyn Museum)"),
    "flower": ("test", "sklearn", "CC BY 2.0 (vultilion)"),
    "rocket": ("test", "skimage", "public domain (SpaceX)"),
}
_GREY_ONLY = {"brick", "grass", "gravel", "moon", "camera", "coins"}
_LUMA = (0.299, 0.587, 0.114)


def photographs(
    split: str = "train", *, colour: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, Float[Tensor, "..."]]:
    """Real photographs with values in [0, 1], so that what is tuned on ``train`` is judged on other pictures.

    Nothing is downloaded: the pictures lie in scikit-image (``hadamard[imaging]``) and scikit-learn. Grey is the luma
    of Rec. 601; photographs that exist in grey only are left out where colour is asked for. The five of ``test`` are
    ``camera``, ``cat``, ``coins``, ``flower`` and ``rocket``.

    Parameters
    ----------
    split
        ``"train"`` (nine photographs), ``"test"`` (five) or ``"all"``.
    colour
        Return (3, H, W) instead of (H, W); five photographs of ``train`` and three of ``test`` have colour.
    dtype
        Floating dtype of the tensors.

    Returns
    -------
    dict
        Tensors of shape (H, W) or (3, H, W) by name, in alphabetical order within a split, each of its own size.

    Raises
    ------
    ValueError
        If there is no such split.
    ImportError
        If scikit-image or pillow is missing.

    Examples
    --------
    >>> {name: tuple(x.shape) for name, x in photographs("test", colour=True).items()}
    {'cat': (3, 300, 451), 'flower': (3, 427, 640), 'rocket': (3, 427, 640)}
    """
    check_option(split, "split", ("train", "test", "all"))
    chosen = {n: home for n, (part, home, _) in _PHOTOGRAPHS.items() if split in (part, "all")}
    return {n: _tensor(_pixels(n, home), colour, dtype) for n, home in chosen.items()
            if not (colour and n in _GREY_ONLY)}  # fmt: skip


def _pixels(name: str, home: str) -> np.ndarray:
    try:
        if home == "sklearn":
            from sklearn.datasets import load_sample_image

            return load_sample_image(f"{name}.jpg")
        from skimage import data
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    return getattr(data, name)()


def _tensor(pixels: np.ndarray, colour: bool, dtype: torch.dtype) -> Tensor:
    x = torch.from_numpy(np.array(pixels)).to(dtype) / 255
    if x.ndim == 3:
        x = x.movedim(-1, 0)
        x = x.contiguous() if colour else torch.einsum("c,chw->hw", x.new_tensor(_LUMA), x)
    return x.clamp(0, 1)
