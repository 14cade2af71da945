"""``hadamard apply fourier_pd``: complex images from undersampled k-space, and temperature from a series of them."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hadamard.cli.files import read_array, write_image
from hadamard.cli.kspace import Scan, read_scan, write_scan
from hadamard.data import undersampling_mask
from hadamard.imaging import FourierPrimalDual, prf_temperature
from hadamard.operators import Coils, Fourier
from hadamard.validation import check_range

__all__ = ["apply"]


def apply(
    source: Annotated[
        Path,
        typer.Argument(
            help="k-space (.h5, .npz, .npy): (slices[, coils], H, W); or complex images to undersample (.nii, .nii.gz)."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Complex image (.h5, .npz, .npy), or image or temperature (.nii).")
    ],
    key: Annotated[str, typer.Option(help="Name of the k-space in SOURCE.")] = "kspace",
    phase: Annotated[
        Path | None, typer.Option(help="NIfTI file of the phase in radians, where SOURCE is the magnitude.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="File of the mask; by default `mask` in SOURCE, or where k-space is not 0.")
    ] = None,
    acceleration: Annotated[
        float | None, typer.Option(help="Undersample that many times, instead of a mask; for images.")
    ] = None,
    pattern: Annotated[
        str, typer.Option(help="Of --acceleration: variable-density, gaussian, radial or lines.")
    ] = "variable-density",
    sens: Annotated[
        str | None, typer.Option(help="Name of the coil sensitivities in SOURCE, to combine coils.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Name of the fully sampled image in SOURCE; NIfTI images are their own.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A network from `hadamard train fourier_pd`.")] = None,
    te: Annotated[
        float | None, typer.Option(help="Echo time in seconds: slices (of NIfTI: t) are moments, the first cold.")
    ] = None,
    b0: Annotated[float, typer.Option(help="Field in tesla, for the temperature.")] = 1.5,
    picture: Annotated[
        Path | None, typer.Option(help="A PNG of zero-filled image, result and, with a reference, error.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Reconstruct complex images slice by slice with the network that comes with hadamard.

    k-space is centred (zero frequency at n // 2) and orthonormal, as in fastMRI's files. With --te the change of
    temperature since the first moment is written beside the image (or instead of it, into NIfTI). HDF5 keeps SOURCE's
    attributes, header and other arrays; NIfTI keeps a NIfTI SOURCE's affine and header, or takes the voxel sizes of the
    ISMRMRD header (the orientation is not known then, nor a gap between slices).
    """
    if te is not None:
        check_range(te, "--te", 0, 1, closed="right")
    scan = read_scan(source, key, phase)
    if te is not None and scan.moments < 2:
        raise ValueError(f"{source}: --te needs at least two moments, got one")
    sampled = _mask(scan, mask, acceleration, pattern)
    truth = scan.images if reference is None else _reference(scan, reference)
    network = FourierPrimalDual.pretrained()
    if weights is not None:
        from hadamard.training import load_checkpoint

        load_checkpoint(weights, network)
    images = []
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar, torch.no_grad():
        for one in bar.track(scan.kspace, description="reconstructing"):
            images.append(network(one[None], sampled)[0])
    image = torch.stack(images)
    start = Fourier(image.shape[-2:]).A_adjoint(scan.kspace * sampled)
    if sens is not None:
        maps = torch.from_numpy(read_array(source, sens)).to(image.dtype)
        if maps.shape[-3:] != image.shape[1:]:
            raise ValueError(f"{source}: {sens} must have shape {tuple(image.shape[1:])}, got {tuple(maps.shape)}")
        image, start = (Coils(maps).A_adjoint(u) for u in (image, start))
    temperature = None if te is None else _temperature(image, scan.moments, te, b0)
    written = write_scan(out, scan, image, temperature, key)
    said = ""
    if truth is not None:
        whole = _modulus(truth)
        errors = [float((_modulus(u, whole) - whole).norm() / whole.norm()) for u in (start, image)]
        said = f"; error of the magnitude {errors[1]:.3g}, of the zero-filled one {errors[0]:.3g}"
    if picture is not None:
        _draw(picture, start, image, truth)
    typer.echo(f"wrote {', '.join(map(str, written))}: {' x '.join(map(str, image.shape))}{said}")


def _temperature(image: Tensor, moments: int, te: float, b0: float) -> Tensor:
    """Since the first moment; coils are combined by their phase differences, each weighted by its modulus."""
    series = image.unflatten(0, (moments, -1))
    turned = (series * series[:1].conj()).sum(2)
    return prf_temperature(turned, (series[:1].abs() ** 2).sum(2) + 0j, te, b0).flatten(0, 1)


def _mask(scan: Scan, mask: Path | None, acceleration: float | None, pattern: str) -> Tensor:
    """The mask that is given or drawn, or where any slice was measured; it fits the k-space."""
    source, size = scan.source, (scan.kspace.shape[-2], scan.kspace.shape[-1])
    if acceleration is not None:
        if mask is not None or scan.images is None:
            raise ValueError("--acceleration is for images (.nii, .nii.gz) without --mask")
        return undersampling_mask(size[0], size[1], acceleration, pattern).float()
    if mask is not None:
        values = torch.from_numpy(read_array(mask))
    elif scan.images is not None:
        raise ValueError(f"{source}: images are fully sampled, give --acceleration or --mask")
    else:
        try:
            if source.suffix == ".npy":
                raise ValueError
            values = torch.from_numpy(read_array(source, "mask"))
        except ValueError:
            return (scan.kspace != 0).flatten(0, 1).any(0).float()
    if values.ndim == 1 and len(values) == size[1]:  # fastMRI: columns
        values = values.expand(size)
    if tuple(values.shape) != size:
        raise ValueError(f"{mask or source}: the mask must have shape {size} like k-space, got {tuple(values.shape)}")
    if not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(f"{mask or source}: the mask must hold zeros and ones only")
    if not bool(values.any()):
        raise ValueError(f"{mask or source}: the mask must have ones, got a mask with no sample")
    return values.float()


def _reference(scan: Scan, name: str) -> Tensor:
    """Moduli (n, 1, h, w) of the image of that name in the file; fastMRI keeps the middle of the image only."""
    values = np.abs(read_array(scan.source, name))
    wanted = (len(scan.kspace), *scan.kspace.shape[-2:])
    values = values.reshape(-1, *values.shape[-2:])
    if len(values) != wanted[0] or values.shape[1] > wanted[1] or values.shape[2] > wanted[2]:
        raise ValueError(f"{scan.source}: {name} must have slices of shape {wanted} or smaller, got {values.shape}")
    return torch.from_numpy(values).float()[:, None]


def _modulus(image: Tensor, like: Tensor | None = None) -> Tensor:
    """Coils together, and the middle of the image where ``like`` is smaller."""
    found = image.abs().square().sum(1).sqrt()
    if like is None:
        return found
    (height, width), (h, w) = found.shape[-2:], like.shape[-2:]
    return found[:, (height - h) // 2 :, (width - w) // 2 :][:, :h, :w]


def _draw(path: Path, start: Tensor, image: Tensor, truth: Tensor | None) -> None:
    """The middle slice's moduli: zero-filled, result, and where there is a reference, the error fivefold and it."""
    middle, whole = len(image) // 2, None if truth is None else _modulus(truth)
    shown = [_modulus(u, whole)[middle] for u in (start, image)]
    if whole is not None:
        shown += [5 * (shown[1] - whole[middle]).abs(), whole[middle]]
    write_image(path, (torch.cat(shown, 1) / shown[1].max().clamp(min=1e-12)).numpy())
