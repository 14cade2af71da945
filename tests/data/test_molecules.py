import numpy as np
import pytest
import torch

from hadamard.data.molecules import ELEMENTS, generate, label, molecules


def test_splits_hold_the_same_molecules_otherwise_displaced():
    splits = {name: molecules(name) for name in ("train", "validation", "test")}
    assert [len(m.names) for m in splits.values()] == [66 * 18, 66 * 2, 66 * 6]
    for m in splits.values():
        assert len(set(m.names)) == 66
        assert set(m.numbers.tolist()) == set(ELEMENTS)
        assert torch.equal(m.molecule.unique(), torch.arange(len(m.names)))
        assert m.positions.shape == m.forces.shape == (len(m.numbers), 3)
        assert "GFN2-xTB" in m.provenance
    train, test = splits["train"], splits["test"]
    first = [m.positions[m.molecule == m.names.index("CH4")] for m in (train, test)]
    assert 0 < (first[0] - first[1]).abs().max() < 1
    assert molecules("test", dtype=torch.float64).forces.dtype == torch.float64


def test_labels_are_consistent():
    """No net force, no torque, and heavier molecules lie deeper."""
    m = molecules("validation", dtype=torch.float64)
    totals = torch.zeros(len(m.names), 3, dtype=torch.float64)
    assert totals.index_add(0, m.molecule, m.forces).abs().max() < 1e-3
    assert totals.index_add(0, m.molecule, torch.linalg.cross(m.positions, m.forces)).abs().max() < 1e-3
    electrons = torch.zeros(len(m.names), dtype=torch.float64).index_add(0, m.molecule, m.numbers.double())
    assert np.corrcoef(electrons, m.energy)[0, 1] < -0.9


def test_stored_labels_are_tblites():
    pytest.importorskip("tblite.interface")
    m = molecules("test")
    for i in (m.names.index("H2O"), m.names.index("CH3OH")):
        atoms = m.molecule == i
        energy, forces = label(m.numbers[atoms].numpy(), m.positions[atoms].numpy())
        assert energy == pytest.approx(m.energy[i].item(), abs=1e-4)
        np.testing.assert_allclose(forces, m.forces[atoms].numpy(), atol=1e-3)


def test_forces_are_the_slope_of_the_energy():
    pytest.importorskip("tblite.interface")
    r = np.array([[0.0, 0.0, 0.1], [0.0, 0.77, -0.5], [0.0, -0.7, -0.45]])
    h = 1e-3 * np.eye(3)[2]
    move = np.array([h, 0 * h, 0 * h])
    (up, _), (down, _), (_, forces) = label([8, 1, 1], r + move), label([8, 1, 1], r - move), label([8, 1, 1], r)
    assert forces[0, 2] == pytest.approx(-(up - down) / 2e-3, abs=1e-3)


@pytest.mark.bad_input
def test_bad_input(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', 'test', got 'all'"):
        molecules("all")
    with pytest.raises(ValueError, match="copies must be >= 1, got 0"):
        generate(tmp_path / "a.npz", copies=0)
    for package in ("tblite.interface", "ase.collections"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=r"labels need tblite: pip install 'hadamard\[molecules\]'"):
        label([1, 1], np.zeros((2, 3)))
    with pytest.raises(ImportError, match=r"geometries and labels need ase and tblite"):
        generate(tmp_path / "a.npz")
