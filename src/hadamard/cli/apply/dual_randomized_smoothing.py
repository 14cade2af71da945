"""``hadamard apply dual_randomized_smoothing``: images and networks in, a table of certificates out."""

import csv
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from hadamard.certification import DualSmooth, RandomizedSmoothing
from hadamard.cli.files import MissingKey, existing, read_array
from hadamard.cli.models import read_model
from hadamard.progress import progress_bar
from hadamard.validation import check_option, check_range

__all__ = ["apply"]

_FILLS = ("nearest", "mean", "maxpool")
_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")


def apply(
    source: Annotated[
        Path,
        typer.Argument(
            help="Images of shape (N, C, H, W) or (N, H, W): .npy, or an array 'images' in .npz, .h5 or .mat, there "
            "with their classes 'labels' (N,) if known. Bytes are divided by 255."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Table to write, separated by tabs as analyze.py of locuslab/smoothing reads it."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="module:function that builds a network: images (N, C, H, W) to scores (N, classes).")
    ],
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise, in units of the images.")],
    weights: Annotated[
        Path | None, typer.Option(help="Its weights (.safetensors), with --weights-right those for the left half.")
    ] = None,
    weights_right: Annotated[
        Path | None, typer.Option(help="Weights for the right half; else one network sees both halves in turn.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain randomized smoothing of one network.")] = False,
    fill: Annotated[str, typer.Option(help="What the holes are given: nearest, mean or maxpool.")] = "nearest",
    n0: Annotated[int, typer.Option(help="Noisy copies by which the class is chosen.")] = 100,
    n: Annotated[int, typer.Option(help="Noisy copies by which the radius is certified.")] = 10_000,
    alpha: Annotated[float, typer.Option(help="Probability that an image's certificate is wrong.")] = 0.001,
    runner_up: Annotated[bool, typer.Option("--runner-up", help="Bound each other class's share, too.")] = False,
    batch_size: Annotated[int, typer.Option(help="Noisy images that the network is given at a time.")] = 200,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
) -> None:
    """Certify images: for each a class and an l2 radius within which the smoothed network provably keeps to it.

    Rows are written as they are done: idx, label (empty where it is not known), predict (-1: abstains), radius, correct
    and time.
    """
    for name, number, least in (("--n0", n0, 2), ("--n", n, 2), ("--batch-size", batch_size, 1)):
        check_range(number, name, least, integer=True)
    check_range(alpha, "--alpha", 0, 1, "neither")
    check_range(sigma, "--sigma", 0, None, "neither")
    check_option(fill, "--fill", _FILLS)
    if plain and weights_right is not None:
        raise ValueError("--weights-right goes with two halves, not with --plain")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    images, labels = _images(source)
    net = read_model(model, weights).to(device)
    classes = _classes(net, images[:1].to(device), model)
    smooth: DualSmooth | RandomizedSmoothing
    if plain:
        smooth = RandomizedSmoothing(net, classes, sigma)
    else:
        right = net if weights_right is None else read_model(model, weights_right).to(device)
        smooth = DualSmooth(net, right, classes, sigma, fill=fill)
    generator = torch.Generator(device).manual_seed(seed)
    certified, radii = 0, 0.0
    with (
        out.open("w", newline="", encoding="utf-8") as file,
        progress_bar("certifying", len(images), typer.get_text_stream("stderr").isatty(), "radius") as advance,
    ):
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(_COLUMNS)
        for index, image in enumerate(images):
            started = time.perf_counter()
            found = smooth.certify_batch(
                image[None].to(device), n0, n, alpha, batch_size, runner_up=runner_up, generator=generator
            )
            label, radius = int(found.label), float(found.radius)
            known = None if labels is None else int(labels[index])
            took = timedelta(seconds=time.perf_counter() - started)
            right_or_not = "" if known is None else int(label == known)
            writer.writerow([index, "" if known is None else known, label, f"{radius:.6g}", right_or_not, took])
            file.flush()
            certified, radii = certified + (label >= 0), radii + radius
            advance(index + 1, radius)
    mean = radii / max(certified, 1)
    typer.echo(f"wrote {out}: {certified} of {len(images)} images have a certificate, of radius {mean:.4g} on average")


def _images(path: Path) -> tuple[Tensor, np.ndarray | None]:
    """Images in floats of shape (N, C, H, W), and their classes where the file has them."""
    path = existing(path)
    single = path.suffix.lower() == ".npy"
    pixels = read_array(path, None if single else "images")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.size == 0 or pixels.dtype.kind not in "fu":
        raise ValueError(
            f"{path}: images must be floats or bytes of shape (N, C, H, W) or (N, H, W), "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    if pixels.dtype.kind == "u" and pixels.dtype != np.uint8:
        raise ValueError(f"{path}: images must be floats or bytes, got {pixels.dtype}")
    images = torch.from_numpy(pixels.astype(np.float32)) / (255 if pixels.dtype == np.uint8 else 1)
    if not bool(images.isfinite().all()):
        raise ValueError(f"{path}: images hold NaN or infinite values")
    return images, None if single else _labels(path, len(images))


def _labels(path: Path, count: int) -> np.ndarray | None:
    try:
        labels = read_array(path, "labels")
    except MissingKey:
        return None
    labels = labels.reshape(-1) if labels.size == count else labels  # MATLAB knows no vectors
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels must be {count} integers, got {labels.dtype} of shape {labels.shape}")
    return labels


@torch.no_grad()
def _classes(net: torch.nn.Module, image: Tensor, name: str) -> int:
    """How many classes the network knows."""
    try:
        scores = net(image)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} does not take images of shape {tuple(image.shape[1:])} ({reason})") from error
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[1] < 2:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{name} must return scores of shape (N, classes), got {got}")
    return scores.shape[1]
