"""Whole heads, cut in any direction: two MR volumes to learn from, and a CT volume of another person."""

import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.data.anatomies import _nifti, _small, _unit
from hadamard.data.fetch import fetch
from hadamard.validation import check_option, check_range

__all__ = ["volume", "volume_slices"]

# name: source, file
_FILES = {
    "mni152": ("mni152", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"),
    "colin27": ("heads", "ch2.nii.gz"),
    "head_ct": ("head_ct", "Cranium.inv3"),
}


def volume(name: str) -> Float[Tensor, "d h w"]:
    """Load one head (fetched on first use).

    Parameters
    ----------
    name
        ``"mni152"``: the mean T1-weighted MR image of 152 people, without skull; ``"colin27"``: the mean of 27 such
        images of one person; ``"head_ct"``: another person's CT volume.

    Returns
    -------
    Tensor
        Slices across the body's axis, shape (D, H, W). The first two have cubes of 1 mm for voxels, ``"head_ct"`` 0.96
        mm and slices 1.5 mm apart. CT is attenuation relative to water's, clipped to [0, 2.5]; MR is scaled so that all
        but a thousandth of the voxels lie in [0, 1], and clipped to it.

    Raises
    ------
    DataUnavailable
        If it is not in the cache and cannot be fetched (``"colin27"`` and ``"head_ct"`` are Debian packages).
    ImportError
        If nibabel is not installed.
    ValueError
        If there is no volume of that name.

    References
    ----------
    V. S. Fonov et al. Unbiased nonlinear average age-appropriate brain templates from birth to adulthood. NeuroImage
    47, 2009 (mni152).

    C. J. Holmes et al. Enhancement of MR images using registration for signal averaging. J. Computer Assisted
    Tomography 22, 1998 (colin27).
    """
    source, file = _FILES[check_option(name, "name", _FILES)]
    path = fetch(source)[file]
    if path.suffix == ".inv3":
        return _invesalius(path)
    # axes to the right, forwards and upwards become slices from below with the face at the top
    return _unit(_nifti(path).permute(2, 1, 0).flip(1))


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
    small = _small(volume(name).movedim(axis, 0)[::step], size)
    line = (torch.arange(size) - (size - 1) / 2) * (2 / size)
    small = small * (line**2 + line[:, None] ** 2 <= 1)
    return small[(small > 0.15).float().mean((1, 2)) >= 0.1]


def _invesalius(path: Path) -> Tensor:
    """The matrix in InVesalius's archive: Hounsfield units, 16 bits."""
    with tarfile.open(path) as archive:
        member = next(m for m in archive if m.name.endswith("/matrix.dat"))
        stream = archive.extractfile(member)
        assert stream is not None
        units = np.frombuffer(stream.read(), "<i2").reshape(108, 256, 256).astype(np.float32)
    return (torch.from_numpy(units) / 1000 + 1).clamp(0, 2.5).flip(1)
