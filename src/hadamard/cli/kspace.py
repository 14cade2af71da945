"""Scans for MR reconstruction: k-space, or complex images with their geometry, in; the same format out."""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from hadamard.cli.files import guarded, read_array, write_array
from hadamard.operators import Fourier

__all__ = ["Scan", "read_scan", "write_scan"]

_NIFTI, _HDF5 = (".nii", ".nii.gz"), (".h5", ".hdf5")
_KSPACE = (*_HDF5, ".npz", ".npy")


@dataclass(frozen=True)
class Scan:
    """What a file holds of a scan.

    Attributes
    ----------
    kspace
        Shape (n, coils, H, W), zero frequency at ``n // 2``, orthonormal.
    images
        Complex images of which that is the transform, shape (n, 1, H, W); ``None`` where k-space was measured.
    shape
        That of the file's array: (x, y, z[, t]) for images, n running over t and then z.
    source
        The file, whose header the results keep.
    phase
        The file of the phase, where magnitude and phase came in two.
    """

    kspace: Tensor
    images: Tensor | None
    shape: tuple[int, ...]
    source: Path
    phase: Path | None = None

    @property
    def moments(self) -> int:
        """Length of the series in time: slices of k-space follow one another in time, those of images do not."""
        if self.images is None:
            return len(self.kspace)
        return self.shape[3] if len(self.shape) == 4 else 1


def read_scan(source: Path, key: str, phase: Path | None = None) -> Scan:
    """Read k-space (HDF5, .npz, .npy) or complex images (NIfTI, complex or with another file of the phase).

    Raises
    ------
    TypeError
        If k-space is real, or images are and there is no phase.
    ValueError
        If values are not finite, shapes do not fit, or the phase has another geometry or is not in radians.
    """
    if _ends(source, _NIFTI):
        return _read_images(source, phase)
    if phase is not None:
        raise ValueError(f"--phase goes with a magnitude in NIfTI, got {source}")
    if not _ends(source, _KSPACE):
        raise ValueError(f"{source}: k-space is read from {', '.join(_KSPACE)}, and complex images from .nii, .nii.gz")
    kspace = torch.from_numpy(np.ascontiguousarray(read_array(source, None if source.suffix == ".npy" else key)))
    if not kspace.is_complex():
        raise TypeError(f"{source}: k-space must be complex, got {kspace.dtype}")
    if kspace.ndim not in (2, 3, 4):
        raise ValueError(f"{source}: k-space must have shape (slices[, coils], H, W), got {tuple(kspace.shape)}")
    shape = tuple(kspace.shape)
    kspace = _finite(kspace if kspace.ndim > 2 else kspace[None], f"{source}: k-space")
    return Scan(kspace if kspace.ndim == 4 else kspace[:, None], None, shape, source)


def write_scan(out: Path, scan: Scan, image: Tensor, temperature: Tensor | None, key: str) -> list[Path]:
    """Write images (n, coils, H, W) and the temperature (n, H, W); returns the files.

    HDF5 keeps whatever an HDF5 source holds beside its k-space, and all attributes. NIfTI keeps a NIfTI source's affine
    and header; it holds the temperature if there is one, else the complex image, or magnitude and (in a second file)
    phase if those came in two. For an HDF5 source with an ISMRMRD header the voxel sizes are those of its field of
    view; its orientation is not read.
    """
    if _ends(out, _NIFTI):
        return _write_nifti(out, scan, image, temperature)
    found = {"image": (image[:, 0] if image.shape[1] == 1 else image).numpy()}
    if out.suffix == ".npy":
        write_array(out, found["image"])
        return [out]
    if temperature is not None:
        found["temperature"] = temperature.numpy()
    write_array(out, found)
    if _ends(out, _HDF5) and _ends(scan.source, _HDF5):
        guarded(scan.source, lambda: _keep_hdf5(scan.source, out, key))
    return [out]


def _ends(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings)


def _finite(values: Tensor, what: str) -> Tensor:
    parts = torch.view_as_real(values) if values.is_complex() else values
    odd = ~torch.isfinite(parts)
    if bool(odd.any()):
        raise ValueError(f"{what} must be finite, got {int(odd.sum())} NaN or infinite")
    return values.to(torch.complex64) if values.is_complex() else values.float()


# ---- NIfTI: images ----


def _read_images(source: Path, phase: Path | None) -> Scan:
    values = read_array(source)
    if values.ndim not in (2, 3, 4):
        raise ValueError(f"{source}: images must have shape (x, y, z[, t]), got {values.shape}")
    if phase is not None:
        values = _with_phase(values, source, phase)
    if not np.iscomplexobj(values):
        raise TypeError(f"{source}: a magnitude alone has no phase to reconstruct, give its file by --phase")
    shape = values.shape
    volume = torch.from_numpy(np.ascontiguousarray(values.reshape(*shape, *[1] * (4 - len(shape)))))
    images = _finite(volume.permute(3, 2, 0, 1).flatten(0, 1)[:, None], f"{source}: images")
    return Scan(Fourier(images.shape[-2:]).A(images), images, shape, source, phase)


def _with_phase(magnitude: np.ndarray, source: Path, phase: Path) -> np.ndarray:
    angle = read_array(phase)
    if np.iscomplexobj(magnitude) or np.iscomplexobj(angle):
        raise ValueError(f"{source}: with --phase, magnitude and phase must be real")
    if angle.shape != magnitude.shape:
        raise ValueError(f"{phase}: the phase must have shape {magnitude.shape} like the magnitude, got {angle.shape}")
    if not np.allclose(_affine(phase), _affine(source), rtol=1e-3, atol=1e-3):
        raise ValueError(f"{phase}: the phase lies elsewhere in space than {source}: their affines differ")
    largest = float(np.nanmax(np.abs(angle), initial=0))
    if largest > 2 * math.pi:
        raise ValueError(f"{phase}: the phase must be in radians, got values up to {largest:.4g}")
    return magnitude * np.exp(1j * angle)


def _affine(path: Path) -> np.ndarray:
    import nibabel

    image = guarded(path, lambda: nibabel.load(path))
    return np.asarray(image.affine)


def _write_nifti(out: Path, scan: Scan, image: Tensor, temperature: Tensor | None) -> list[Path]:
    if scan.images is None:
        values = image.abs().square().sum(1).sqrt() if temperature is None else temperature
        write_array(out, values.permute(1, 2, 0).numpy(), affine=_from_ismrmrd(scan))
        return [out]
    moments = scan.moments
    chosen = image[:, 0] if temperature is None else temperature
    volume = chosen.unflatten(0, (moments, -1)).permute(2, 3, 1, 0).reshape(scan.shape).numpy()
    if temperature is not None or scan.phase is None:
        write_array(out, volume, like=scan.source)
        return [out]
    beside = out.with_name(out.name.removesuffix(".gz").removesuffix(".nii") + "_phase" + _ending(out))
    write_array(out, np.abs(volume), like=scan.source)
    write_array(beside, np.angle(volume), like=scan.phase)
    return [out, beside]


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"


# ---- HDF5: k-space ----


def _keep_hdf5(source: Path, out: Path, key: str) -> None:
    """Copy all but the k-space and what was written, and attributes."""
    import h5py

    with h5py.File(source) as before, h5py.File(out, "a") as after:
        after.attrs.update(before.attrs)

        def copy(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and name != key and name not in after:
                before.copy(item, after, name)
            elif isinstance(item, h5py.Group):
                after.require_group(name).attrs.update(item.attrs)

        before.visititems(copy)


def _from_ismrmrd(scan: Scan) -> np.ndarray | None:
    """An affine with the voxel sizes in mm of the header's encoded space, centred; ``None`` without such a header."""
    if not _ends(scan.source, _HDF5):
        return None
    import h5py

    with h5py.File(scan.source) as file:
        if "ismrmrd_header" not in file:
            return None
        text = file["ismrmrd_header"][()]
    try:
        space = ElementTree.fromstring(text).find("{*}encoding/{*}encodedSpace")
        assert space is not None
        matrix = [int(_text(space, f"{{*}}matrixSize/{{*}}{axis}")) for axis in "xyz"]
        view = [float(_text(space, f"{{*}}fieldOfView_mm/{{*}}{axis}")) for axis in "xyz"]
    except (ElementTree.ParseError, AssertionError, ValueError) as error:
        raise ValueError(f"{scan.source}: ismrmrd_header has no encoded matrix and field of view ({error})") from None
    size = tuple(scan.kspace.shape[-2:])
    if size != tuple(matrix[:2]):
        raise ValueError(f"{scan.source}: k-space is {_by(size)}, its ismrmrd_header says {_by(matrix[:2])}")
    if min(view) <= 0 or matrix[2] < 1:
        raise ValueError(f"{scan.source}: ismrmrd_header has a field of view of {_by(view)} mm")
    voxel = np.array([v / m for v, m in zip(view, matrix)])
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = -voxel * (np.array([*size, len(scan.kspace)]) - 1) / 2
    return affine


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.find(path)
    if found is None or not found.text:
        raise ValueError(f"no {path.replace('{*}', '')}")
    return found.text


def _by(numbers: object) -> str:
    return " x ".join(map(str, numbers))  # type: ignore[call-overload]
