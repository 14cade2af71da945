"""Whole heads, slice by slice: two MR volumes to learn from, and an MR and a CT volume of two other people."""

import tarfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.data.fetch import fetch
from hadamard.data.scans import read_dicom
from hadamard.validation import check_option, check_range

__all__ = ["volume", "volume_slices"]


def volume(name: str) -> Float[Tensor, "d h w"]:
    """Load one head (fetched on first use).

    Parameters
    ----------
    name
        ``"mni152"``: the mean T1-weighted MR image of 152 people, without skull; ``"colin27"``: the mean of 27 such
        images of one person; ``"head_mr"``: a person's proton-density MR volume; ``"head_ct"``: a person's CT volume.

    Returns
    -------
    Tensor
        Slices across the body's axis, shape (D, H, W). The first two have cubes of 1 mm for voxels, ``"head_mr"``
        0.86 mm and slices 6.9 mm apart, ``"head_ct"`` 0.96 and 1.5 mm. CT is attenuation relative to water's, clipped
        to [0, 2.5]; MR is scaled so that all but a thousandth of the voxels lie in [0, 1], and clipped to it.

    Raises
    ------
    DataUnavailable
        If it is not in the cache and cannot be fetched (``"colin27"`` and ``"head_ct"`` are Debian packages,
        ``"head_mr"`` is one of npm).
    ImportError
        If nibabel or pydicom is not installed.
    ValueError
        If there is no volume of that name.

    References
    ----------
    V. S. Fonov et al. Unbiased nonlinear average age-appropriate brain templates from birth to adulthood. NeuroImage
    47, 2009 (mni152).

    C. J. Holmes et al. Enhancement of MR images using registration for signal averaging. J. Computer Assisted
    Tomography 22, 1998 (colin27).
    """
    return _READERS[check_option(name, "name", _READERS)](fetch(name))


@cache
def volume_slices(name: str, size: int = 64, *, axis: int = 0, step: int = 1) -> Float[Tensor, "n size size"]:
    """Cut a head into square slices.

    Parameters
    ----------
    name
        As in :func:`volume`.
    size
        Height and width, by averaging.
    axis
        Of the volume that is cut along: 0, 1 or 2. Where slices are thick, only 0 gives square pixels.
    step
        Take every so-manieth slice.

    Returns
    -------
    Tensor
        Those slices of which at least a tenth is not empty, cut to the inscribed circle; shape (n, size, size).

    Raises
    ------
    ValueError
        If a number is out of range; and as :func:`volume`.
    """
    check_range(size, "size", 1, 512, integer=True)
    check_range(axis, "axis", 0, 2, integer=True)
    check_range(step, "step", 1, integer=True)
    x = volume(name).movedim(axis, 0)[::step]
    height, width = x.shape[1:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = F.pad(x, (left, side - width - left, top, side - height - top))
    small = F.interpolate(square[:, None], (size, size), mode="area")[:, 0]
    line = (torch.arange(size) - (size - 1) / 2) * (2 / size)
    small = small * (line**2 + line[:, None] ** 2 <= 1)
    return small[(small > 0.15).float().mean((1, 2)) >= 0.1]


def _nifti(files: Mapping[str, Path]) -> Tensor:
    """Axes to the right, forwards and upwards become slices from below with the face at the top."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError("NIfTI files need nibabel: pip install 'hadamard[imaging]'") from error
    (path,) = files.values()
    values = torch.from_numpy(np.asanyarray(nibabel.Nifti1Image.from_filename(path).dataobj, dtype=np.float32))
    return _scaled(values.permute(2, 1, 0).flip(1))


def _series(files: Mapping[str, Path]) -> Tensor:
    return _scaled(torch.stack([read_dicom(files[name]) for name in sorted(files)]))


def _invesalius(files: Mapping[str, Path]) -> Tensor:
    """The matrix in InVesalius's archive: Hounsfield units, 16 bits."""
    (path,) = files.values()
    with tarfile.open(path) as archive:
        member = next(m for m in archive if m.name.endswith("/matrix.dat"))
        stream = archive.extractfile(member)
        assert stream is not None
        units = np.frombuffer(stream.read(), "<i2").reshape(108, 256, 256).astype(np.float32)
    return (torch.from_numpy(units) / 1000 + 1).clamp(0, 2.5).flip(1)


def _scaled(values: Tensor) -> Tensor:
    top = float(np.quantile(values.numpy(), 0.999))
    return (values / top).clamp(0, 1)


_READERS: dict[str, Callable[[Mapping[str, Path]], Tensor]] = {
    "mni152": _nifti,
    "colin27": _nifti,
    "head_mr": _series,
    "head_ct": _invesalius,
}
