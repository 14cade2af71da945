"""Photographs that no network has seen, made small and large again, or hidden in one another."""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hadamard.claims.imaging.dual_latent_rescaling_training import (
    NETWORKS,
    SEEDS,
    colour_photographs,
    enlarge,
    train,
)
from hadamard.imaging import DualLatentHider, DualLatentRescaler
from hadamard.operators import bicubic
from hadamard.training import load_checkpoint

__all__ = [
    "AGAIN", "BICUBIC", "DOWN", "HIDING", "JPEG", "LANCZOS", "LEARNED", "LSB", "OURS", "SINGLE", "UP",
    "Case", "Outcome", "enlarge_bicubic", "enlarge_lanczos", "enlarge_learned", "hide", "hide_in_bits", "jpeg",
    "png_bytes", "problem", "rescale",
]  # fmt: skip

OURS, SINGLE = "two latents", "one latent (IRN)"
BICUBIC, LANCZOS = "bicubic down and up", "bicubic down, Lanczos up (Pillow)"
LEARNED, JPEG = "bicubic down, learned up", "JPEG of as many bytes (Pillow)"
LSB, UP, DOWN = "four lowest bits", "up", "down"
HIDING, AGAIN = "hiding", ", trained again"
_NAME = "dual_latent_rescaling"


@dataclass(frozen=True)
class Case:
    """Photographs (1, 3, H, W) with bicubic reductions of 8 bits (or, where they are hidden, covers for them)."""

    pictures: dict[str, Tensor]
    beside: dict[str, Tensor]
    networks: dict[str, list[nn.Module]]
    scale: int


def problem(seed: int, side: int | None, sizes: list[int], again: bool) -> dict[str, Any]:
    """Rescaling by 2 and 4, hiding, pictures of some sizes to be timed, and networks trained again if asked."""
    cases: dict[str, Any] = {f"{scale}x": _rescaling(scale, side) for scale in (2, 4)}
    if again:
        with tempfile.TemporaryDirectory() as folder:
            train("quick", folder, seed=seed + SEEDS, progress=False)
            cases |= {f"{scale}x{AGAIN}": _rescaling(scale, side, folder) for scale in (2, 4)}
    cases[HIDING] = _hiding(side or 256)
    network = DualLatentRescaler.pretrained(2)
    generator = torch.Generator().manual_seed(seed)
    for n in sizes:
        x = torch.rand(1, 3, n, n, generator=generator)
        cases[f"{n} x {n}"] = Case({"x": x}, {"x": network.downscale(x).detach()}, {OURS: [network]}, 2)
    return cases


def _rescaling(scale: int, side: int | None, folder: str | None = None) -> Case:
    pictures = {name: _middle(x, side) for name, x in colour_photographs("test").items()}
    small = {}
    for name, x in pictures.items():
        small[name] = (255 * bicubic(scale, x.shape[-2:])(x)).round().clamp(0, 255) / 255
    seeds = ["", *(f"_{i}" for i in range(1, SEEDS))] if scale == 2 and folder is None else [""]
    networks = {
        who: [_load(f"{_NAME}_x{scale}{tail}{seed}", folder) for seed in seeds]
        for who, tail in ((OURS, ""), (SINGLE, "_single"))
    }
    return Case(pictures, small, networks | {LEARNED: [_load(f"{_NAME}_x{scale}_upscaler", folder)]}, scale)


def _hiding(side: int) -> Case:
    pictures = {name: _middle(x, side) for name, x in colour_photographs("test").items()}
    names = list(pictures)
    covers = {name: pictures[other] for name, other in zip(names, names[1:] + names[:1])}
    return Case(pictures, covers, {OURS: [_load(f"{_NAME}_hiding")], SINGLE: [_load(f"{_NAME}_hiding_single")]}, 1)


def _middle(x: Tensor, side: int | None) -> Tensor:
    """The middle of a photograph, or all of it but for what is over a multiple of 4."""
    height, width = (n // 4 * 4 if side is None else side for n in x.shape[-2:])
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[None, :, top : top + height, left : left + width].contiguous()


def _load(name: str, folder: str | None = None) -> nn.Module:
    module = NETWORKS[name].build(torch.Generator())
    return load_checkpoint(name if folder is None else f"{folder}/{name}.safetensors", module).eval()


# ---- contenders: each gives, for every photograph, one pair (small, restored) a seed ----

Outcome = dict[str, list[tuple[Tensor | None, Tensor]]]


def rescale(who: str) -> Callable[[Case], Outcome]:
    """Invertible networks, through pictures of 8 bits."""

    @torch.no_grad()
    def run(case: Case) -> Outcome:
        found: Outcome = {}
        for name, x in case.pictures.items():
            networks = [cast(DualLatentRescaler, network) for network in case.networks[who]]
            small = [network.downscale(x) for network in networks]
            found[name] = [(y, network.upscale(y)) for y, network in zip(small, networks)]
        return found

    return run


def _from_bicubic(up: Callable[[Case, Tensor], Tensor]) -> Callable[[Case], Outcome]:
    def run(case: Case) -> Outcome:
        with torch.no_grad():
            return {name: [(y, up(case, y).clamp(0, 1))] for name, y in case.beside.items()}

    return run


def _lanczos(case: Case, y: Tensor) -> Tensor:
    from PIL import Image

    size = (y.shape[-1] * case.scale, y.shape[-2] * case.scale)
    return _tensor(_image(y).resize(size, Image.Resampling.LANCZOS))


enlarge_bicubic = _from_bicubic(lambda case, y: enlarge(y, case.scale))
enlarge_learned = _from_bicubic(lambda case, y: case.networks[LEARNED][0](y))
enlarge_lanczos = _from_bicubic(_lanczos)


def jpeg(case: Case) -> Outcome:
    """The large picture as the best JPEG that needs no more bytes than our small one as a PNG."""
    found: Outcome = {}
    with torch.no_grad():
        for name, x in case.pictures.items():
            most = png_bytes(cast(DualLatentRescaler, case.networks[OURS][0]).downscale(x))
            low, high = 1, 100
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if len(_jpeg(x, middle)) <= most else (low, middle - 1)
            from PIL import Image

            found[name] = [(None, _tensor(Image.open(io.BytesIO(_jpeg(x, low)))))]
    return found


def hide(who: str) -> Callable[[Case], Outcome]:
    """Each photograph in its cover by a network, and found again; pairs are (carrier, secret)."""

    @torch.no_grad()
    def run(case: Case) -> Outcome:
        network = cast(DualLatentHider, case.networks[who][0])
        carriers = {name: network.hide(case.beside[name], secret) for name, secret in case.pictures.items()}
        return {name: [(carrier, network.reveal(carrier))] for name, carrier in carriers.items()}

    return run


def hide_in_bits(case: Case) -> Outcome:
    """The classic: the secret's four highest bits in the cover's four lowest."""
    found: Outcome = {}
    for name, secret in case.pictures.items():
        cover, hidden = (((255 * x).round().long()) for x in (case.beside[name], secret))
        carrier = cover // 16 * 16 + hidden // 16
        found[name] = [(carrier / 255, (carrier % 16 * 16 + 8) / 255)]
    return found


def png_bytes(x: Tensor) -> int:
    """Size of a picture as a PNG."""
    buffer = io.BytesIO()
    _image(x).save(buffer, format="PNG", optimize=True)
    return buffer.tell()


def _jpeg(x: Tensor, quality: int) -> bytes:
    buffer = io.BytesIO()
    _image(x).save(buffer, format="JPEG", quality=quality, subsampling=0 if quality > 90 else -1, optimize=True)
    return buffer.getvalue()


def _image(x: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((255 * x[0]).round().byte().permute(1, 2, 0).numpy())


def _tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None] / 255
