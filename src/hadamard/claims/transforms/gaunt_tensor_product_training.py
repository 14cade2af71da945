"""A small equivariant potential for molecules, whose tensor products are ours or e3nn's, and how it is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hadamard.data.molecules import ELEMENTS, Molecules, molecules
from hadamard.training import fit, save_checkpoint
from hadamard.transforms import GauntConv, GauntTensorProduct
from hadamard.validation import check_option

__all__ = ["NETWORKS", "Graph", "Potential", "batches", "checkpoint", "new", "train"]

NETWORKS = ("gaunt", "e3nn")
CHANNELS, LMAX, CUTOFF, BATCH = 8, 3, 4.5, 8
STEPS = {"quick": 150, "full": 1000}


@dataclass(frozen=True)
class Graph:
    """Some molecules as one graph: species, positions, edges within the cutoff, and labels."""

    species: Tensor
    positions: Tensor
    molecule: Tensor
    sender: Tensor
    receiver: Tensor
    energy: Tensor  # without the energies of the free atoms
    forces: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, data: Molecules, chosen: Sequence[int], atomic: Tensor) -> "Graph":
        """The chosen geometries."""
        keep = torch.isin(data.molecule, torch.as_tensor(chosen))
        positions = data.positions[keep]
        species = torch.searchsorted(torch.tensor(ELEMENTS), data.numbers[keep])
        _, molecule, sizes = data.molecule[keep].unique(return_inverse=True, return_counts=True)
        near = torch.cdist(positions, positions) < CUTOFF
        sender, receiver = (near & (molecule[:, None] == molecule)).fill_diagonal_(False).nonzero().T
        order = torch.as_tensor(sorted(chosen))
        energy = data.energy[order] - torch.zeros(len(order), dtype=torch.float64).index_add(
            0, molecule, atomic[species]
        )
        return cls(
            species, positions, molecule, sender, receiver, energy.to(positions.dtype), data.forces[keep], sizes
        )  # fmt: skip


def atomic_energies(data: Molecules) -> Tensor:
    """Energy of an atom of each element, by least squares."""
    species = torch.searchsorted(torch.tensor(ELEMENTS), data.numbers)
    counts = torch.zeros(len(data.names), len(ELEMENTS), dtype=torch.float64)
    counts.index_put_((data.molecule, species), torch.ones(len(species), dtype=torch.float64), accumulate=True)
    return torch.linalg.lstsq(counts, data.energy[:, None]).solution[:, 0]


class Potential(nn.Module):
    """Energies and forces of molecules from two rounds of messages and products.

    Parameters
    ----------
    product
        ``"gaunt"``: :class:`GauntTensorProduct` and :class:`GauntConv`. ``"e3nn"``: ``o3.TensorProduct`` on the same
        paths in modes ``uuu`` and ``uvu``, with a free weight for each path. All else is the same.
    """

    def __init__(self, product: str) -> None:
        super().__init__()
        from e3nn import o3

        self.irreps = o3.Irreps([(CHANNELS, (l, (-1) ** l)) for l in range(LMAX + 1)])
        self.harmonics = o3.SphericalHarmonics(list(range(LMAX + 1)), normalize=True, normalization="component")
        scalars = o3.Irreps(f"{CHANNELS}x0e")
        self.embed = nn.Parameter(torch.randn(len(ELEMENTS), CHANNELS))
        if product == "gaunt":
            self.conv: nn.Module = GauntConv(self.irreps, LMAX, LMAX)
            self.square: nn.Module = GauntTensorProduct(self.irreps, self.irreps, LMAX)
            self.last: nn.Module = GauntTensorProduct(self.irreps, self.irreps, 0)
        else:
            self.conv = _e3nn(self.irreps, self.harmonics.irreps_out, self.irreps, "uvu", False)
            self.square = _e3nn(self.irreps, self.irreps, self.irreps, "uuu", True)
            self.last = _e3nn(self.irreps, self.irreps, scalars, "uuu", True)
        self.directional = product == "gaunt"
        self.radial1 = _mlp(8, 32, (LMAX + 1) * CHANNELS)
        self.radial2 = _mlp(8, 32, int(self.conv.weight_numel))  # type: ignore[arg-type]
        self.mixes = nn.ModuleList(o3.Linear(self.irreps, self.irreps) for _ in range(6))
        self.readout = _mlp(3 * CHANNELS, 32, 1)
        degrees = torch.tensor([l for l in range(LMAX + 1) for _ in range(2 * l + 1)])
        self.register_buffer("degrees", degrees, persistent=False)

    def forward(self, graph: Graph, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """Energies (without the free atoms') in eV, and forces in eV per angstrom."""
        positions = graph.positions.detach().requires_grad_()
        energy = self.energy(graph, positions)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph)
        return energy, -gradient

    def energy(self, graph: Graph, positions: Tensor) -> Tensor:
        """Sum of the atoms' energies."""
        edges = positions[graph.sender] - positions[graph.receiver]
        length = edges.norm(dim=1, keepdim=True)
        n = torch.arange(1, 9, dtype=length.dtype)
        envelope = (1 + (pi * length / CUTOFF).cos()) / 2
        basis = (n * pi * length / CUTOFF).sin() / length
        h, Y = self.embed[graph.species], self.harmonics(edges)
        weights = (self.radial1(basis) * envelope).view(-1, LMAX + 1, CHANNELS) * h[graph.sender, None]
        A = self._gather(self._join(weights[:, self.degrees].mT * Y[:, None]), graph)
        features = self.mixes[0](A) + self.mixes[1](self.square(self.mixes[2](A), self.mixes[3](A)))
        radial = self.radial2(basis)  # scaled so that a path's weight is of order 1, one factor or three
        weights = 1 + radial if self.directional else 3 * radial
        messages = self.conv(features[graph.sender], edges if self.directional else Y, weights) * envelope
        A = self.mixes[4](self._gather(messages, graph))
        last = self.last(A, self.mixes[5](A) + features)
        scalars = torch.cat([features[:, :CHANNELS], A[:, :CHANNELS], last], dim=1)
        atoms = self.readout(scalars)[:, 0]
        return atoms.new_zeros(len(graph.energy)).index_add(0, graph.molecule, atoms)

    @staticmethod
    def _gather(messages: Tensor, graph: Graph) -> Tensor:
        return messages.new_zeros(len(graph.positions), messages.shape[1]).index_add(0, graph.receiver, messages) / 3

    @staticmethod
    def _join(x: Tensor) -> Tensor:
        """From (rows, channels, components) to e3nn's layout."""
        return torch.cat([x[..., l * l : (l + 1) ** 2].flatten(1) for l in range(LMAX + 1)], dim=1)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def _e3nn(in1: Any, in2: Any, out: Any, mode: str, internal: bool) -> nn.Module:
    """e3nn's product on the Gaunt paths."""
    from e3nn import o3

    degrees = [[ir.l for _, ir in irreps] for irreps in (in1, in2, out)]
    instructions = [
        (i, j, k, mode, True)
        for i, a in enumerate(degrees[0])
        for j, b in enumerate(degrees[1])
        for k, c in enumerate(degrees[2])
        if (a + b + c) % 2 == 0 and abs(a - b) <= c <= a + b
    ]
    return o3.TensorProduct(in1, in2, out, instructions, internal_weights=internal, shared_weights=internal)


def new(product: str, seed: int = 0) -> Potential:
    """An untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Potential(product)


def batches(split: str, count: int, size: int = 66) -> list[Graph]:
    """``count`` graphs of ``size`` geometries each, spread over the molecules."""
    data, atomic = molecules(split), atomic_energies(molecules("train"))
    copies = len(data.names) // 66
    order = [m * copies + k for k in range(copies) for m in range(66)]
    return [Graph.of(data, order[i * size : (i + 1) * size], atomic) for i in range(count)]


def checkpoint(product: str) -> str:
    """Name of the shipped weights."""
    return f"gaunt_tensor_product_potential_{product}"


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, *, progress: bool = True
) -> list[Path]:
    """Train both networks by the same recipe and budget, and save their weights.

    Parameters
    ----------
    size
        ``"full"``: as shipped, about six minutes on one core; ``"quick"``: a seventh of it.
    out
        Folder; ``None``: that of the shipped weights.
    resume
        Go on with an interrupted training instead of starting again.
    progress
        Show a progress bar for each network.
    """
    check_option(size, "size", tuple(STEPS))
    steps = STEPS[size]
    folder = Path(out) if out is not None else Path(str(files("hadamard.checkpoints")))
    paths = []
    for product in NETWORKS:
        state = folder / f".{checkpoint(product)}-{size}.state"
        if not resume:
            state.unlink(missing_ok=True)
        network = fitted(product, steps, state=state, progress=product if progress else "")
        account = {
            "command": f"hadamard train gaunt_tensor_product --size {size}",
            "data": molecules("train").provenance,
            "seed": "0",
            "budget": f"{steps} steps of {BATCH} geometries, Adam, one cycle up to 5e-3",
        }
        paths.append(save_checkpoint(folder / f"{checkpoint(product)}.safetensors", network, account))
        state.unlink(missing_ok=True)
    return paths


def fitted(product: str, steps: int, *, state: Path | None = None, progress: str = "") -> Potential:
    """A network after so many steps on energies (per atom) and forces."""
    network = new(product)
    data = molecules("train")
    atomic = atomic_energies(data)

    def draw(generator: torch.Generator) -> Graph:
        return Graph.of(data, torch.randperm(len(data.names), generator=generator)[:BATCH].tolist(), atomic)

    def loss(network: nn.Module, graph: Graph, _: int) -> Tensor:
        energy, forces = network(graph, create_graph=True)
        per_atom = (energy - graph.energy) / graph.sizes
        return 20 * per_atom.square().mean() + (forces - graph.forces).square().mean()

    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps + 1, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    fit(
        network, loss, draw, steps=steps, optimizer=optimizer, scheduler=scheduler, generator=generator, state=state,
        save_every=50, progress=progress,
    )  # fmt: skip
    return network
