"""Gaunt tensor products: equivariant products of irreps as products of functions on the sphere.

Coefficients of spherical harmonics are a function on the sphere. The pointwise product of two functions is bilinear
and equivariant, and its coefficients are ``z[l3 m3] = sum G(l1 m1, l2 m2, l3 m3) x[l1 m1] y[l2 m2]`` with the Gaunt
integrals ``G = int Y_l1m1 Y_l2m2 Y_l3m3``: Clebsch-Gordan coefficients, each path (l1, l2, l3) times one number. But a
product of functions costs no sum over paths: evaluate, multiply, expand again, O(L^4) as two matrix products where the
paths take O(L^6).

``G`` vanishes where l1 + l2 + l3 is odd. So there are no antisymmetric paths (no cross product), no pseudo-vectors and
no pseudo-scalars: a network whose products are all of this kind cannot tell a molecule from its mirror image.

References
----------
S. Luo, T. Chen, A. S. Krishnapriyan, "Enabling Efficient Equivariant Operations in the Fourier Basis via Gaunt Tensor
Products", ICLR 2024, arXiv:2401.10216.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.transforms._gaunt_backends import (
    ORDERS,
    Dense,
    Fourier,
    Grid,
    Sphere,
    in_chunks,
    orders,
    sort,
    unsort,
    widened,
)
from hadamard.transforms._spherical import (
    check_floating,
    choose_outputs,
    conform,
    coupling,
    half_sphere,
    parse_irreps,
    reachable,
    unit,
)
from hadamard.validation import check_option, check_range

__all__ = ["GauntTensorProduct", "gaunt_power"]


class GauntTensorProduct(nn.Module):
    """Multiply two sets of irreps channel by channel; takes the place of e3nn's ``o3.TensorProduct`` in mode ``uuu``.

    Parameters
    ----------
    irreps_in1, irreps_in2
        Irreps as e3nn writes them, such as ``"32x0e + 32x1o + 32x2e"``: each degree at most once, in any order, with
        parity (-1)^l and the same multiplicity everywhere; one operand may have multiplicity 1, which multiplies all
        channels of the other.
    irreps_out
        Irreps to keep, the largest degree to keep, or ``None`` for all that arise.
    normalization
        Which spherical harmonics the irreps are coefficients of: e3nn's ``"component"``, ``"norm"`` or ``"integral"``.
        In ``"component"`` the function 1 is ``(1, 0, 0, ...)``.
    path_normalization
        ``"element"``: components of the output have the variance that e3nn gives them where those of the inputs
        are independent and have it. ``"none"``: exactly the product of the functions.
    weights
        ``"degree"``: one weight for each channel and each degree of both inputs and the output, 1 at first: path
        (l1, l2, l3) gets ``w1[l1] w2[l2] w3[l3]``. ``"path"``: a weight for each path and channel, in the order of l1,
        l2, l3. This takes the sum over paths, the ``"dense"`` backend; with ``path_normalization="element"`` it is
        ``o3.TensorProduct`` on the Gaunt paths, weight by weight. ``None``: no weights.
    internal_weights
        Whether the weights are parameters of the module; otherwise they are given to every call.
    backend
        ``"grid"``: values on half a sphere, two matrix products. ``"fft"``: the paper's route, two-dimensional Fourier
        series and their convolution by FFT. ``"dense"``: the Gaunt integrals, path by path. ``"auto"``: the grid, which
        is the fastest at every degree, and ``"dense"`` for ``weights="path"``. All compute the same.
    device, dtype
        Of the tables and weights, which inputs must share; float32 or float64. Under autocast inputs are converted.

    Attributes
    ----------
    irreps_in1, irreps_in2, irreps_out
        As ``e3nn.o3.Irreps``.
    paths
        The triples (l1, l2, l3) that take part.
    weight_numel
        Number of weights.

    Raises
    ------
    ValueError
        If an irrep has the wrong parity, occurs twice, or an output cannot arise; if multiplicities differ.
    ImportError
        If e3nn is missing.

    Notes
    -----
    The paper uses complex Fourier coefficients; on a grid of Gauss-Legendre nodes times equal angles the same product
    is real matrix products. Points come in opposite pairs, at which even and odd degrees differ by a sign: even and
    odd parts at one point of each pair are enough, which halves the work.

    References
    ----------
    Luo, Chen, Krishnapriyan, ICLR 2024, arXiv:2401.10216.

    Examples
    --------
    >>> product = GauntTensorProduct("8x0e + 8x1o", "8x0e + 8x1o", 1)
    >>> product.irreps_out, product.paths
    (8x0e+8x1o, ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)))
    >>> product(torch.randn(5, 32), torch.randn(5, 32)).shape
    torch.Size([5, 32])
    """

    weight: Tensor | None
    _operand = "y"
    _whole = True  # whether one channel is worth a grid of its own

    def __init__(
        self,
        irreps_in1: Any,
        irreps_in2: Any,
        irreps_out: Any = None,
        *,
        normalization: str = "component",
        path_normalization: str = "element",
        weights: str | None = "degree",
        internal_weights: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option(normalization, "normalization", ("component", "norm", "integral"))
        check_option(path_normalization, "path_normalization", ("element", "none"))
        check_option(weights, "weights", ("degree", "path", None))
        check_option(backend, "backend", ("auto", "grid", "fft", "dense"))
        if weights == "path" and backend not in ("auto", "dense"):
            raise ValueError(f"backend must be 'dense' or 'auto' for weights='path', got {backend!r}")
        self.irreps_in1, self._mul1, self._in1 = parse_irreps(irreps_in1, "irreps_in1")
        self.irreps_in2, self._mul2, self._in2 = parse_irreps(irreps_in2, "irreps_in2")
        if self._mul1 != self._mul2 and 1 not in (self._mul1, self._mul2):
            raise ValueError(
                "irreps_in1 and irreps_in2 must have the same multiplicity, or one of them 1, "
                f"got {self._mul1} and {self._mul2}"
            )
        self.channels = max(self._mul1, self._mul2)
        self.irreps_out, self._out = choose_outputs(irreps_out, reachable(self._in1, self._in2), self.channels)
        self.paths = tuple((a, b, c) for a in self._in1 for b in self._in2 for c in self._out if coupling(a, b, c))
        self.normalization = normalization
        self.path_normalization = path_normalization
        self.weights = weights
        self._dims = (self.irreps_in1.dim, self.irreps_in2.dim, self.irreps_out.dim)
        sets = {"degree": len(self._in1) + len(self._in2) + len(self._out), "path": len(self.paths), None: 0}
        self.weight_numel = sets[weights] * self.channels
        dtype = torch.get_default_dtype() if dtype is None else dtype
        internal = torch.ones(self.weight_numel, device=device, dtype=dtype) if internal_weights else torch.empty(0)
        self.register_parameter("weight", nn.Parameter(internal) if internal.numel() else None)
        self.backend = ("dense" if weights == "path" else "grid") if backend == "auto" else backend
        degrees, muls = (self._in1, self._in2, self._out), (self._mul1, self._mul2, self.channels)
        if self.backend == "dense":
            factors = self._path_factors()
            self._product: Grid | Sphere | Fourier | Dense = Dense(self.paths, factors, *degrees, muls, device, dtype)
        else:
            grid: type[Grid] | type[Sphere] = Sphere if self._whole and self.channels == 1 else Grid
            chosen = grid if self.backend == "grid" else Fourier
            self._product = chosen(*degrees, muls, self._scales(), device, dtype)

    def forward(
        self,
        x: Float[Tensor, "*#batch in1"],
        y: Float[Tensor, "*#batch in2"],
        weight: Float[Tensor, "*#batch numel"] | None = None,
    ) -> Float[Tensor, "*batch out"]:
        """Multiply.

        Parameters
        ----------
        x, y
            Irreps in e3nn's layout, (..., irreps.dim); leading dimensions broadcast.
        weight
            Weights of shape (weight_numel,) for all or (..., weight_numel) for each, instead of the module's own:
            those of the degrees of the first input, of the second and of the output, or those of the paths; each
            ``channels`` numbers.

        Returns
        -------
        Tensor
            Irreps ``irreps_out``.

        Raises
        ------
        ValueError
            If a last dimension is another one, the device or dtype is not the module's, or weights are missing.
        TypeError
            If an input is not a floating-point tensor.
        """
        table = self._product.sample
        weight = self.weight if weight is None else weight
        if weight is None and self.weight_numel:
            raise ValueError(f"weight must be given where internal_weights=False: {self.weight_numel} numbers")
        x, y = conform(x, "x", self._dims[0], table), conform(y, self._operand, self._dims[1], table)
        w = table.new_zeros(0) if weight is None else conform(weight, "weight", self.weight_numel, table)
        leading = {t.shape[:-1] for t in (x, y, w) if t.ndim > 1} or {x.shape[:-1]}
        batch = leading.pop() if len(leading) == 1 else torch.broadcast_shapes(*leading)
        if 0 in batch:
            return (x.sum() + y.sum()) * table.new_zeros(*batch, self._dims[2])
        rows = [_rows(t, batch) for t in (x, y, w)]
        with _unconverted(x.device.type):
            z = in_chunks(self._multiply, rows, self.channels * self._product.width)
        return z if z.shape[:-1] == batch else z.reshape(*batch, -1)

    def _multiply(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return self._product(x, y, self._weights(w))

    def _weights(self, w: Tensor) -> tuple[Tensor, ...]:
        """Rows of weights as those of both inputs and of the output, or as those of the paths."""
        if self.weights is None:
            return ()
        sets = w.view(len(w), -1, self.channels)
        return (sets,) if self.weights == "path" else sets.split([len(self._in1), len(self._in2), len(self._out)], 1)

    def _scales(self) -> tuple[Mapping[int, float], Mapping[int, float], Mapping[int, float]]:
        """What multiplies each degree of both inputs and of the output around the product of orthonormal harmonics."""
        degrees = (*self._in1, *self._in2, *self._out)
        c, v = unit(self.normalization, degrees), self._variance(degrees)
        out = {l: 1 / c[l] for l in self._out}
        if self.path_normalization == "element":
            for l in self._out:
                terms = [(c[a] * c[b]) ** 2 * v[a] * v[b] * coupling(a, b, l) for a in self._in1 for b in self._in2]
                out[l] = sqrt(v[l] * (2 * l + 1) / sum(terms))
        return c, c, out

    def _path_factors(self) -> list[float]:
        """What multiplies the Gaunt integrals of each path; e3nn's convention where each has a weight of its own."""
        first, second, out = self._scales()
        if self.weights != "path" or self.path_normalization == "none":
            return [first[a] * second[b] * out[c] for a, b, c in self.paths]
        v, count = self._variance((*self._in1, *self._in2, *self._out)), Counter(c for _, _, c in self.paths)
        return [sqrt(v[c] * (2 * c + 1) / (v[a] * v[b] * count[c] * coupling(a, b, c))) for a, b, c in self.paths]

    def _variance(self, degrees: tuple[int, ...]) -> dict[int, float]:
        """The variance of a component that e3nn expects."""
        return {l: 1 / (2 * l + 1) if self.normalization == "norm" else 1.0 for l in degrees}

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"{self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out} | {len(self.paths)} paths | "
            f"{self.weight_numel} weights | {self.backend}"
        )


def gaunt_power(
    x: Float[Tensor, "*batch dim_in"], nu: int, irreps_in: Any, irreps_out: Any = None, *,
    normalization: str = "component",
) -> Float[Tensor, "*batch dim_out"]:  # fmt: skip
    """Raise functions on the sphere to a power, channel by channel: the many-body features of order ``nu``.

    Where ``x`` sums spherical harmonics of the directions to an atom's neighbours, the powers are the atom's
    correlations of order ``nu`` with them. However many factors, ``x`` is evaluated once and the result is expanded
    once; nothing between is truncated.

    Parameters
    ----------
    x
        Irreps in e3nn's layout, (..., irreps_in.dim); float32 or float64.
    nu
        The power, at least 1.
    irreps_in, irreps_out, normalization
        As for :class:`GauntTensorProduct`.

    Returns
    -------
    Tensor
        Exactly the coefficients of the power, without weights or normalisation of paths.

    Raises
    ------
    ValueError
        If ``nu`` is less than 1, an irrep has the wrong parity or cannot arise, or a shape does not fit.
    ImportError
        If e3nn is missing.

    References
    ----------
    Luo, Chen, Krishnapriyan, ICLR 2024, arXiv:2401.10216.

    Examples
    --------
    >>> density = torch.randn(10, 36)
    >>> gaunt_power(density, 3, "4x0e + 4x1o + 4x2e", "4x0e").shape
    torch.Size([10, 4])
    """
    check_floating(x, "x")
    channels, dim, tables = _power_plan(nu, irreps_in, irreps_out, normalization, x.device, x.dtype)
    x = conform(x, "x", dim, tables["in_even"])
    power = partial(_power, nu=nu, channels=channels, tables=tables)
    with _unconverted(x.device.type):
        z = in_chunks(power, [x.reshape(-1, dim)], channels * tables["in_even"].shape[1])
    return z.reshape(*x.shape[:-1], z.shape[-1])


def _power(x: Tensor, nu: int, channels: int, tables: Mapping[str, Tensor]) -> Tensor:
    """Raise the values at both points of each opposite pair."""
    orders_in, orders_out = ([tables[f"{key}_{name}"] for name in ORDERS] for key in ("in", "out"))
    even, odd = (part.unflatten(-1, (channels, -1)) for part in sort(x, *orders_in))
    even, odd = even @ tables["in_even"], odd @ tables["in_odd"]
    here, opposite = (even + odd).pow(nu), (even - odd).pow(nu)
    even, odd = (here + opposite) @ tables["out_even"], (here - opposite) @ tables["out_odd"]
    return unsort(even.flatten(-2), odd.flatten(-2), *orders_out)


def _unconverted(device: str) -> AbstractContextManager:
    """Where autocast converts nothing; entering its own context takes as long as a small product."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _rows(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    """As a matrix: a row for each element of the batch, or one row for all."""
    if x.ndim == 1:
        return x[None]
    x = x if x.shape[:-1] == batch else x.expand(*batch, -1)
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _power_plan(
    nu: int, irreps_in: Any, irreps_out: Any, normalization: str, device: torch.device, dtype: torch.dtype
) -> tuple[int, int, Mapping[str, Tensor]]:
    """Channels, size of a row, and the tables."""
    check_range(nu, "nu", 1, integer=True)
    check_option(normalization, "normalization", ("component", "norm", "integral"))
    irreps, channels, degrees = parse_irreps(irreps_in, "irreps_in")
    reach = degrees
    for _ in range(nu - 1):
        reach = reachable(reach, degrees)
    _, out = choose_outputs(irreps_out, reach, channels)
    return channels, irreps.dim, _power_tables(nu, channels, degrees, out, normalization, device, dtype)


# What torch.compiler.assume_constant_result does, which loads all of dynamo first: seconds at every import.
_power_plan._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=64)
def _power_tables(
    nu: int, channels: int, degrees: tuple[int, ...], out: tuple[int, ...], normalization: str, device: torch.device,
    dtype: torch.dtype,
) -> Mapping[str, Tensor]:  # fmt: skip
    """What evaluates even and odd degrees at one point of each opposite pair, and what expands even and odd values."""
    grid = half_sphere(nu * max(degrees) + max(out))
    c = unit(normalization, (*degrees, *out))
    half = {l: 0.5 / c[l] for l in out}  # the even part is half the sum of both opposite values
    tables = {}
    for key, parity in (("even", 0), ("odd", 1)):
        tables[f"in_{key}"] = torch.from_numpy(grid.table(degrees, c, parity)).to(device, dtype)
        tables[f"out_{key}"] = torch.from_numpy(widened(grid.inverse(out, half, parity))).to(device, dtype)
    for key, held in (("in", degrees), ("out", out)):
        order = orders(held, channels, widen=key == "out")
        tables |= {f"{key}_{name}": torch.from_numpy(o).to(device) for name, o in order.items()}
    return tables
