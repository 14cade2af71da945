"""``hadamard apply rdledm``: reconstruct a dynamic MRI series from files."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from hadamard.cli.files import read_array, write_array

_NIFTI = (".nii", ".nii.gz")


def apply(
    source: Annotated[Path, typer.Argument(help="k-space (.npz, .h5, .npy), or an image series (.nii, .nii.gz).")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Result: magnitude (.nii, .nii.gz), or complex image and error (.npz).")
    ],
    mask: Annotated[Path | None, typer.Option(help="File of the sampling mask; by default `mask` in SOURCE.")] = None,
    key: Annotated[str, typer.Option(help="Name of the k-space in SOURCE.")] = "kspace",
    sens: Annotated[str | None, typer.Option(help="Name of the coil sensitivities in SOURCE.")] = None,
    acceleration: Annotated[
        float | None, typer.Option(help="Undersample an image series by this factor, to see what is recovered.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that undersampling.")] = 0,
    max_iter: Annotated[int, typer.Option(help="Greatest number of iterations.")] = 200,
    error: Annotated[bool, typer.Option(help="Whether errors in the image are taken up by a component.")] = True,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Reconstruct a dynamic MRI series from undersampled k-space.

    SOURCE holds complex k-space of shape (T, H, W), (C, T, H, W) or (B, C, T, H, W) and a mask of zeros and ones, zero
    frequency in the middle. Or it is a NIfTI series (x, y, z, t) or (x, y, t): then give --acceleration; every slice is
    transformed, undersampled along x and reconstructed.
    """
    from hadamard.imaging.rdledm import ERROR, rdledm

    if source.name.lower().endswith(_NIFTI):
        series = _series(source, acceleration)
        kspace, where = _undersample(series, acceleration or 1.0, seed)
        coils = None
    else:
        if acceleration is not None:
            raise ValueError("--acceleration is for an image series (.nii, .nii.gz); k-space comes with its mask")
        kspace = torch.from_numpy(np.ascontiguousarray(read_array(source, None if source.suffix == ".npy" else key)))
        if mask is None and source.suffix == ".npy":
            raise ValueError(f"{source}: a .npy file has no mask, give --mask FILE")
        where = torch.from_numpy(read_array(source, "mask") if mask is None else read_array(mask))
        coils = None if sens is None else torch.from_numpy(read_array(source, sens)).to(kspace.dtype)
    result = rdledm(kspace, where, coils, max_iter=max_iter, error=ERROR if error else None, progress=progress)
    image, found = result.image.numpy(), result.error.numpy()
    if out.name.lower().endswith(_NIFTI):
        volumes = np.moveaxis(np.abs(image).reshape(-1, *image.shape[-3:]), (0, 1), (2, 3))  # (x, y, z, t)
        write_array(out, volumes.astype(np.float32), like=source if source.name.lower().endswith(_NIFTI) else None)
    else:
        write_array(out, {"image": image, "error": found})
    typer.echo(f"wrote {out}: {' x '.join(map(str, image.shape))}")


def _series(source: Path, acceleration: float | None) -> Tensor:
    """A NIfTI series as (z, 1, t, x, y), complex."""
    if acceleration is None:
        raise ValueError(f"{source}: an image series is fully sampled, give --acceleration to undersample it")
    values = read_array(source)
    if values.ndim not in (3, 4):
        raise ValueError(f"{source}: expected a series (x, y, t) or (x, y, z, t), got shape {values.shape}")
    values = values.reshape(*values.shape[:2], -1, values.shape[-1])
    return torch.from_numpy(np.moveaxis(values, (2, 3), (0, 1))[:, None].astype(np.complex64))


def _undersample(series: Tensor, acceleration: float, seed: int) -> tuple[Tensor, Tensor]:
    from hadamard.data.cine import kt_mask
    from hadamard.spectral.fft import fft_centred

    frames, height, width = series.shape[-3:]
    mask = kt_mask(frames, height, width, acceleration, random_state=seed)
    return fft_centred(series) * mask, mask
