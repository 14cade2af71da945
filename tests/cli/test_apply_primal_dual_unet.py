"""``hadamard apply primal_dual_unet`` on sinograms, spokes and slices, and what it says to bad ones."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hadamard.cli.files import read_array, read_image, write_array
from hadamard.data import ellipses
from hadamard.imaging import RadialMRI
from hadamard.operators import Radon
from tests.cli.test_cli import command

pydicom = pytest.importorskip("pydicom")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: command(monkeypatch, capsys, "apply", "primal_dual_unet", *words)


@pytest.fixture(scope="module")
def slices():
    return ellipses(2, 64, generator=torch.Generator().manual_seed(5))[:, 0]


def turn(count, whole=math.pi):
    return torch.arange(count, dtype=torch.float64) * (whole / count)


def test_sinograms(run, slices):
    scan = Radon(64, turn(12))
    write_array("in.h5", {"group/p": scan(slices).numpy(), "angles": scan.angles.numpy()})
    assert run("in.h5", "--key", "group/p", "--out", "out.npz", "--size", "64", "--no-progress")[0] == 0
    found = torch.from_numpy(read_array("out.npz", "image"))
    assert found.shape == (2, 64, 64)
    assert (found - slices).norm() < (scan.A_dagger(scan(slices), "hann") - slices).norm()


def test_a_fan_in_other_units(run, slices):
    """Lengths in millimetres and attenuation per millimetre give the same image, in those units."""
    options = {"source_distance": 80.0, "detector_distance": 40.0, "pixel_size": 0.5}
    scan = Radon(64, turn(24, 2 * math.pi), "fan", **options)
    x = 0.02 * slices[:1]
    np.savez("in.npz", sinogram=scan(x)[0].numpy(), angles=scan.angles.numpy())
    words = ["--geometry", "fan", "--source-distance", "80", "--detector-distance", "40", "--pixel-size", "0.5"]
    assert run("in.npz", "--out", "out.npy", "--size", "64", *words, "--spacing", "0.75")[0] == 0
    assert (torch.from_numpy(read_array("out.npy")) - x).norm() < 0.2 * x.norm()


def test_spokes_of_radial_mri(run, slices):
    mri = RadialMRI(64, turn(16))
    np.savez("in.npz", sinogram=mri(slices[0]).numpy(), angles=turn(16).numpy())
    assert run("in.npz", "--out", "out.npy", "--size", "64")[0] == 0
    assert (torch.from_numpy(read_array("out.npy"))[0] - slices[0]).norm() < 0.3 * slices[0].norm()


def test_reference_gives_the_error_and_its_picture(run, slices):
    scan = Radon(64, turn(12))
    np.savez("in.npz", sinogram=scan(slices).numpy(), angles=scan.angles.numpy())
    np.save("truth.npy", slices.numpy())
    words = ["--size", "64", "--reference", "truth.npy", "--picture", "out.png"]
    code, said, error = run("in.npz", "--out", "out.npz", *words)
    assert code == 0, error
    result = torch.from_numpy(read_array("out.npz", "image"))
    assert f"{float((result - slices).square().mean().sqrt()):.4g} by the network" in said
    assert read_image("out.png").shape == (64, 3 * 64)
    np.save("truth.npy", slices[:1].numpy())
    code, _, error = run("in.npz", "--out", "out.npz", *words)
    assert code == 2
    assert "truth.npy: the reference must have shape 2 x 64 x 64, got 1 x 64 x 64" in error


def test_radial_volume_of_four_axes_and_oblong_slices(run, slices):
    """Spokes of real slices: the volume comes back in its own shape, and near what it was."""
    nibabel = pytest.importorskip("nibabel")
    volume = slices[:, 6:58].permute(1, 2, 0)[..., None].expand(-1, -1, -1, 2)
    nibabel.save(nibabel.Nifti1Image(volume.contiguous().numpy(), np.diag([1.0, 2.0, 3.0, 1.0])), "in.nii")
    code, _, error = run("in.nii", "--views", "24", "--geometry", "radial", "--out", "out.nii")
    assert code == 0, error
    assert nibabel.load("out.nii").header.get_zooms()[:3] == (1.0, 2.0, 3.0)
    found = torch.from_numpy(read_array("out.nii"))
    assert found.shape == volume.shape
    assert (found - volume).norm() < 0.3 * volume.norm()


def test_nifti_keeps_its_geometry(run, slices):
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(slices.permute(1, 2, 0).numpy(), affine), "in.nii.gz")
    assert run("in.nii.gz", "--views", "12", "--out", "out.nii.gz", "--picture", "out.png")[0] == 0
    assert np.array_equal(nibabel.load("out.nii.gz").affine, affine)
    assert read_array("out.nii.gz").shape == (64, 64, 2)
    assert read_image("out.png").shape == (64, 3 * 64)


def test_dicom_in_dicom_out(run):
    from pydicom.data import get_testdata_file

    source = str(get_testdata_file("CT_small.dcm"))
    code, _, error = run(source, "--views", "32", "--out", "out.dcm", "--picture", "out.png")
    assert code == 0, error
    before, after = pydicom.dcmread(source), pydicom.dcmread("out.dcm")
    assert after.PatientID == before.PatientID
    assert after.PixelSpacing == before.PixelSpacing
    line = np.arange(128) - 63.5
    inside = line**2 + line[:, None] ** 2 < 55**2
    error = (read_array("out.dcm") - read_array(source))[inside]
    assert np.sqrt((error**2).mean()) < 150  # Hounsfield units
    assert np.abs(error).max() > 1  # it is not the file that came in


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda: np.savez("in.npz", sinogram=np.ones((8, 3)), angles=np.ones(4)), [], "3 columns need as many angles"),
        (lambda: np.savez("in.npz", sinogram=np.full((8, 3), np.nan), angles=np.ones(3)), [], "must be finite"),
        (lambda: np.savez("in.npz", sinogram=np.ones(8), angles=np.ones(1)), [], "a sinogram must have shape"),
        (lambda: np.savez("in.npz", sinogram=np.ones((8, 3))), [], "no array 'angles'"),
        (lambda: np.savez("in.npz", p=np.ones((8, 3)), angles=np.ones(3)), [], "no array 'sinogram'"),
        (lambda: np.savez("in.npz", sinogram=np.ones((8, 3)), angles=np.ones(3)), ["--views", "3"], "--views is for"),
        (lambda: np.savez("in.npz", sinogram=np.ones((3, 8)), angles=np.ones(3)), [], "rows: is it transposed?"),
        (lambda: np.savez("in.npz", sinogram=np.ones((8, 3)), angles=[0.0, 60.0, 120.0]), [], "must be in radians"),
        (
            lambda: np.savez("in.npz", sinogram=np.ones((8, 3)), angles=np.ones(3)),
            ["--geometry", "radial"],
            "--geometry radial needs complex spokes",
        ),
        (
            lambda: np.savez("in.npz", sinogram=np.ones((8, 3)), angles=np.ones(3)),
            ["--geometry", "cone"],
            "--geometry must be one of",
        ),
        (
            lambda: np.savez("in.npz", sinogram=np.ones((24, 3)), angles=np.ones(3)),
            ["--geometry", "fan"],
            "source_distance must be given for a fan",
        ),
    ],
)
def test_bad_input_is_one_line(make, words, message, run):
    make()
    code, _, error = run("in.npz", "--out", "out.npz", *words)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_what_cannot_be_written_is_refused_before_the_work(run):
    np.save("in.npy", np.ones((8, 3)))
    for out, words, message in (
        ("no/out.npy", [], "no/out.npy: no folder no"),
        ("out.dcm", [], "out.dcm: a DICOM file can only be written where one was read"),
        ("out.npy", [], "in.npy: a .npy file has no angles, give --angles FILE"),
    ):
        code, _, error = run("in.npy", "--out", out, *words)
        assert code == 2
        assert message in error


def test_truncated_dicom(run, tmp_path):
    from pydicom.data import get_testdata_file

    whole = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    (tmp_path / "in.dcm").write_bytes(whole[: len(whole) // 2])
    code, _, error = run("in.dcm", "--views", "8", "--out", "out.dcm")
    assert code == 2
    assert "in.dcm: cannot be read, it may be damaged or truncated" in error
    assert len(error.strip().splitlines()) == 1
