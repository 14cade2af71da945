"""``hadamard apply primal_dual_unet``: reconstruct sparse sinograms, spokes of radial MRI, or slices to be scanned."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hadamard.cli.files import existing, guarded, read_array, write_array, write_image
from hadamard.imaging import PrimalDualUNet, RadialMRI, upsample_sinogram
from hadamard.operators import Radon
from hadamard.validation import check_option, check_range

__all__ = ["apply"]

_NIFTI = (".nii", ".nii.gz")
_ALL = 96  # angles that the network for radial MRI works on
Inverse = tuple[Callable[[Tensor], Tensor], Radon, str]


def apply(
    source: Annotated[
        Path, typer.Argument(help="Sinograms or complex spokes (.npz, .h5, .mat, .npy), or slices (.dcm, .nii).")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Images: .npz, .h5, .mat, .npy, .nii, .nii.gz, or .dcm like SOURCE.")
    ],
    angles: Annotated[
        Path | None, typer.Option(help="File of the angles in radians; by default `angles` in SOURCE.")
    ] = None,
    key: Annotated[str, typer.Option(help="Name of the sinogram in SOURCE.")] = "sinogram",
    geometry: Annotated[
        str, typer.Option(help="parallel or fan (flat detector); for slices also radial, spokes of MRI.")
    ] = "parallel",
    size: Annotated[int | None, typer.Option(help="Pixels along a side; by default what the detector sees.")] = None,
    pixel_size: Annotated[float, typer.Option(help="Side of a pixel.")] = 1.0,
    spacing: Annotated[float | None, typer.Option(help="Width of a detector bin.")] = None,
    source_distance: Annotated[float | None, typer.Option(help="Fan: from the centre to the source.")] = None,
    detector_distance: Annotated[float | None, typer.Option(help="Fan: from the centre to the detector.")] = None,
    views: Annotated[int | None, typer.Option(help="Slices: number of angles (or spokes) to scan them at.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Sinograms: the true images, (slices, rows, columns), or .nii: x, y, z.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="A PNG of filtered back-projection, result and, where known, error."),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Reconstruct slices from few views with the networks that come with hadamard.

    Sinograms have shape (bins, angles) or (slices, bins, angles). Complex values are spokes of radial MRI, the middle
    of k-space at bins // 2. Slices (.dcm; .nii: x, y, z) are scanned at --views angles first, to see what is recovered:
    those of a CT by their Hounsfield units. The picture shows the middle slice.
    """
    check_option(geometry, "--geometry", ("parallel", "fan", "radial"))
    name, to = source.name.lower(), out.name.lower()
    is_slices = name.endswith((".dcm", *_NIFTI))
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    if to.endswith(".dcm") and not name.endswith(".dcm"):
        raise ValueError(f"{out}: a DICOM file can only be written where one was read, use .npz or .nii")
    options: dict = {"geometry": geometry, "pixel_size": pixel_size, "spacing": spacing}
    options |= {"source_distance": source_distance, "detector_distance": detector_distance}
    truth, hu = None, name.endswith(".dcm") and _is_ct(source)
    if is_slices:
        for option, given in {"--reference": reference, "--angles": angles, "--size": size}.items():
            if given is not None:
                raise ValueError(f"{option} is for sinograms; slices are their own truth")
        if views is None:
            raise ValueError(f"{source}: slices have no sinogram, give --views to scan them")
        check_range(views, "--views", 2, integer=True)
        slices, shape = _slices(source, hu)
        truth = _square(slices)
        y, inverse = _scan(truth, views, options)
    else:
        if views is not None:
            raise ValueError("--views is for slices (.dcm, .nii); sinograms come with their angles")
        y, inverse = _measured(source, key, angles, size, options)
        n, shape = inverse[1].in_shape[0], (len(y), *inverse[1].in_shape)
        if reference is not None:
            truth, _ = _slices(reference, hu=False)
            if truth.shape != (len(y), n, n):
                wanted = f"{len(y)} x {n} x {n}"
                raise ValueError(f"{reference}: the reference must have shape {wanted}, got {_words(truth.shape)}")
    result, start = _reconstruct(y, inverse, 1.0 if hu else None, progress)
    image = _cut(result, slices.shape[-2:]) if is_slices else result
    _write(out, (image - 1) * 1000 if hu else image, source, shape)
    if picture is not None:
        middle = len(result) // 2
        shown = [v[middle] for v in (start, result, *([] if truth is None else [(result - truth).abs()]))]
        top = float((start if truth is None else truth)[middle].max()) or 1.0
        write_image(picture, (torch.cat(shown, 1) / top).numpy())
    said = ""
    if truth is not None:
        unit = 1000 if hu else 1
        before, after = (unit * float((v - truth).square().mean().sqrt()) for v in (start, result))
        said = f", root mean square error {before:.4g} by filtered back-projection, {after:.4g} by the network"
    typer.echo(f"wrote {out}: {_words(image.shape)}{said}")


def _scan(truth: Tensor, views: int, options: dict) -> tuple[Tensor, Inverse]:
    """Sinograms (or spokes) of slices, and how they are to be inverted."""
    fan, n = options["geometry"] == "fan", truth.shape[-1]
    at = torch.arange(views, dtype=torch.float64) * ((2 if fan else 1) * math.pi / views)
    if options["geometry"] == "radial":
        mri = RadialMRI(n, at)
        return mri(truth), _by_spokes(mri)
    physics = Radon(n, at, **options)
    return physics(truth), (lambda y: y, physics, "tomography")


def _measured(source: Path, key: str, angles: Path | None, size: int | None, options: dict) -> tuple[Tensor, Inverse]:
    """Sinograms (or spokes) from a file, and how they are to be inverted."""
    y = _sinograms(source, key)
    if angles is None and source.suffix.lower() == ".npy":
        raise ValueError(f"{source}: a .npy file has no angles, give --angles FILE")
    at = torch.from_numpy(np.ravel(read_array(source, "angles") if angles is None else read_array(angles))).double()
    bins, columns = y.shape[-2:]
    if len(at) != columns:
        hint = ", as many as it has rows: is it transposed?" if len(at) == bins else ""
        raise ValueError(f"{source}: {columns} columns need as many angles, got {len(at)}{hint}")
    if not at.isfinite().all():
        raise ValueError(f"{angles or source}: angles must be finite")
    if float(at.max() - at.min()) > 4 * math.pi:
        raise ValueError(f"{angles or source}: angles must be in radians, got {at.min():.4g} to {at.max():.4g}")
    if y.is_complex():
        mri = RadialMRI(size or int(bins / math.sqrt(2)), at, detectors=bins)
        return y, _by_spokes(mri)
    if options["geometry"] == "radial":
        raise ValueError(f"{source}: --geometry radial needs complex spokes, got {y.dtype}")
    physics = Radon(size or int(bins / math.sqrt(2)), at, detectors=bins, **options)
    return y.float(), (lambda y: y, physics, "tomography")


def _by_spokes(mri: RadialMRI) -> Inverse:
    """Spokes become sinograms, interpolated to all angles where there are fewer."""
    if mri.out_shape[1] >= _ALL:
        return mri.sinogram, mri.radon, "radial"
    every = torch.arange(_ALL, dtype=torch.float64) * (math.pi / _ALL)
    full = Radon(mri.in_shape[0], every, detectors=mri.out_shape[0])
    return (lambda y: upsample_sinogram(mri.sinogram(y), mri.radon, full)), full, "radial"


def _reconstruct(y: Tensor, inverse: Inverse, scale: float | None, show: bool) -> tuple[Tensor, Tensor]:
    """Results and filtered back-projections slice by slice, at a scale on which the network's images are about 1."""
    sinogram, physics, trained = inverse
    network = PrimalDualUNet.pretrained(trained)
    results, starts = [], []
    with Progress(console=Console(stderr=True), transient=True, disable=not show) as bar, torch.no_grad():
        for one in bar.track(y, description="reconstructing"):
            g = sinogram(one).float()
            start = physics.A_dagger(g, "hann")
            unit = scale or max(float(np.quantile(start.numpy(), 0.99)), 1e-12)
            results.append(network(g[None, None] / unit, physics)[0, 0] * unit)
            starts.append(start)
    return torch.stack(results), torch.stack(starts)


def _is_ct(source: Path) -> bool:
    """Whether a DICOM file's values are Hounsfield units."""
    import pydicom

    path = existing(source)
    return guarded(path, lambda: pydicom.dcmread(path, stop_before_pixels=True)).get("Modality", "CT") == "CT"


def _slices(source: Path, hu: bool) -> tuple[Tensor, tuple[int, ...]]:
    """Slices (n, rows, columns), a CT's as attenuation relative to water's, and the shape in which they lay there."""
    values = read_array(source)
    if values.ndim < 2 or np.iscomplexobj(values):
        raise ValueError(f"{source}: expected real slices, got {values.dtype} of shape {values.shape}")
    shape = values.shape
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{source}: slices must be finite, got {int((~np.isfinite(values)).sum())} NaN or infinite")
    if source.name.lower().endswith(_NIFTI):
        values = np.moveaxis(values.reshape(*shape[:2], -1), -1, 0)
    slices = torch.from_numpy(np.ascontiguousarray(values.reshape(-1, *values.shape[-2:])))
    return (slices / 1000 + 1).clamp(min=0) if hu else slices, shape


def _square(slices: Tensor) -> Tensor:
    """Padded to squares, of which a scan sees the inscribed circle."""
    height, width = slices.shape[-2:]
    n = max(height, width)
    square = slices.new_zeros(len(slices), n, n)
    _cut(square, (height, width)).copy_(slices)
    line = (torch.arange(n) - (n - 1) / 2) * (2 / n)
    return square * (line**2 + line[:, None] ** 2 <= 1)


def _cut(square: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The middle of the squares."""
    top, left = ((n - m) // 2 for n, m in zip(square.shape[-2:], shape))
    return square[..., top : top + shape[0], left : left + shape[1]]


def _sinograms(source: Path, key: str) -> Tensor:
    values = read_array(source, None if source.suffix.lower() == ".npy" else key)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"{source}: a sinogram must have shape (bins, angles) or (slices, bins, angles), got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{source}: the sinogram must be finite")
    values = values.astype(np.complex64 if np.iscomplexobj(values) else np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.reshape(-1, *values.shape[-2:])))


def _write(out: Path, image: Tensor, source: Path, shape: tuple[int, ...]) -> None:
    """Images in the order in which they lay in the source, where that has the same format."""
    to, nifti = out.name.lower(), source.name.lower().endswith(_NIFTI)
    if to.endswith(_NIFTI):
        volume = image.movedim(0, 2).numpy()
        write_array(out, volume.reshape(shape) if nifti else volume, like=source if nifti else None)
    elif to.endswith(".dcm"):
        write_array(out, image[0].numpy() if len(image) == 1 else image.numpy(), like=source)
    else:
        write_array(out, image.numpy() if to.endswith(".npy") else {"image": image.numpy()})


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
