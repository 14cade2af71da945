"""The products, powers, constellations and molecules on which Gaunt tensor products are compared with e3nn's."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hadamard.claims.transforms import gaunt_tensor_product_training as training
from hadamard.training import load_checkpoint
from hadamard.transforms import GauntTensorProduct, gaunt_power
from hadamard.transforms._spherical import coupling, half_sphere, spherical_harmonics

__all__ = ["DENSE", "FOURIER", "FULL", "OURS", "SAME", "SCRIPT", "SCRIPTED", "TWICE", "Handedness", "Potentials",
           "Product", "irreps_up_to", "problem"]  # fmt: skip

OURS, SAME, SCRIPT, FULL = "hadamard", "e3nn, same paths", "e3nn, same paths, TorchScript", "e3nn, all paths"
DENSE, FOURIER, TWICE = "sum over paths", "Fourier route", "two products"
SCRIPTED = ("L = 4",)  # TorchScript gains little, and takes long to build beyond
POTENTIALS = {OURS: "gaunt", SAME: "e3nn"}


@dataclass
class Product:
    """Two operands, the programs that multiply them, and the result in float64; ``turn`` is a rotoreflection."""

    L: int
    x: Tensor
    y: Tensor
    run: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    truth: Tensor | None = None
    turn: Tensor | None = None


@dataclass
class Handedness:
    """Positions of three different neighbours around an atom, (constellations, 3, 3)."""

    points: Tensor


@dataclass
class Potentials:
    """Molecules, and the networks that predict their energies and forces."""

    graphs: Sequence[training.Graph]
    networks: Mapping[str, training.Potential]


def problem(seed: int, degrees: list[int], full: list[int], exact: int, graphs: int, again: bool) -> dict[str, Any]:
    """Products by degree, one channel with all paths, accuracy, powers, mirror images, molecules."""
    generator = torch.Generator().manual_seed(seed)
    cases: dict[str, Any] = {}
    for L in degrees:
        modes = {SAME: "eager"} | ({SCRIPT: "script"} if f"L = {L}" in SCRIPTED else {})
        cases[f"L = {L}"] = _product(L, 64, 32, generator, modes)
    for L in full:
        cases[f"1 channel, L = {L}"] = _product(L, 256, 1, generator, {FULL: "script" if L <= 4 else "eager"})
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        cases[f"accuracy, {name}"] = _accuracy(exact, dtype, generator)
    cases["third power"] = _power(generator)
    cases["mirror images"] = Handedness(torch.randn(400, 3, 3, generator=generator, dtype=torch.float64))
    shipped = {name: load_checkpoint(training.checkpoint(k), training.new(k)) for name, k in POTENTIALS.items()}
    cases["molecules"] = Potentials(training.batches("test", graphs), shipped)
    if again:
        with TemporaryDirectory() as folder:
            training.train("quick", folder, progress=False)
            paths = {name: Path(folder) / f"{training.checkpoint(k)}.safetensors" for name, k in POTENTIALS.items()}
            fresh = {name: load_checkpoint(paths[name], training.new(k)) for name, k in POTENTIALS.items()}
        cases["molecules, trained again"] = Potentials(training.batches("test", graphs), fresh)
    return cases


def irreps_up_to(L: int, channels: int) -> str:
    """Irreps of the degrees 0 to L with the same multiplicity."""
    return "+".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range(L + 1))


def _product(L: int, batch: int, channels: int, generator: torch.Generator, peers: Mapping[str, str]) -> Product:
    irreps = irreps_up_to(L, channels)
    options: dict[str, Any] = {"weights": None, "path_normalization": "none"}
    run: dict[str, Any] = {OURS: GauntTensorProduct(irreps, irreps, L, **options)}
    if channels > 1:
        run |= {
            name: GauntTensorProduct(irreps, irreps, L, backend=b, **options)
            for name, b in ((DENSE, "dense"), (FOURIER, "fft"))
        }
    for name, mode in peers.items():
        run[name] = _e3nn_full(irreps, L, mode) if name == FULL else _e3nn(irreps, run[OURS].paths, mode)
    x, y = (torch.randn(batch, channels * (L + 1) ** 2, generator=generator) for _ in range(2))
    return Product(L, x, y, run)


def _e3nn(irreps: str, paths: Sequence[tuple[int, int, int]], mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    """e3nn's product on the paths that Gaunt has, each scaled as there."""
    instructions = [(a, b, c, "uuu", False, 4 * torch.pi * coupling(a, b, c)) for a, b, c in paths]
    return _compiled(
        mode, lambda o3: o3.TensorProduct(
            irreps, irreps, irreps, instructions, irrep_normalization="none", path_normalization="none"
        ),
    )  # fmt: skip


def _e3nn_full(irreps: str, L: int, mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    return _compiled(
        mode, lambda o3: o3.FullTensorProduct(
            irreps, irreps, filter_ir_out=[o3.Irrep(l, p) for l in range(L + 1) for p in (1, -1)]
        ),
    )  # fmt: skip


def _compiled(mode: str, build: Callable[[Any], Any]) -> Any:
    """Built with e3nn's own optimisation in one of its modes."""
    import e3nn
    from e3nn import o3

    before = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode=mode)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build(o3)
    finally:
        e3nn.set_optimization_defaults(jit_mode=before)


def _accuracy(L: int, dtype: torch.dtype, generator: torch.Generator) -> Product:
    """The product by every route in one precision, the sum over paths in float64, and a turned sphere."""
    irreps, options = irreps_up_to(L, 4), {"weights": None, "path_normalization": "none"}
    routes = {OURS: "grid", FOURIER: "fft", DENSE: "dense"}
    run = {n: GauntTensorProduct(irreps, irreps, L, backend=b, dtype=dtype, **options) for n, b in routes.items()}  # type: ignore[arg-type]
    exact = GauntTensorProduct(irreps, irreps, L, backend="dense", dtype=torch.float64, **options)  # type: ignore[arg-type]
    x, y = (torch.randn(16, 4 * (L + 1) ** 2, generator=generator, dtype=torch.float64) for _ in range(2))
    turn = -torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return Product(
        L, x.to(dtype), y.to(dtype), run, exact(x.to(dtype).double(), y.to(dtype).double()), _turning(turn, L, 4)
    )


def _turning(R: Tensor, L: int, channels: int) -> Tensor:
    """How coefficients turn with the sphere, by exact integration."""
    grid = half_sphere(2 * L)
    r = torch.from_numpy(grid.points) @ R.mT
    theta, phi = torch.acos(r[:, 1].clamp(-1, 1)).numpy(), torch.atan2(r[:, 0], r[:, 2]).numpy()
    blocks = []
    for l in range(L + 1):
        turned = torch.from_numpy(spherical_harmonics([l], theta, phi))
        blocks += [turned @ torch.from_numpy(grid.inverse([l], {l: 1.0}, l % 2))] * channels
    return torch.block_diag(*blocks)


def _power(generator: torch.Generator) -> Product:
    """The third power of degree 3, whole."""
    options: dict[str, Any] = {"weights": None, "path_normalization": "none"}
    square = GauntTensorProduct(irreps_up_to(3, 32), irreps_up_to(3, 32), **options)
    cube = GauntTensorProduct(square.irreps_out, irreps_up_to(3, 32), **options)
    run = {
        OURS: lambda x, _: gaunt_power(x, 3, irreps_up_to(3, 32)),
        TWICE: lambda x, _: cube(square(x, x), x),
    }
    x = torch.randn(64, 32 * 16, generator=generator)
    return Product(3, x, x, run)
