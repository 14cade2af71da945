"""Handwritten digits that come with scikit-learn."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hadamard.validation import check_range

__all__ = ["LabelledImages", "digits"]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images in [0, 1] with their classes.

    Attributes
    ----------
    images
        Floats of shape (n, 1, H, W).
    labels
        Classes of shape (n,), int64.
    provenance
        Where the data comes from and under which terms.
    """

    images: Float[Tensor, "n 1 h w"]
    labels: Int64[Tensor, " n"]
    provenance: str


def digits(size: int = 8, *, dtype: torch.dtype = torch.float32) -> LabelledImages:
    """1,797 handwritten digits of 8 x 8 pixels, the smallest real images there are; nothing is downloaded.

    Parameters
    ----------
    size
        Side in pixels; other than 8, the images are interpolated bicubically (28 gives the shape of MNIST) and clamped
        to [0, 1].
    dtype
        Floating dtype of the images.

    References
    ----------
    E. Alpaydin and C. Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998.
    doi:10.24432/C50P49

    Examples
    --------
    >>> digits(28).images.shape
    torch.Size([1797, 1, 28, 28])
    """
    from sklearn.datasets import load_digits

    check_range(size, "size", 1)
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(dtype)[:, None] / 16
    if size != 8:
        images = torch.nn.functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
    return LabelledImages(
        images=images.clamp(0, 1),
        labels=torch.from_numpy(bunch.target).to(torch.int64),
        provenance="Optical Recognition of Handwritten Digits (UCI, CC BY 4.0), bundled with scikit-learn",
    )
