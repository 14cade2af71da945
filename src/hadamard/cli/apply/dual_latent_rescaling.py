"""``hadamard apply dual_latent_rescaling``: a picture in, the small picture out, and the way back."""

import re
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

from hadamard.cli.files import image_info, write_image
from hadamard.cli.pictures import as_pixels, read_colours
from hadamard.images import pad_to_multiple
from hadamard.imaging import DualLatentRescaler
from hadamard.validation import check_option

__all__ = ["apply"]

_NAME = "hadamard dual_latent_rescaling"  # of the note in a small PNG that says how it was made
_NOTE = re.compile(r"scale (?P<scale>[24]), from (?P<size>\d+x\d+)")
_TILE = 128  # side of the tiles that go through the network at a time, in pixels of the small picture


def apply(
    image_in: Annotated[Path, typer.Argument(help="The picture: PNG, TIFF, JPEG, ...; colour or grey, any size.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the result goes; its ending says the format.")],
    scale: Annotated[
        int | None, typer.Option(help="How many times smaller or larger: 2 (by default) or 4; a .png remembers.")
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Make IMAGE_IN, which this command made, large again.")] = False,
    size: Annotated[
        str | None,
        typer.Option(help="--back: WIDTHxHEIGHT of the original, where odd; a .png remembers."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A PNG of input, result and ten times the error, side by side.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="--back: the original, for the picture of the error.")] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Make a picture 2 or 4 times smaller such that --back restores more than interpolation does.

    The small picture must be kept without loss: PNG or TIFF, not JPEG. A width or height that is no multiple of the
    scale is filled up with mirrored pixels, which --back cuts off again. Colour profile, EXIF data and the size in
    print are kept, transparency is not. The error in the picture is that of the
    restored image; without --truth, that of the small picture which the restored one gives again.
    """
    if scale is not None:
        check_option(scale, "--scale", (2, 4))
    for name, value in (("--size", size), ("--truth", truth)):
        if value is not None and not back:
            raise ValueError(f"{name} goes with --back")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"{picture}: --picture must end in .png")
    if not back and out.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{out}: the way back needs every bit of the small picture, write a .png or .tiff")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    x, grey = read_colours(image_in)
    info = image_info(image_in)
    made = _NOTE.fullmatch(info["text"].pop(_NAME, "")) if back else None
    if made:
        if scale not in (None, int(made["scale"])):
            raise ValueError(f"{image_in}: was made with --scale {made['scale']}, got {scale}")
        scale, size = int(made["scale"]), size or made["size"]
    scale = scale or 2
    info |= {"dpi": tuple(v * (scale if back else 1 / scale) for v in info["dpi"])} if "dpi" in info else {}
    network = DualLatentRescaler.pretrained(scale)
    if back:
        shape = _shape(size, [scale * n for n in x.shape[-2:]], scale)
        original = None if truth is None else read_colours(truth)[0]
        if original is not None and tuple(original.shape[-2:]) != shape:
            height, width = original.shape[-2:]
            raise ValueError(f"{truth}: the original must be {shape[1]} by {shape[0]} pixels, got {width} by {height}")
        whole = _in_tiles(network, x, True, "restoring", progress)
        result = whole[..., : shape[0], : shape[1]]
        if picture is not None:
            again = _in_tiles(network, whole, False, "checking", progress)
            _show(picture, x, result, again - x if original is None else result - original)
    else:
        larger, crop = pad_to_multiple(x, scale)
        result = _in_tiles(network, larger, False, "reducing", progress)
        if picture is not None:
            restored = crop(_in_tiles(network, result, True, "checking", progress))
            _show(picture, x, result, restored - x)
        width, height = x.shape[-1], x.shape[-2]
        info["text"][_NAME] = f"scale {scale}, from {width}x{height}"
        if larger is not x and out.suffix.lower() != ".png":
            typer.echo(f"{width} by {height} is no multiple of {scale}: --back needs --size {width}x{height}", err=True)
    write_image(out, as_pixels(result, grey), info)
    typer.echo(f"wrote {out}: {result.shape[-1]} by {result.shape[-2]}")


def _shape(size: str | None, most: list[int], scale: int) -> tuple[int, int]:
    """Height and width that --size asks for."""
    if size is None:
        return most[0], most[1]
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--size must be WIDTHxHEIGHT, such as 451x300, got {size!r}")
    width, height = map(int, parts)
    if not (most[0] - scale < height <= most[0] and most[1] - scale < width <= most[1]):
        raise ValueError(f"--size must be at most {most[1]}x{most[0]}, and less than {scale} below, got {size}")
    return height, width


def _in_tiles(network: DualLatentRescaler, x: Tensor, up: bool, title: str, show: bool) -> Tensor:
    """Apply the network tile by tile, each with as much around it as the network sees: the same as all at once."""
    scale = network.scale
    before, after = (1, scale) if up else (scale, 1)  # pixels of input and output for one of the small picture
    halo = network.reach
    height, width = (n // before for n in x.shape[-2:])
    tiles = [(top, left) for top in range(0, height, _TILE) for left in range(0, width, _TILE)]
    result = x.new_empty(1, 3, height * after, width * after)
    with Progress(console=Console(stderr=True), transient=True, disable=not show) as bar, torch.no_grad():
        for tile in bar.track(tiles, description=title):
            start, stop = [max(n - halo, 0) for n in tile], [n + _TILE + halo for n in tile]
            part = x[..., before * start[0] : before * stop[0], before * start[1] : before * stop[1]]
            done = network.upscale(part) if up else network.downscale(part)
            rows, columns = (slice(after * (n - a), after * (n - a + _TILE)) for n, a in zip(tile, start))
            top, left = (after * n for n in tile)
            side = after * _TILE
            result[..., top : top + side, left : left + side] = done[..., rows, columns]
    return result


def _show(path: Path, x: Tensor, result: Tensor, error: Tensor) -> None:
    """Input, result and error, each as large as the largest."""
    height = max(x.shape[-2], result.shape[-2])
    panels = [
        F.interpolate(p, scale_factor=round(height / p.shape[-2]), mode="nearest")
        for p in (x, result, (10 * error.abs()).clamp(0, 1))
    ]
    width = max(p.shape[-1] for p in panels)
    tall = max(p.shape[-2] for p in panels)
    panels = [F.pad(p, (0, width - p.shape[-1], 0, tall - p.shape[-2]), value=1.0) for p in panels]
    write_image(path, as_pixels(torch.cat(panels, -1), False))
