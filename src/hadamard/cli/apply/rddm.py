"""``hadamard apply rddm``: a degraded photograph in, the restored one out."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hadamard.cli.files import image_info, write_image
from hadamard.cli.pictures import as_pixels, read_colours, read_missing
from hadamard.imaging import PatchAverage
from hadamard.validation import check_option, check_range

__all__ = ["apply"]

_TASKS = ("noise", "blur", "dark", "rain", "holes")
_SIDE, _STRIDE = 384, 320  # of the tiles of a large picture, and from one to the next


def apply(
    image_in: Annotated[Path, typer.Argument(help="The photograph: PNG, JPEG, TIFF, ...; colour or grey, any size.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the restored one goes; its ending says the format.")],
    task: Annotated[str, typer.Option(help="What is wrong with it: noise, blur, dark, rain or holes.")],
    steps: Annotated[int, typer.Option(help="Calls of the network.")] = 5,
    mask: Annotated[
        Path | None,
        typer.Option(help="holes: a picture, white where pixels are missing; the others are kept as they are."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise that it starts from.")] = 0,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Restore a photograph by residual denoising.

    The network that ships is small and was trained on nine photographs: noise (standard deviation of 0.05 to 0.2 of
    white), blur (Gaussian, 0.8 to 2 pixels), too little light, streaks of rain, and holes (black squares of some
    pixels). Train one of your own with rddm_loss. Large pictures are restored in overlapping tiles.
    """
    check_option(task, "--task", _TASKS)
    check_range(steps, "--steps", 1, 1000, integer=True)
    if mask is not None and task != "holes":
        raise ValueError(f"--mask goes with --task holes, not {task}")
    x, grey = read_colours(image_in)
    missing = None if mask is None else read_missing(mask, (x.shape[-2], x.shape[-1]))
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    info = image_info(image_in)
    degraded = x if missing is None else x * ~missing
    restored = _restore(degraded, task, steps, seed, progress)
    if missing is not None:
        restored = torch.where(missing, restored, x)
    write_image(out, as_pixels(restored, grey), info)
    typer.echo(f"wrote {out}: {x.shape[-1]} by {x.shape[-2]}")


def _restore(x: Tensor, task: str, steps: int, seed: int, show: bool) -> Tensor:
    """Run the pipeline on one tile after another, with a bar that counts their steps."""
    from hadamard.claims import torchvision_shim

    torchvision_shim.install()
    from hadamard.diffusion import RDDMPipeline

    pipe = RDDMPipeline.pretrained()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    tiles = [max(-(-(n - _SIDE) // _STRIDE), 0) + 1 for n in x.shape[-2:]]
    with Progress(console=Console(stderr=True), transient=True, disable=not show) as bar:
        restoring = bar.add_task("restoring", total=tiles[0] * tiles[1] * steps)

        def restored(tile: Tensor) -> Tensor:
            return pipe(
                tile, steps, class_labels=pipe.tasks.index(task), generator=generator, output_type="pt",
                callback_on_step_end=lambda *_: bar.advance(restoring),
            ).images  # fmt: skip

        return PatchAverage(restored, _SIDE, _STRIDE)(x)
