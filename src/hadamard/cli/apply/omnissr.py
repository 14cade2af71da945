"""``hadamard apply omnissr``: a panorama in, a larger one out."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from hadamard.cli.files import image_info, read_image, write_image
from hadamard.cli.pipelines import load_pipeline
from hadamard.validation import check_range

__all__ = ["apply"]


def apply(
    image_in: Annotated[Path, typer.Argument(help="The panorama: PNG, TIFF, JPEG, ...; twice as wide as high.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the result goes; its ending says the format.")],
    scale: Annotated[int, typer.Option(help="How many times larger.")] = 2,
    steps: Annotated[int, typer.Option(help="Of the sampler.")] = 10,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of a diffusers pipeline without texts; by default a small network that comes along."),
    ] = None,
    reduced: Annotated[
        str, typer.Option(help="How the panorama was continued when it was reduced: circular, symmetric or truncate.")
    ] = "circular",
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    view_batch: Annotated[int, typer.Option(help="Views at a time: fewer take less memory.")] = 18,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Enlarge a 360-degree panorama (equirectangular) without a seam, consistent with what was given.

    The network that comes along is tiny and was trained to undo reductions by 2 and 4. Colour profile, EXIF data and
    the size in print are kept, transparency is not.
    """
    check_range(scale, "--scale", 2, integer=True)
    check_range(steps, "--steps", 1, integer=True)
    pixels = read_image(image_in)
    info = image_info(image_in)
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(f"{image_in}: values must lie in [0, 1]")
    height, width = pixels.shape[:2]
    if width != 2 * height:
        raise ValueError(f"{image_in}: a panorama must be twice as wide as high, got {width} by {height}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    pipe = _pipeline(model, progress).to(device)
    pipe.set_progress_bar_config(desc="sampling", disable=not progress)
    x = torch.from_numpy(np.ascontiguousarray(pixels)).float()
    x = x.expand(3, -1, -1) if x.ndim == 2 else x.permute(2, 0, 1)
    rows = "truncate" if reduced == "truncate" else "symmetric"
    large = pipe(
        x[None] * 2 - 1,
        scale,
        steps,
        boundary=(rows, reduced),
        view_batch=view_batch,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]
    info |= {"dpi": tuple(scale * v for v in info["dpi"])} if "dpi" in info else {}
    write_image(out, large.mean(-1) if pixels.ndim == 2 else large, info)
    typer.echo(f"wrote {out}: {large.shape[1]} by {large.shape[0]}")


def _pipeline(model: Path | None, progress: bool) -> Any:
    """The network that comes along, or one from a folder."""
    if find_spec("diffusers") is None:
        raise ImportError("this needs diffusers: pip install 'hadamard[diffusion]'")
    from hadamard.claims import torchvision_shim

    torchvision_shim.install()
    from hadamard.diffusion import OmniSSRPipeline

    if model is None:
        from hadamard.claims.diffusion.omnissr_training import scheduler, trained

        return OmniSSRPipeline(trained(), scheduler())
    pipe = load_pipeline(model, progress, OmniSSRPipeline=OmniSSRPipeline)
    return pipe if isinstance(pipe, OmniSSRPipeline) else OmniSSRPipeline.from_engine(pipe)
