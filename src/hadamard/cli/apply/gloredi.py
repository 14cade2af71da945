"""``hadamard apply gloredi``: clean images of sparse-view tomography, or reconstruct sinograms and clean the result."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hadamard.cli.files import read_array, write_array, write_image
from hadamard.imaging import GloReNet, unwindow, window
from hadamard.operators import Radon
from hadamard.validation import check_option, check_range

__all__ = ["apply"]

_NIFTI = (".nii", ".nii.gz")
_LEAST = 8


def apply(
    source: Annotated[
        Path, typer.Argument(help="Images (.dcm, .nii) or sinograms (.npz, .h5, .mat, .npy); see --images.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Images in a format like SOURCE's, or .npz, .h5, .mat, .nii.")
    ],
    images: Annotated[
        bool | None,
        typer.Option("--images/--sinograms", help="What SOURCE holds; images by default for .dcm and .nii."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Name in SOURCE; `image` or `sinogram` by default.")] = None,
    hu: Annotated[bool | None, typer.Option("--hu/--no-hu", help="Hounsfield units; by default for .dcm.")] = None,
    angles: Annotated[
        Path | None, typer.Option(help="File of the angles in radians; by default `angles` in SOURCE.")
    ] = None,
    geometry: Annotated[str, typer.Option(help="fan (flat detector) or parallel.")] = "fan",
    size: Annotated[int | None, typer.Option(help="Sinograms: pixels along a side.")] = None,
    pixel_size: Annotated[float, typer.Option(help="Side of a pixel.")] = 1.0,
    spacing: Annotated[float | None, typer.Option(help="Width of a detector bin.")] = None,
    source_distance: Annotated[
        float | None, typer.Option(help="Fan: from the centre to the source; with --views, 2.1 sides by default.")
    ] = None,
    detector_distance: Annotated[
        float | None, typer.Option(help="Fan: from the centre to the detector; with --views, half of that.")
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Images: scan them at so many angles first, to see what is recovered.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="What the result should be, in SOURCE's units.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="A PNG of input, result and, given a reference, error; beside --out if there is one."),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Clean images of sparse-view tomography with the small network that comes with hadamard.

    Images are back-projections of few views. Sinograms have shape (bins, angles) or (slices, bins, angles) and are
    back-projected first. The network learned from images of 64 x 64 pixels and 8 to 32 views.
    """
    check_option(geometry, "--geometry", ("parallel", "fan"))
    name = source.name.lower()
    images = name.endswith((".dcm", *_NIFTI)) if images is None else images
    if views is not None and not images:
        raise ValueError("--views is for images; sinograms come with their angles")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"{picture}: --picture must end in .png")
    options: dict = {"geometry": geometry, "pixel_size": pixel_size, "spacing": spacing}
    options |= {"source_distance": source_distance, "detector_distance": detector_distance}
    key = key or ("image" if images else "sinogram")
    loaded = _read(source, key)
    if out.name.lower().endswith(".dcm") and not (name.endswith(".dcm") and len(loaded.slices) == 1):
        raise ValueError(f"{out}: a DICOM file can be written where SOURCE is one, of a single slice")
    truth = None
    if images:
        start = loaded.slices
        units = _Units(name.endswith(".dcm") if hu is None else hu, start)
        start = units.to_network(start)
        if views is not None:
            truth = _circle(start.clamp(min=0), source)
            start = _scan(truth, views, options)
    else:
        start = _back_project(source, loaded.slices, angles, size, options)
        units = _Units(bool(hu), start)
        start = units.to_network(start)
    if reference is not None:
        truth = units.to_network(_read(reference, key).slices)
        if truth.shape != start.shape:
            raise ValueError(f"{reference}: the reference must have shape {_shape(start)}, got {_shape(truth)}")
    if min(start.shape[-2:]) < _LEAST:
        raise ValueError(f"{source}: slices must have at least {_LEAST} x {_LEAST} pixels, got {_shape(start)}")
    result = _clean(start, progress)
    _write(out, units.back(result), source, loaded if images else None)
    if picture is None and reference is not None:
        picture = out.with_name(out.name.removesuffix(".gz")).with_suffix(".png")
    if picture is not None:
        shown = [start[0], result[0]] + ([] if truth is None else [(result - truth)[0].abs()])
        top = float((result if truth is None else truth)[0].max()) or 1.0
        write_image(picture, (torch.cat(shown, 1) / top).numpy())
    said = (
        ""
        if truth is None
        else f", error {_rmse(start, truth, units):.4g} before and {_rmse(result, truth, units):.4g} after"
    )
    typer.echo(f"wrote {out}: {_shape(result)}{said}")


@dataclass(frozen=True)
class _Loaded:
    """Slices (n, rows, columns), and the shape in which they lay in the file."""

    slices: Tensor
    shape: tuple[int, ...]


class _Units:
    """From a file's units to the network's, in which water is 1/3, and back."""

    def __init__(self, hu: bool, slices: Tensor) -> None:
        self.hu, self.scale = hu, 3 * max(float(np.quantile(slices.numpy(), 0.99)), 1e-12)

    def to_network(self, x: Tensor) -> Tensor:
        return window(x) if self.hu else x / self.scale

    def back(self, x: Tensor) -> Tensor:
        return unwindow(x) if self.hu else x * self.scale


def _read(path: Path, key: str) -> _Loaded:
    single = path.name.lower().endswith((".npy", ".dcm", *_NIFTI))
    values = read_array(path, None if single else key)
    if values.ndim not in (2, 3) or np.iscomplexobj(values):
        raise ValueError(f"{path}: expected real values in 2 or 3 dimensions, got {values.dtype} of {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: values must be finite, got {int((~np.isfinite(values)).sum())} NaN or infinite")
    x = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if path.name.lower().endswith(_NIFTI) and x.ndim == 3:
        x = x.movedim(2, 0)  # x, y, z
    return _Loaded(x.reshape(-1, *x.shape[-2:]).contiguous(), values.shape)


def _back_project(source: Path, y: Tensor, angles: Path | None, size: int | None, options: dict) -> Tensor:
    if angles is None and source.suffix.lower() == ".npy":
        raise ValueError(f"{source}: a .npy file has no angles, give --angles FILE")
    at = torch.from_numpy(np.ravel(read_array(source, "angles") if angles is None else read_array(angles))).double()
    bins, columns = y.shape[-2:]
    if len(at) != columns:
        raise ValueError(f"{source}: {columns} columns need as many angles, got {len(at)}")
    physics = Radon(size or int(bins / math.sqrt(2)), at, detectors=bins, **options)
    return physics.A_dagger(y)


def _scan(truth: Tensor, views: int, options: dict) -> Tensor:
    check_range(views, "--views", 2, integer=True)
    n, fan = truth.shape[-1], options["geometry"] == "fan"
    if fan:
        far = options["source_distance"] or 2.1 * n * options["pixel_size"]
        options = options | {"source_distance": far, "detector_distance": options["detector_distance"] or far / 2}
    turn = 2 * math.pi if fan else math.pi
    physics = Radon(n, torch.arange(views, dtype=torch.float64) * (turn / views), **options)
    return physics.A_dagger(physics(truth))


def _circle(slices: Tensor, source: Path) -> Tensor:
    """Square slices, of which a scan sees the inscribed circle."""
    n = slices.shape[-1]
    if slices.shape[-2] != n:
        raise ValueError(f"{source}: slices to be scanned must be square, got {_shape(slices)}")
    line = (torch.arange(n) - (n - 1) / 2) * (2 / n)
    return slices * (line**2 + line[:, None] ** 2 <= 1)


def _clean(start: Tensor, show: bool) -> Tensor:
    network, results = GloReNet.pretrained(), []
    with Progress(console=Console(stderr=True), transient=True, disable=not show) as bar, torch.no_grad():
        for one in bar.track(start, description="cleaning"):
            results.append(network(one[None, None])[0, 0])
    return torch.stack(results)


def _write(out: Path, result: Tensor, source: Path, loaded: _Loaded | None) -> None:
    """Images as they lay in the source, where they did; slices otherwise."""
    nifti, name = source.name.lower().endswith(_NIFTI), out.name.lower()
    if name.endswith(".dcm"):
        write_array(out, result[0].numpy(), like=source)
    elif name.endswith(_NIFTI):
        volume = result.movedim(0, 2)
        same = loaded is not None and nifti
        write_array(out, volume.reshape(loaded.shape if same and loaded else volume.shape).numpy(),
                    like=source if nifti else None)  # fmt: skip
    elif name.endswith(".npy"):
        write_array(out, result.numpy())
    else:
        write_array(out, {"image": result.numpy()})


def _rmse(x: Tensor, truth: Tensor, units: _Units) -> float:
    return float((units.back(x) - units.back(truth)).square().mean().sqrt())


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))
