"""``hadamard apply primal_dual_unet``: reconstruct sparse sinograms, spokes of radial MRI, or slices to be scanned."""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hadamard.cli.files import read_array, write_array, write_image
from hadamard.imaging import PrimalDualUNet, RadialMRI
from hadamard.operators import Radon
from hadamard.validation import check_option, check_range

__all__ = ["apply"]

_IMAGES = (".dcm", ".nii", ".nii.gz")


def apply(
    source: Annotated[
        Path, typer.Argument(help="Sinograms or complex spokes (.npz, .h5, .npy), or slices to scan (.dcm, .nii).")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Images: .npz, .h5, .npy, .nii, .nii.gz, or .dcm like SOURCE.")
    ],
    angles: Annotated[
        Path | None, typer.Option(help="File of the angles in radians; by default `angles` in SOURCE.")
    ] = None,
    key: Annotated[str, typer.Option(help="Name of the sinogram in SOURCE.")] = "sinogram",
    geometry: Annotated[str, typer.Option(help="parallel or fan (flat detector).")] = "parallel",
    size: Annotated[int | None, typer.Option(help="Pixels along a side; by default what the detector sees.")] = None,
    pixel_size: Annotated[float, typer.Option(help="Side of a pixel.")] = 1.0,
    spacing: Annotated[float | None, typer.Option(help="Width of a detector bin.")] = None,
    source_distance: Annotated[float | None, typer.Option(help="Fan: from the centre to the source.")] = None,
    detector_distance: Annotated[float | None, typer.Option(help="Fan: from the centre to the detector.")] = None,
    views: Annotated[int | None, typer.Option(help="Slices: number of angles to scan them at.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A PNG of filtered back-projection, result and, of a scanned slice, error.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Reconstruct slices from few views with the network that comes with hadamard.

    Sinograms have shape (bins, angles) or (slices, bins, angles). Complex values are spokes of radial MRI, the middle
    of k-space at bins // 2. CT slices (.dcm, in Hounsfield units) and others (.nii: x, y, z) are scanned at --views
    angles first, to see what is recovered.
    """
    check_option(geometry, "--geometry", ("parallel", "fan"))
    options: dict = {"geometry": geometry, "pixel_size": pixel_size, "spacing": spacing}
    options |= {"source_distance": source_distance, "detector_distance": detector_distance}
    truth, density = None, source.name.lower().endswith(".dcm")
    if source.name.lower().endswith(_IMAGES):
        truth = _slices(source)
        if views is None:
            raise ValueError(f"{source}: slices have no sinogram, give --views to scan them")
        check_range(views, "--views", 2, integer=True)
        turn = math.pi if geometry == "parallel" else 2 * math.pi
        physics = Radon(truth.shape[-1], torch.arange(views) * (turn / views), **options)
        y = physics(truth)
    else:
        if views is not None:
            raise ValueError("--views is for slices (.dcm, .nii); sinograms come with their angles")
        measured = _sinograms(source, key)
        at = torch.from_numpy(read_array(source, "angles") if angles is None else read_array(angles)).double().flatten()
        bins = measured.shape[-2]
        if len(at) != measured.shape[-1]:
            raise ValueError(f"{source}: {measured.shape[-1]} columns need as many angles, got {len(at)}")
        size = size or int(bins / math.sqrt(2))
        if measured.is_complex():
            mri = RadialMRI(size, at, detectors=bins)
            physics, y = mri.radon, mri.sinogram(measured)
        else:
            physics = Radon(size, at, detectors=bins, **options)
            y = measured
    result, start = _reconstruct(y, physics, 1.0 if density else None, progress)
    volume = (result - 1) * 1000 if density else result
    name = out.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        write_array(
            out, volume.permute(1, 2, 0).numpy(), like=source if source.name.lower().endswith(_IMAGES[1:]) else None
        )
    elif name.endswith(".dcm"):
        write_array(out, volume[0].numpy(), like=source)
    else:
        write_array(out, {"image": volume.numpy()} if not name.endswith(".npy") else volume.numpy())
    if picture is not None:
        shown = [start[0], result[0]] + ([] if truth is None else [(result - truth)[0].abs()])
        write_image(picture, (torch.cat(shown, 1) / start[0].max()).numpy())
    typer.echo(f"wrote {out}: {' x '.join(map(str, volume.shape))}")


def _reconstruct(y: Tensor, physics: Radon, scale: float | None, show: bool) -> tuple[Tensor, Tensor]:
    """Results and filtered back-projections slice by slice, at a scale on which the network's images are about 1."""
    network = PrimalDualUNet.pretrained()
    results, starts = [], []
    with Progress(console=Console(stderr=True), transient=True, disable=not show) as bar, torch.no_grad():
        for one in bar.track(y.float(), description="reconstructing"):
            start = physics.A_dagger(one, "hann")
            unit = scale or max(float(start.quantile(0.99)), 1e-12)
            results.append(network(one[None, None] / unit, physics)[0, 0] * unit)
            starts.append(start)
    return torch.stack(results), torch.stack(starts)


def _slices(source: Path) -> Tensor:
    """Square slices (n, N, N): a CT's as attenuation relative to water's."""
    values: np.ndarray = read_array(source).astype(np.float32)
    if source.name.lower().endswith(".dcm"):
        values = values[None] / 1000 + 1
    elif values.ndim in (2, 3):
        values = np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0)
    if values.ndim != 3 or values.shape[1] != values.shape[2]:
        raise ValueError(f"{source}: slices must be square, got {' x '.join(map(str, values.shape))}")
    if not np.isfinite(values).all():
        raise ValueError(f"{source}: slices must be finite")
    slices = torch.from_numpy(np.ascontiguousarray(values)).clamp(min=0)
    n = slices.shape[-1]
    line = (torch.arange(n) - (n - 1) / 2) * (2 / n)
    return slices * (line**2 + line[:, None] ** 2 <= 1)


def _sinograms(source: Path, key: str) -> Tensor:
    values = read_array(source, None if source.suffix == ".npy" else key)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"{source}: a sinogram must have shape (bins, angles) or (slices, bins, angles), got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{source}: the sinogram must be finite")
    return torch.from_numpy(np.ascontiguousarray(values.reshape(-1, *values.shape[-2:])))
