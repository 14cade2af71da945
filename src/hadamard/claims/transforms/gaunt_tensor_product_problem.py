"""The products, powers, constellations and molecules on which Gaunt tensor products are compared with e3nn's."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hadamard.claims.transforms import gaunt_tensor_product_training as training
from hadamard.training import load_checkpoint
from hadamard.transforms import GauntConv, GauntTensorProduct, gaunt_power
from hadamard.transforms._spherical import coupling, half_sphere, spherical_harmonics

__all__ = ["DENSE", "FOURIER", "FULL", "OURS", "POTENTIALS", "SAME", "SCRIPT", "SCRIPTED", "TWICE", "UVU", "Handedness",
           "Potentials", "Product", "problem", "tell"]  # fmt: skip

OURS, SAME, SCRIPT, FULL = "hadamard", "e3nn, same paths", "e3nn, same paths, TorchScript", "e3nn, all paths"
UVU = "e3nn, same paths, uvu"
DENSE, FOURIER, TWICE = "sum over paths", "Fourier route", "two products"
SCRIPTED = ("L = 4",)  # TorchScript gains little, and takes long to build beyond
POTENTIALS = {OURS: "gaunt", SAME: "e3nn"}


@dataclass
class Product:
    """Two operands, the programs that multiply them, and the result in float64; ``turn`` is a rotoreflection.

    ``backward``: so that gradients are taken too, of all that multiplies.
    """

    L: int
    x: Tensor
    y: Tensor
    run: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    truth: Tensor | None = None
    turn: Tensor | None = None
    backward: bool = False


@dataclass
class Handedness:
    """Positions of three different neighbours around an atom, (constellations, 3, 3)."""

    points: Tensor


@dataclass
class Potentials:
    """Molecules, and the networks that predict their energies and forces; ``None``: they are trained first."""

    graphs: Sequence[training.Graph]
    networks: Mapping[str, training.Potential] | None


def problem(
    seed: int, degrees: list[int], full: list[int], edges: list[int], memory: int, exact: int, graphs: int, again: bool
) -> dict[str, Any]:
    """Products by degree, one channel with all paths, convolutions, accuracy, powers, mirror images, molecules."""
    generator = torch.Generator().manual_seed(seed)
    cases: dict[str, Any] = {}
    for L in degrees:
        modes = {SAME: "eager"} | ({SCRIPT: "script"} if f"L = {L}" in SCRIPTED else {})
        cases[f"L = {L}"] = _product(L, 64, 32, generator, modes)
    for L in full:
        cases[f"1 channel, L = {L}"] = _product(L, 256, 1, generator, {FULL: "script" if L <= 4 else "eager"})
    for L in edges:
        cases[f"convolution, L = {L}"] = _convolution(L, 512, 32, generator)
    if memory:
        product = _product(memory, 4096, 32, generator, {SAME: "eager"})
        cases[f"memory, product, L = {memory}"] = replace(product, backward=True)
        cases[f"memory, convolution, L = {memory}"] = _convolution(memory, 4096, 32, generator, backward=True)
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        cases[f"accuracy, {name}"] = _accuracy(exact, dtype, generator)
    cases["third power"] = _power(generator)
    cases["mirror images"] = Handedness(torch.randn(400, 3, 3, generator=generator, dtype=torch.float64))
    shipped = {name: load_checkpoint(training.checkpoint(k), training.new(k)) for name, k in POTENTIALS.items()}
    cases["molecules, shipped"] = Potentials(training.batches("test", graphs), shipped)
    if again:
        cases["molecules, trained again"] = Potentials(training.batches("test", graphs), None)
    return cases


def tell(case: Handedness, gaunt: bool) -> float:
    """How often a linear rule on invariants of up to three neighbours tells right from left, on pairs of both.

    The three neighbours are atoms of three kinds. Gaunt powers are taken of seven mixtures of the kinds; of e3nn's
    paths the one that matters is enough, the triple product.
    """
    from e3nn import o3
    from sklearn.linear_model import LogisticRegression

    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    edges = torch.cat([case.points, case.points * mirror])
    if gaunt:
        mixtures = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        density = torch.einsum("ce,nek->nck", mixtures, o3.spherical_harmonics([0, 1, 2], edges, True))
        rows = torch.cat([density[..., l * l : (l + 1) ** 2].flatten(1) for l in range(3)], 1)
        features = torch.cat([gaunt_power(rows, nu, irreps_up_to(2, 7), "7x0e") for nu in (1, 2, 3)], 1)
    else:
        cross = o3.FullTensorProduct("1o", "1o", filter_ir_out=["1e"])
        triple = o3.FullTensorProduct("1e", "1o", filter_ir_out=["0o"])
        a, b, c = edges.float().unbind(1)
        features = triple(cross(a, b), c)
    X, y = features.float().numpy(), torch.linalg.det(edges).sign().numpy()
    half = len(case.points) // 2
    seen = [*range(half), *range(2 * half, 3 * half)]  # the same constellations of both hands
    held = [*range(half, 2 * half), *range(3 * half, 4 * half)]
    spread = X[seen].std(0) + 1e-9
    return float(
        LogisticRegression(C=1e3, max_iter=2000).fit(X[seen] / spread, y[seen]).score(X[held] / spread, y[held])
    )


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


def _convolution(L: int, count: int, channels: int, generator: torch.Generator, backward: bool = False) -> Product:
    """Features and edges with weights for each edge; to e3nn the harmonics and the products of weights are given."""
    irreps = irreps_up_to(L, channels)
    ours = GauntConv(irreps, L, L, path_normalization="none")
    instructions = [(a, b, c, "uvu", True, 4 * torch.pi * coupling(a, b, c)) for a, b, c in ours.paths]
    theirs = _compiled(
        "script" if L <= 4 else "eager", lambda o3: o3.TensorProduct(
            irreps, irreps_up_to(L, 1), irreps, instructions, irrep_normalization="none", path_normalization="none",
            internal_weights=False, shared_weights=False,
        ),
    )  # fmt: skip
    x = torch.randn(count, channels * (L + 1) ** 2, generator=generator)
    edges = torch.randn(count, 3, generator=generator)
    weight = torch.randn(count, ours.weight_numel, generator=generator)
    w1, w2, w3 = weight.view(count, 3, L + 1, channels).unbind(1)
    path_weight = torch.cat([w1[:, a] * w2[:, b] * w3[:, c] for a, b, c in ours.paths], 1)
    r = normalize(edges, dim=1).double()
    table = spherical_harmonics(range(L + 1), torch.acos(r[:, 1]).numpy(), torch.atan2(r[:, 0], r[:, 2]).numpy())
    harmonics = sqrt(4 * torch.pi) * torch.from_numpy(table.T).float().contiguous()
    for t in (weight, path_weight, harmonics):
        t.requires_grad_(backward)
    run = {OURS: lambda x, edges: ours(x, edges, weight), UVU: lambda x, _: theirs(x, harmonics, path_weight)}
    return Product(L, x, edges, run, backward=backward)


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
