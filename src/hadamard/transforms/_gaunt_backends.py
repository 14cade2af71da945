"""The product of two functions on the sphere, three ways: values on a grid, Fourier series, sum over paths.

Operands and results are rows in e3nn's layout: degree after degree, each (channels, 2 l + 1).
"""

from collections.abc import Callable, Mapping, Sequence
from math import pi
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hadamard.spectral import convolve
from hadamard.transforms import _spherical as sphere

__all__ = ["ORDERS", "Dense", "Fourier", "Grid", "Sphere", "in_chunks", "orders", "sort", "unsort", "widened"]

_CHUNK = 1 << 19  # bytes of one operand's values that are worked on at once, so that they stay in the cache

ORDERS = ("sort_even", "sort_odd", "unsort")

Degrees = Sequence[int]
Scale = Mapping[int, float]  # what multiplies each degree


class Tables(nn.Module):
    """Constant tables as buffers: moved and converted with the module, always from the exact ones, never saved."""

    def __init__(self, tables: Mapping[str, np.ndarray], device: Any, dtype: Any) -> None:
        super().__init__()
        self._exact = {name: torch.from_numpy(np.ascontiguousarray(table)) for name, table in tables.items()}
        self._sample = next(name for name, table in self._exact.items() if table.is_floating_point())
        for name, table in self._exact.items():
            wanted = dtype if table.is_floating_point() else None
            self.register_buffer(name, table.to(device=device, dtype=wanted), persistent=False)

    @property
    def sample(self) -> Tensor:
        """Some table of numbers, for its device and dtype."""
        return self[self._sample]

    def __getitem__(self, name: str) -> Tensor:
        """A table."""
        return cast(Tensor, self._buffers[name])

    def _apply(self, fn: Any, recurse: bool = True) -> "Tables":
        """Convert; float64 after float32 loses nothing."""
        super()._apply(fn, recurse)
        for name, table in self._exact.items():
            if not self[name].is_meta:
                self.register_buffer(name, table.to(self[name]), persistent=False)
        return self


class Grid(Tables):
    """Values at one point of each opposite pair, where even degrees (e) and odd degrees (o) are kept apart.

    At the point the function is e + o, at its opposite e - o: the product's even part is e e' + o o', its odd part
    e o' + o e'.
    """

    def __init__(
        self, in1: Degrees, in2: Degrees, out: Degrees, multiplicities: Sequence[int], scales: Sequence[Scale],
        device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        grid = sphere.half_sphere(max(in1) + max(in2) + max(out))
        tables = {"points": grid.points.T}
        for name, degrees, mul, scale in zip(("first", "second", "out"), (in1, in2, out), multiplicities, scales):
            tables |= {f"{name}_{key}": order for key, order in orders(degrees, mul, widen=name == "out").items()}
            for key, parity in (("even", 0), ("odd", 1)):
                table = grid.table(degrees, scale, parity)
                values = widened(grid.inverse(degrees, scale, parity)) if name == "out" else table
                tables[f"{name}_{key}_values"] = values
                components = values.shape[name == "out"]
                tables[f"{name}_{key}_weights"] = which_weights(degrees, parity, multiplicities[2], components)
        super().__init__(tables, device, dtype)
        self.multiplicities = dict(zip(("first", "second", "out"), multiplicities))
        self.width = grid.weight.size

    def forward(self, x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Multiply the functions; ``weights`` of inputs and output, (rows, degrees, channels) each, or none."""
        w1, w2, w3 = weights or (None, None, None)
        return self.multiply(x, self.values(y, "second", w2), w1, w3)

    def values(self, x: Tensor, name: str, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Even and odd part at the points, (rows, channels, points)."""
        even, odd = sort(x, *(self[f"{name}_{key}"] for key in ORDERS))
        even, odd = (part.unflatten(-1, (self.multiplicities[name], -1)) for part in (even, odd))
        if weight is not None:
            even, odd = even * self._spread(weight, f"{name}_even"), odd * self._spread(weight, f"{name}_odd")
        return even @ self[f"{name}_even_values"], odd @ self[f"{name}_odd_values"]

    def multiply(self, x: Tensor, values: tuple[Tensor, Tensor], w1: Tensor | None, w3: Tensor | None) -> Tensor:
        """Multiply a function by one that is given by its values."""
        (even1, odd1), (even2, odd2) = self.values(x, "first", w1), values
        even = torch.addcmul(even1 * even2, odd1, odd2) @ self["out_even_values"]
        odd = torch.addcmul(even1 * odd2, odd1, even2) @ self["out_odd_values"]
        if w3 is not None:
            even, odd = even * self._spread(w3, "out_even"), odd * self._spread(w3, "out_odd")
        return unsort(even.flatten(-2), odd.flatten(-2), *(self[f"out_{key}"] for key in ORDERS))

    def _spread(self, weight: Tensor, name: str) -> Tensor:
        """Weights (rows, degrees, channels) as those of the components, (rows, channels, K)."""
        return weight.flatten(1).index_select(1, self[f"{name}_weights"]).unflatten(1, (self.multiplicities["out"], -1))


class Sphere(Tables):
    """Values at both points of each pair, for one channel: more operations than :class:`Grid`, but few calls."""

    def __init__(
        self, in1: Degrees, in2: Degrees, out: Degrees, multiplicities: Sequence[int], scales: Sequence[Scale],
        device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        grid = sphere.half_sphere(max(in1) + max(in2) + max(out))
        tables = {}
        for name, degrees, scale in zip(("first", "second", "out"), (in1, in2, out), scales):
            opposite = {l: (-1) ** l * scale[l] for l in degrees}
            if name == "out":
                values = [grid.inverse(degrees, scale) / 2, grid.inverse(degrees, opposite) / 2]
            else:
                values = [grid.table(degrees, scale), grid.table(degrees, opposite)]
            tables[name] = np.concatenate(values, axis=0 if name == "out" else 1)
            tables[f"{name}_degrees"] = one_hot(degrees)
        super().__init__(tables, device, dtype)
        self.width = 2 * grid.weight.size

    def forward(self, x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Multiply the functions; ``weights`` as for :class:`Grid`."""
        if not weights:
            return ((x @ self["first"]) * (y @ self["second"])) @ self["out"]
        u, v, w = (
            weight.squeeze(-1) @ self[f"{name}_degrees"] for name, weight in zip(("first", "second", "out"), weights)
        )
        return ((x * u @ self["first"]) * (y * v @ self["second"])) @ self["out"] * w


def sort(x: Tensor, even: Tensor, odd: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of even and of odd degrees."""
    if x.requires_grad and torch.is_grad_enabled():
        return Sort.apply(x, even, odd, back)
    return x.index_select(1, even), x.index_select(1, odd)


def unsort(x: Tensor, y: Tensor, even: Tensor, odd: Tensor, back: Tensor) -> Tensor:
    """Undo :func:`sort`."""
    if (x.requires_grad or y.requires_grad) and torch.is_grad_enabled():
        return Unsort.apply(x, y, even, odd, back)
    return torch.cat([x, y], dim=1).index_select(1, back)


class Sort(torch.autograd.Function):
    """:func:`sort` whose gradient is a permutation too, which that of indexing is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, even: Tensor, odd: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """Pick the columns."""
        return x.index_select(1, even), x.index_select(1, odd)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Keep the orders."""
        ctx.orders = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Put them back."""
        return Unsort.apply(*gradients, *ctx.orders), None, None, None


class Unsort(torch.autograd.Function):
    """:func:`unsort` with :class:`Sort` as its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, even: Tensor, odd: Tensor, back: Tensor) -> Tensor:
        """Put the columns back."""
        return torch.cat([x, y], dim=1).index_select(1, back)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Keep the orders."""
        ctx.orders = inputs[2:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Pick them again."""
        return *Sort.apply(gradients[0], *ctx.orders), None, None, None


def orders(degrees: Degrees, channels: int, widen: bool = False) -> dict[str, np.ndarray]:
    """Where the (channels, K) components of even and odd degrees stand in e3nn's layout, and the way back.

    With ``widen``, K is that of :func:`widened` tables; what stands in the columns added is of no account.
    """
    columns: dict[int, list[np.ndarray]] = {0: [], 1: []}
    start = 0
    for l in degrees:
        width = channels * (2 * l + 1)
        columns[l % 2].append(np.arange(start, start + width).reshape(channels, -1))
        start += width
    parts = [np.hstack(c) if c else np.zeros((channels, 0), dtype=np.int64) for c in columns.values()]
    wide = [np.pad(c, ((0, 0), (0, _added(c.shape[1]) if widen else 0)), mode="edge") if c.size else c for c in parts]
    back, start = np.zeros(start, dtype=np.int64), 0
    for part, place in zip(parts, wide):
        back[part] = start + np.arange(place.size).reshape(place.shape)[:, : part.shape[1]]
        start += place.size
    return {"sort_even": wide[0].ravel(), "sort_odd": wide[1].ravel(), "unsort": back}


def widened(table: np.ndarray) -> np.ndarray:
    """With columns of zeros up to a number that matrix products are fast for; some take three times as long for 15."""
    return np.pad(table, ((0, 0), (0, _added(table.shape[1]))))


def _added(columns: int) -> int:
    """How many columns make it twelve or a multiple of eight."""
    return 12 - columns if 0 < columns <= 12 else -columns % 8


def one_hot(degrees: Degrees) -> np.ndarray:
    """``[j, k] = 1`` where component k belongs to degree number j."""
    return np.eye(len(degrees))[:, [j for j, l in enumerate(degrees) for _ in range(2 * l + 1)]]


def which_weights(degrees: Degrees, parity: int, channels: int, components: int) -> np.ndarray:
    """Where the weights of the (channels, K) components of one parity stand among (degrees, channels) weights."""
    chosen = [j for j, l in enumerate(degrees) if l % 2 == parity for _ in range(2 * l + 1)]
    chosen += [0] * (components - len(chosen))
    return (channels * np.array(chosen, dtype=np.int64) + np.arange(channels)[:, None]).ravel()


class Fourier(Tables):
    """The paper's route: on the torus of both angles the functions are Fourier series, which FFTs convolve.

    Order m of a harmonic has frequencies v = m and -m only in the second angle, so conversions are O(L^3).
    """

    def __init__(
        self, in1: Degrees, in2: Degrees, out: Degrees, multiplicities: Sequence[int], scales: Sequence[Scale],
        device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        self.in1, self.in2, self.out, self.multiplicities = in1, in2, out, multiplicities
        band = max(in1) + max(in2)
        tables = {}
        for name, degrees, scale in zip(("first", "second"), (in1, in2), scales):
            for m in range(max(degrees) + 1):
                tables[f"{name}_{m}"] = sphere.to_fourier(degrees, scale, m)
        for m in range(max(out) + 1):
            tables[f"out_{m}"] = sphere.from_fourier(out, scales[2], m, band)
        pairs = {name: np.stack([t.real, t.imag], axis=-1) for name, t in tables.items()}  # .to(float64) keeps these
        super().__init__(pairs, device, dtype)
        self.width = 2 * (2 * band + 1) ** 2

    def forward(self, x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Multiply the functions; ``weights`` as for :class:`Grid`."""
        w1, w2, w3 = weights or (None, None, None)
        first = self._series(split(x, self.in1, self.multiplicities[0], w1), "first")
        second = self._series(split(y, self.in2, self.multiplicities[1], w2), "second")
        Z = convolve(first, second, dims=(-2, -1), mode="full")
        centre = Z.shape[-1] // 2
        columns: dict[tuple[int, int], Tensor] = {}
        for m in range(max(self.out) + 1):  # the integrals of exp(i v phi) cos(m phi) and of exp(i v phi) sin(m phi)
            table = torch.view_as_complex(self[f"out_{m}"])
            plus, minus = Z[..., centre + m] @ table, Z[..., centre - m] @ table
            for i, l in enumerate(l for l in self.out if l >= m):
                columns[l, -m] = pi * (minus - plus)[..., i].imag
                columns[l, m] = pi * (plus + minus)[..., i].real
        return join([torch.stack([columns[l, m] for m in range(-l, l + 1)], -1) for l in self.out], w3)

    def _series(self, parts: list[Tensor], name: str) -> Tensor:
        """Fourier coefficients [u, v], both from -L to L."""
        top = max(p.shape[-1] for p in parts) // 2
        columns: dict[int, Tensor] = {}
        for m in range(top + 1):
            table = torch.view_as_complex(self[f"{name}_{m}"])
            held = [p for p in parts if p.shape[-1] > 2 * m]
            cosines, sines = (
                torch.stack([p[..., p.shape[-1] // 2 + s * m] for p in held], -1).to(table.dtype) @ table
                for s in (1, -1)
            )
            columns[m] = (cosines - 1j * sines) / 2 if m else cosines
            columns[-m] = (cosines + 1j * sines) / 2 if m else cosines
        return torch.stack([columns[v] for v in range(-top, top + 1)], -1)


class Dense(Tables):
    """The Gaunt integrals, path by path: the definition, and the only route with a weight for each path."""

    def __init__(
        self, paths: Sequence[tuple[int, int, int]], factors: Sequence[float], in1: Degrees, in2: Degrees,
        out: Degrees, multiplicities: Sequence[int], device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        self.paths, self.in1, self.in2, self.out, self.multiplicities = paths, in1, in2, out, multiplicities
        tables = {f"path_{i}": factor * sphere.gaunt(*path) for i, (path, factor) in enumerate(zip(paths, factors))}
        super().__init__(tables, device, dtype)
        self.width = max((2 * a + 1) * (2 * b + 1) for a, b, _ in paths)

    def forward(self, x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Multiply the functions; ``weights`` as for :class:`Grid`, or one tensor (rows, paths, channels)."""
        w1, w2, w3 = weights if len(weights) == 3 else (None, None, None)
        first = dict(zip(self.in1, split(x, self.in1, self.multiplicities[0], w1)))
        second = dict(zip(self.in2, split(y, self.in2, self.multiplicities[1], w2)))
        total: dict[int, Tensor] = {}
        for i, (a, b, c) in enumerate(self.paths):
            pairs = (first[a].unsqueeze(-1) * second[b].unsqueeze(-2)).flatten(-2)
            z = pairs @ self[f"path_{i}"].flatten(0, 1)
            z = z * weights[0][:, i, :, None] if len(weights) == 1 else z
            total[c] = total[c] + z if c in total else z
        return join([total[c] for c in self.out], w3)


def split(x: Tensor, degrees: Degrees, channels: int, weight: Tensor | None) -> list[Tensor]:
    """Rows in e3nn's layout as one tensor (rows, channels, 2 l + 1) a degree, weighted."""
    pieces = x.split([channels * (2 * l + 1) for l in degrees], dim=-1)
    return _weighted([piece.unflatten(-1, (channels, -1)) for piece in pieces], weight)


def join(parts: Sequence[Tensor], weight: Tensor | None) -> Tensor:
    """Undo :func:`split`, weighting before."""
    return torch.cat([part.flatten(-2) for part in _weighted(parts, weight)], dim=-1)


def _weighted(parts: Sequence[Tensor], weight: Tensor | None) -> list[Tensor]:
    return list(parts) if weight is None else [p * w[..., None] for p, w in zip(parts, weight.unbind(1))]


def in_chunks(f: Callable[..., Tensor], rows: Sequence[Tensor], numbers: int) -> Tensor:
    """``f(*rows)`` in pieces that fit into the cache; ``numbers`` a row; tensors with one row serve every piece."""
    count = max(len(t) for t in rows)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in rows)
    size = 8 * _CHUNK if learns else _CHUNK  # a piece's backward pass costs calls of its own
    step = max(1, size // (numbers * rows[0].element_size()))
    if count <= step or not rows[0].is_cpu or torch.compiler.is_compiling():
        return f(*rows)
    pieces = [t.split(step) if len(t) == count else [t] * -(-count // step) for t in rows]
    return torch.cat([f(*piece) for piece in zip(*pieces)])
