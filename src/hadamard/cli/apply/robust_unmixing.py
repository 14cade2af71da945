"""``hadamard apply robust_unmixing``: an image cube in, maps of its materials out."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from hadamard.claims.imaging.robust_unmixing_problem import match_columns
from hadamard.cli.cubes import check_out, read_cube, write_maps
from hadamard.cli.files import read_array, write_image
from hadamard.imaging import unmix_cube

__all__ = ["apply"]


def apply(
    source: Annotated[
        Path, typer.Argument(help="Cube (height, width, bands): .npy, .npz, .h5, .mat, or the .hdr of an ENVI file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Maps and spectra, in the format of SOURCE.")],
    endmembers: Annotated[int, typer.Option("--endmembers", "-k", help="Number of materials.")] = 4,
    key: Annotated[str | None, typer.Option(help="Name of the cube in SOURCE, where it holds several.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="True abundances (height, width, K), .npy or .npz: errors are shown too.")
    ] = None,
    init: Annotated[str, typer.Option(help="Where to start: spa, vca or random.")] = "spa",
    reg_scale: Annotated[float, typer.Option(help="Weight of the sparsity of the abundances.")] = 0.1,
    max_iter: Annotated[int, typer.Option(help="Greatest number of iterations.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of vca and random.")] = 0,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Unmix a hyperspectral image some of whose bands may be broken.

    Written are abundance maps, the guidance map (how pure each pixel is), the spectra, and which bands were found
    broken; what else SOURCE holds (wavelengths, geometry, header) is kept. A picture OUT.png shows the image, the maps
    and, with --reference, the true maps and five times the errors.
    """
    cube = read_cube(source, key)
    check_out(out, cube)
    truth = None
    if reference is not None:
        truth = read_array(reference)
        wanted = (*cube.values.shape[:2], endmembers)
        if truth.shape != wanted:
            raise ValueError(f"{reference}: expected abundances of shape {wanted}, got {truth.shape}")
    result = unmix_cube(
        cube.values, endmembers, init=init, reg_scale=reg_scale, max_iter=max_iter, verbose=progress,
        random_state=seed,
    )  # fmt: skip
    shares, spectra = result.abundances, result.endmembers
    if truth is not None:  # in the order of the reference
        order, _ = match_columns(shares.reshape(-1, endmembers), truth.reshape(-1, endmembers))
        shares, spectra = shares[..., order], spectra[order]
    of_bands = {"endmembers": spectra, "channel_weights": result.channel_weights, "bad_bands": result.bad_bands}
    write_maps(out, {"abundances": shares, "guidance": result.guidance}, of_bands, cube)
    picture = out.with_suffix(".png")
    write_image(picture, _picture(cube.values[..., ~result.bad_bands].mean(-1), shares, result.guidance, truth))
    broken = f"{int(result.bad_bands.sum())} of {spectra.shape[1]} bands broken"
    line = f"wrote {out} and {picture.name}: {endmembers} maps, {broken}"
    if truth is not None:
        line += f", error {np.sqrt(np.square(shares - truth).mean()):.4f}"
    typer.echo(line)


def _picture(image: np.ndarray, shares: np.ndarray, guidance: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """Mean of the good bands, maps and guidance in a row; below them the true maps and five times the errors."""
    scale = max(1, 160 // max(image.shape))
    image = (image - image.min()) / (np.ptp(image) or 1.0)
    blank = np.ones_like(image)
    rows = [[image, *np.moveaxis(shares, -1, 0), guidance]]
    if truth is not None:
        rows.append([blank, *np.moveaxis(truth, -1, 0), blank])
        rows.append([blank, *np.moveaxis(5 * np.abs(shares - truth), -1, 0), blank])
    framed = [[np.pad(np.kron(p, np.ones((scale, scale))), 2, constant_values=1.0) for p in row] for row in rows]
    return np.vstack([np.hstack(row) for row in framed])
