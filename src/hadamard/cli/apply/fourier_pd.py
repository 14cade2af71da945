"""``hadamard apply fourier_pd``: complex images from undersampled k-space, and temperature from a series of them."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hadamard.cli.files import read_array, write_array, write_image
from hadamard.imaging import FourierPrimalDual, prf_temperature
from hadamard.operators import Coils, Fourier
from hadamard.validation import check_range

__all__ = ["apply"]

_NIFTI = (".nii", ".nii.gz")


def apply(
    source: Annotated[Path, typer.Argument(help="k-space, complex (.h5, .npz, .npy): (slices[, coils], H, W).")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Complex image (.h5, .npz, .npy), or magnitude (.nii, .nii.gz).")
    ],
    key: Annotated[str, typer.Option(help="Name of the k-space in SOURCE.")] = "kspace",
    mask: Annotated[
        Path | None, typer.Option(help="File of the mask; by default `mask` in SOURCE, or where k-space is not 0.")
    ] = None,
    sens: Annotated[
        str | None, typer.Option(help="Name of the coil sensitivities in SOURCE, to combine coils.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Name of the fully sampled image in SOURCE, to picture the error.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A network from `hadamard train fourier_pd`.")] = None,
    te: Annotated[float | None, typer.Option(help="Echo time in seconds: slices are moments, the first cold.")] = None,
    b0: Annotated[float, typer.Option(help="Field in tesla, for the temperature.")] = 1.5,
    picture: Annotated[Path | None, typer.Option(help="A PNG of zero-filled image, result and error.")] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Reconstruct complex images slice by slice with the network that comes with hadamard.

    k-space is centred (zero frequency at n // 2) and orthonormal. With --te the slices are a series in time, and the
    change of temperature since the first is written beside the image (or instead of it, into NIfTI). The network that
    comes with hadamard is a small demonstration: its temperature is no better than zero filling's.
    """
    kspace = torch.from_numpy(np.ascontiguousarray(read_array(source, None if source.suffix == ".npy" else key)))
    if not kspace.is_complex():
        raise TypeError(f"{source}: k-space must be complex, got {kspace.dtype}")
    if kspace.ndim not in (2, 3, 4):
        raise ValueError(f"{source}: k-space must have shape (slices[, coils], H, W), got {tuple(kspace.shape)}")
    if not bool(torch.isfinite(torch.view_as_real(kspace)).all()):
        raise ValueError(f"{source}: k-space must be finite")
    kspace = (kspace if kspace.ndim > 2 else kspace[None]).to(torch.complex64)
    stacked = kspace if kspace.ndim == 4 else kspace[:, None]
    sampled = _mask(source, mask, stacked)
    network = FourierPrimalDual.pretrained()
    if weights is not None:
        from hadamard.training import load_checkpoint

        load_checkpoint(weights, network)
    images = []
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar, torch.no_grad():
        for one in bar.track(stacked, description="reconstructing"):
            images.append(network(one[None], sampled)[0])
    image = torch.stack(images)
    start = Fourier(image.shape[-2:]).A_adjoint(stacked * sampled)
    if sens is not None:
        maps = torch.from_numpy(read_array(source, sens)).to(image.dtype)
        if maps.shape[-3:] != image.shape[1:]:
            raise ValueError(f"{source}: {sens} must have shape {tuple(image.shape[1:])}, got {tuple(maps.shape)}")
        image, start = (Coils(maps).A_adjoint(u) for u in (image, start))
    found = {"image": image[:, 0] if image.shape[1] == 1 else image}
    if te is not None:
        check_range(te, "--te", 0, 1, closed="right")
        if len(image) < 2:
            raise ValueError(f"{source}: --te needs at least two moments, got one")
        # coils are combined by their phase differences, each weighted by its modulus
        found["temperature"] = prf_temperature((image * image[:1].conj()).sum(1), (image[:1].abs() ** 2).sum(1) + 0j,
                                               te, b0)  # fmt: skip
    name = out.name.lower()
    if name.endswith(_NIFTI):
        volume = found["temperature"] if te is not None else image.abs().square().sum(1).sqrt()
        write_array(out, volume.permute(1, 2, 0).numpy())
    elif name.endswith(".npy"):
        write_array(out, found["image"].numpy())
    else:
        write_array(out, {k: v.numpy() for k, v in found.items()})
    if picture is not None:
        _draw(picture, source, reference, start, image)
    typer.echo(f"wrote {out}: {' x '.join(map(str, found['image'].shape))}")


def _mask(source: Path, mask: Path | None, kspace: Tensor) -> Tensor:
    """The mask that is given, or where any slice was measured; it fits the k-space."""
    if mask is not None:
        values = torch.from_numpy(read_array(mask))
    else:
        try:
            if source.suffix == ".npy":
                raise ValueError
            values = torch.from_numpy(read_array(source, "mask"))
        except ValueError:
            return (kspace != 0).flatten(0, 1).any(0)
    size = tuple(kspace.shape[-2:])
    if values.ndim == 1 and len(values) == size[1]:  # fastMRI: columns
        values = values.expand(size)
    if tuple(values.shape) != size:
        raise ValueError(f"{mask or source}: the mask must have shape {size} like k-space, got {tuple(values.shape)}")
    if not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(f"{mask or source}: the mask must hold zeros and ones only")
    return values.float()


def _draw(path: Path, source: Path, reference: str | None, start: Tensor, image: Tensor) -> None:
    """The first slice's moduli: zero-filled, result, and the error five times over where there is a reference."""
    combined = [u[0].abs().square().sum(0).sqrt() for u in (start, image)]
    if reference is not None:
        truth = torch.from_numpy(np.abs(read_array(source, reference))).float()
        if truth.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"{source}: {reference} must have slices of {tuple(image.shape[-2:])}, got {tuple(truth.shape)}"
            )
        truth = truth.reshape(-1, *truth.shape[-2:])[0]
        combined += [5 * (combined[1] - truth).abs(), truth]
    write_image(path, (torch.cat(combined, 1) / combined[1].max()).numpy())
