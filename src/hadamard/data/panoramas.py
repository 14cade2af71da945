"""Panoramas of the whole sphere, real photographs in the public domain.

They are sixteen of the high-dynamic-range environments of npm's ``@pmndrs/assets`` (CC0; photographs of Poly Haven,
512 x 256), tone-mapped once to 8 bits and kept beside this file. ``python -m hadamard.data.panoramas`` makes the file
again (``pip install OpenEXR pillow``).
"""

import base64
import re
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.data.fetch import fetch
from hadamard.validation import check_option

__all__ = ["panoramas"]

_FILE, _HEIGHT, _WIDTH = "panoramas.webp", 256, 512
_NAMES = {
    "train": ("apartment", "bridge", "city", "dawn", "hall", "lab", "lobby", "night", "sky", "studio", "sunset",
              "warehouse"),
    "test": ("esplanade", "forest", "venice", "workshop"),
}  # fmt: skip


def panoramas(split: str = "train", *, dtype: torch.dtype = torch.float32) -> dict[str, Float[Tensor, "3 256 512"]]:
    """Equirectangular photographs (3, 256, 512) with values in [0, 1]; nothing is downloaded.

    Row 0 is the zenith. The sources are compressed with loss, and so is the copy kept here (WebP).

    Parameters
    ----------
    split
        ``"train"`` (twelve), ``"test"`` (``esplanade``, ``forest``, ``venice``, ``workshop``) or ``"all"``.
    dtype
        Floating dtype of the tensors.

    Raises
    ------
    ValueError
        If there is no such split.
    ImportError
        If pillow is missing.

    References
    ----------
    https://github.com/pmndrs/assets 1.7.0, CC0 1.0; the environments are from https://polyhaven.com.

    Examples
    --------
    >>> {name: tuple(x.shape) for name, x in panoramas("test").items()}["venice"]
    (3, 256, 512)
    """
    check_option(split, "split", ("train", "test", "all"))
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("panoramas need pillow: pip install 'hadamard[imaging]'") from error
    with files("hadamard.data").joinpath(_FILE).open("rb") as file:
        sheet = torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0).to(dtype) / 255
    names = _NAMES["train"] + _NAMES["test"]
    chosen = names if split == "all" else _NAMES[split]
    return dict(zip(chosen, sheet.split(_HEIGHT, 1)[names.index(chosen[0]) :]))


def _tone_mapped(path: Path) -> np.ndarray:
    """An environment in 8 bits: mean log luminance at 0.18, x / (1 + x), sRGB."""
    import OpenEXR

    packed = re.search(r"base64,([A-Za-z0-9+/=]+)", path.read_text())
    if packed is None:
        raise ValueError(f"{path}: holds no base64 data")
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(base64.b64decode(packed[1]))
        file.flush()
        with OpenEXR.File(file.name) as image:
            x = np.maximum(np.asarray(image.channels()["RGB"].pixels, np.float64), 0)
    luminance = x @ [0.2126, 0.7152, 0.0722]
    x = x * (0.18 / np.exp(np.log(luminance + 1e-4).mean()))
    x = x / (1 + x)
    coded = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055).clip(0, 1)
    return (255 * coded + 0.5).astype(np.uint8)


def _make() -> None:
    from PIL import Image

    paths = fetch("panoramas")
    rows = [_tone_mapped(paths[f"{name}.exr.js"]) for name in _NAMES["train"] + _NAMES["test"]]
    Image.fromarray(np.concatenate(rows)).save(Path(__file__).with_name(_FILE), quality=92, method=6)


if __name__ == "__main__":
    _make()
