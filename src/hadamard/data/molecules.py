"""Small molecules shaken out of their equilibrium, with energies and forces by a semi-empirical quantum method.

The geometries are those of the G2 test set that ship with ASE; the labels were computed once with tblite and lie beside
this file. ``python -m hadamard.data.molecules`` computes them again (``pip install 'hadamard[molecules]'``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hadamard.validation import check_option, check_range

__all__ = ["Molecules", "label", "molecules"]

ELEMENTS = (1, 6, 7, 8, 9)
_COPIES = {"train": range(18), "validation": range(18, 20), "test": range(20, 26)}
_DIFFICULT = {"CH2_s1A1d", "CH2_s3B1d", "O3"}  # more than one electronic configuration matters
_FILE = "molecules.npz"
_ANGSTROM, _ELECTRONVOLT = 1 / 0.529177210903, 27.211386245988  # in bohr; of a hartree (CODATA 2018)


@dataclass(frozen=True, kw_only=True)
class Molecules:
    """Geometries with labels; the atoms of all molecules one after the other.

    Attributes
    ----------
    names
        Names in the G2 set, one a geometry.
    numbers
        Atomic numbers of shape (atoms,).
    positions
        In angstrom, of shape (atoms, 3).
    molecule
        Which geometry an atom belongs to, of shape (atoms,).
    energy
        Total energies in eV, of shape (geometries,).
    forces
        In eV per angstrom, of shape (atoms, 3).
    provenance
        Where the data comes from and under which terms.
    """

    names: tuple[str, ...]
    numbers: Int64[Tensor, " atoms"]
    positions: Float[Tensor, "atoms 3"]
    molecule: Int64[Tensor, " atoms"]
    energy: Float[Tensor, " geometries"]
    forces: Float[Tensor, "atoms 3"]
    provenance: str


def molecules(split: str = "train", *, dtype: torch.dtype = torch.float32) -> Molecules:
    """66 molecules of hydrogen, carbon, nitrogen, oxygen and fluorine, shaken; nothing is downloaded.

    Each molecule stands in every split with other displacements: 18 geometries in ``"train"``, 2 in ``"validation"``, 6
    in ``"test"``. Displacements are Gaussian, with a standard deviation drawn from 0.02 to 0.1 angstrom for each
    geometry. Labels are GFN2-xTB: real quantum chemistry, though not of high accuracy.

    Parameters
    ----------
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    dtype
        Of positions and forces; energies are float64.

    Raises
    ------
    ValueError
        If there is no such split.

    References
    ----------
    L. A. Curtiss, K. Raghavachari, P. C. Redfern, J. A. Pople, "Assessment of Gaussian-2 and density functional
    theories for the computation of enthalpies of formation", J. Chem. Phys. 106, 1997. C. Bannwarth, S. Ehlert,
    S. Grimme, "GFN2-xTB: An Accurate and Broadly Parametrized Self-Consistent Tight-Binding Quantum Chemical Method",
    J. Chem. Theory Comput. 15, 2019.

    Examples
    --------
    >>> shaken = molecules("test")
    >>> len(set(shaken.names)), shaken.energy.shape, shaken.forces.shape
    (66, torch.Size([396]), torch.Size([3018, 3]))
    """
    check_option(split, "split", tuple(_COPIES))
    with np.load(str(files("hadamard.data").joinpath(_FILE))) as table:
        data = {name: table[name] for name in table.files}
    geometry = np.isin(data["copy"], list(_COPIES[split]))
    sizes = data["size"]
    atom = np.repeat(geometry, sizes)
    return Molecules(
        names=tuple(data["name"][geometry].tolist()),
        numbers=torch.from_numpy(data["numbers"][atom].astype(np.int64)),
        positions=torch.from_numpy(data["positions"][atom]).to(dtype),
        molecule=torch.from_numpy(np.repeat(np.arange(geometry.sum()), sizes[geometry])),
        energy=torch.from_numpy(data["energy"][geometry]),
        forces=torch.from_numpy(data["forces"][atom]).to(dtype),
        provenance=str(data["provenance"]),
    )


def label(numbers: Sequence[int] | np.ndarray, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy in eV and forces in eV per angstrom of a neutral closed-shell molecule, by GFN2-xTB.

    Parameters
    ----------
    numbers
        Atomic numbers.
    positions
        In angstrom, of shape (atoms, 3).

    Raises
    ------
    ImportError
        If tblite is missing.
    """
    try:
        from tblite.interface import Calculator
    except ImportError as error:
        raise ImportError("labels need tblite: pip install 'hadamard[molecules]'") from error
    calculator = Calculator("GFN2-xTB", np.asarray(numbers), np.asarray(positions, dtype=np.float64) * _ANGSTROM)
    calculator.set("verbosity", 0)
    result = calculator.singlepoint()
    return result.get("energy") * _ELECTRONVOLT, -result.get("gradient") * _ELECTRONVOLT * _ANGSTROM


def generate(path: str | Path, copies: int = 26, seed: int = 0) -> None:
    """Shake and label the molecules, and write the file that :func:`molecules` reads.

    Parameters
    ----------
    path
        File to write, ``.npz``.
    copies
        Geometries of each molecule.
    seed
        Of the displacements.

    Raises
    ------
    ImportError
        If ase or tblite is missing.
    """
    check_range(copies, "copies", 1, integer=True)
    try:
        from ase.collections import g2
    except ImportError as error:
        raise ImportError("geometries and labels need ase and tblite: pip install 'hadamard[molecules]'") from error
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {key: [] for key in ("name", "copy", "size", "energy", "numbers", "positions", "forces")}
    for name in sorted(g2.names):
        atoms = g2[name]
        allowed = set(atoms.numbers) <= set(ELEMENTS) and atoms.numbers.sum() % 2 == 0 and len(atoms) >= 3
        if not allowed or name in _DIFFICULT:
            continue
        for copy in range(copies):
            shaken = atoms.positions + rng.uniform(0.02, 0.1) * rng.normal(size=atoms.positions.shape)
            shaken = shaken.astype(np.float32)
            energy, forces = label(atoms.numbers, shaken)
            for key, value in zip(rows, (name, copy, len(atoms), energy, atoms.numbers, shaken, forces), strict=True):
                rows[key].append(value)
    np.savez_compressed(
        path,
        name=np.array(rows["name"]),
        copy=np.array(rows["copy"], dtype=np.int16),
        size=np.array(rows["size"], dtype=np.int16),
        energy=np.array(rows["energy"]),
        numbers=np.concatenate(rows["numbers"]).astype(np.uint8),
        positions=np.concatenate(rows["positions"]),
        forces=np.concatenate(rows["forces"]).astype(np.float32),
        provenance=(
            f"Geometries: G2 set (Curtiss et al. 1997) as in ASE {version('ase')} (LGPL-2.1+), displaced at random "
            f"(seed {seed}). Energies and forces: computed by GFN2-xTB with tblite {version('tblite')} (LGPL-3.0+)."
        ),
    )


if __name__ == "__main__":
    generate(str(files("hadamard.data").joinpath(_FILE)))
