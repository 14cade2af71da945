"""``hadamard apply learned_proximal``: a picture in, the restored picture out."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from hadamard.cli.files import read_image, write_image
from hadamard.cli.pictures import read_missing
from hadamard.imaging import GaussianBlur, Inpainting, LearnedProximal, PatchAverage, pnp_admm, pretrained
from hadamard.validation import check_option, check_range

__all__ = ["apply"]

_TASKS = ("denoise", "deblur", "inpaint")
_TILED = 512 * 512  # pixels above which the network sees the picture in tiles


def apply(
    image_in: Annotated[Path, typer.Argument(help="The picture: PNG, JPEG, TIFF, ...; grey or colour, any size.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the restored picture goes.")],
    task: Annotated[str, typer.Option(help="What is wrong with it: denoise, deblur or inpaint.")] = "denoise",
    sigma: Annotated[
        float | None, typer.Option(help="Standard deviation of its noise, in units of white; estimated if not given.")
    ] = None,
    blur: Annotated[float | None, typer.Option(help="deblur: standard deviation of the blur in pixels.")] = None,
    mask: Annotated[Path | None, typer.Option(help="inpaint: a picture, white where pixels are missing.")] = None,
    iterations: Annotated[int, typer.Option(help="deblur, inpaint: how many.")] = 30,
) -> None:
    """Restore a picture with the learned proximal network of grey photographs, each colour by itself."""
    check_option(task, "--task", _TASKS)
    check_range(iterations, "--iterations", 1, integer=True)
    for name, value, owner in (("--blur", blur, "deblur"), ("--mask", mask, "inpaint")):
        if (value is not None) != (task == owner):
            raise ValueError(f"{name} goes with --task {owner}" + (", got none" if task == owner else f", not {task}"))
    pixels = read_image(image_in)
    if min(pixels.shape[:2]) < 8:
        raise ValueError(f"{image_in}: must be at least 8 by 8 pixels, got {pixels.shape[0]} by {pixels.shape[1]}")
    y = torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)[:, None].contiguous()
    shape = (y.shape[-2], y.shape[-1])
    missing = None if mask is None else read_missing(mask, shape)
    if sigma is None:
        sigma = _estimate_noise(y) if missing is None else 0.01
    noise = float(check_range(sigma, "--sigma", 0, 1))
    denoiser = pretrained()
    if task == "denoise":
        x = _in_tiles(denoiser.at(max(noise, 1e-3)), y)(y)
    elif blur is not None:
        check_range(blur, "--blur", 0.1, 20)
        x = _solve(GaussianBlur(shape, blur), y, denoiser, max(noise, 0.005), y, iterations)
    else:
        assert missing is not None
        x = _solve(Inpainting(~missing), y * ~missing, denoiser, max(noise, 0.01), _fill(y, missing), iterations)
    write_image(out, x[:, 0].permute(1, 2, 0).squeeze(-1).numpy())


def _solve(
    operator: GaussianBlur | Inpainting, y: Tensor, denoiser: LearnedProximal, noise: float, x0: Tensor, iterations: int
) -> Tensor:
    """Alternate between the data and the network, with a bar that says how long it will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("restoring", total=iterations)
        return pnp_admm(
            operator, y, _in_tiles(denoiser.at(2 * noise), y), rho=0.25, x0=x0, max_iter=iterations, tol=1e-3,
            warn=False, callback=lambda k, x: progress.update(bar, completed=k + 1),
        ).value  # fmt: skip


def _in_tiles(denoiser: LearnedProximal, y: Tensor) -> LearnedProximal | PatchAverage:
    return denoiser if y.shape[-2] * y.shape[-1] <= _TILED else PatchAverage(denoiser)


def _fill(y: Tensor, missing: Tensor) -> Tensor:
    """Fill missing pixels with a mean of the known ones around them, from near to far."""
    x, known = y * ~missing, (~missing).to(y.dtype)
    filled = x
    for sigma in (2.0, 8.0, 32.0, 128.0):
        blur = GaussianBlur((y.shape[-2], y.shape[-1]), sigma).to(y.dtype)
        weight = blur(known)
        reached = missing & (weight > 1e-3) & (filled == 0)
        filled = torch.where(reached, blur(x) / weight.clamp_min(1e-6), filled)
    return filled


def _estimate_noise(y: Tensor) -> float:
    """Standard deviation of white noise from the median modulus of the finest diagonal differences."""
    detail = (y[..., :-1, :-1] - y[..., 1:, :-1] - y[..., :-1, 1:] + y[..., 1:, 1:]) / 2
    return float(detail.abs().median() / 0.6745)
