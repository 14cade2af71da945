"""Real slices of computed tomography and of magnetic resonance imaging, from DICOM files."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.data.fetch import fetch
from hadamard.validation import check_range

__all__ = ["ct_slices", "mr_slices", "read_dicom"]

_CT = {"head": "693_UNCI.dcm", "abdomen": "explicit_VR-UN.dcm"}
_MR = {"liver": "MR-SIEMENS-DICOM-WithOverlays.dcm", "shoulder": "MR2_UNCI.dcm"}


def ct_slices(size: int = 128) -> dict[str, Float[Tensor, "size size"]]:
    """Three slices of three people: head, abdomen and spine (fetched on first use, 34 MB).

    Parameters
    ----------
    size
        Height and width in pixels, by averaging; at most 512 (the spine's has 128 and is interpolated above).

    Returns
    -------
    dict
        By name, attenuation relative to water's (0 in air, 1 in water), clipped to [0, 2.5] and to the inscribed
        circle, outside of which a scan sees nothing.

    Raises
    ------
    DataUnavailable
        If they are not in the cache and cannot be fetched.
    ImportError
        If pydicom is not installed.
    ValueError
        If ``size`` is out of range.

    References
    ----------
    Test files of pydicom (MIT licence), https://github.com/pydicom/pydicom-data.
    """
    from pydicom.data import get_testdata_file

    check_range(size, "size", 1, 512, integer=True)
    paths = fetch("scans")
    files = {name: paths[file] for name, file in _CT.items()} | {"spine": Path(str(get_testdata_file("CT_small.dcm")))}
    return {name: _small((read_dicom(path) / 1000 + 1).clamp(0, 2.5), size) for name, path in files.items()}


def mr_slices(size: int = 128) -> dict[str, Float[Tensor, "size size"]]:
    """Two magnitude images of two people: liver and shoulder; otherwise as :func:`ct_slices`, of values in [0, 1].

    References
    ----------
    Test files of pydicom (MIT licence), https://github.com/pydicom/pydicom-data.
    """
    check_range(size, "size", 1, 512, integer=True)
    paths = fetch("scans")
    images = {name: _small(read_dicom(paths[file]), size) for name, file in _MR.items()}
    return {name: image / image.max() for name, image in images.items()}


def _small(image: Tensor, size: int) -> Tensor:
    """Average down to a size, and cut out the inscribed circle."""
    line = (torch.arange(size) - (size - 1) / 2) * (2 / size)
    inside = line**2 + line[:, None] ** 2 <= 1
    return F.interpolate(image[None, None], (size, size), mode="area")[0, 0] * inside


def read_dicom(path: str | Path) -> Float[Tensor, "*frames h w"]:
    """Read a slice, or the frames of a file that has several, as floats.

    Slope and intercept are applied: a CT's values are Hounsfield units.

    Raises
    ------
    ImportError
        If pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("DICOM files need pydicom: pip install 'hadamard[imaging]'") from error
    file = pydicom.dcmread(path)
    values = torch.from_numpy(file.pixel_array.astype("float32"))
    return values * float(file.get("RescaleSlope", 1)) + float(file.get("RescaleIntercept", 0))
