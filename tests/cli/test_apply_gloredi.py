"""``hadamard apply gloredi`` on images, sinograms and slices to be scanned, and what it says to bad ones."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hadamard.cli.files import read_array, read_image, write_array
from hadamard.data import ellipses
from hadamard.operators import Radon
from tests.cli.test_cli import command

pydicom = pytest.importorskip("pydicom")
FAN = {"source_distance": 130.0, "detector_distance": 65.0}
WORDS = ["--source-distance", "130", "--detector-distance", "65"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: command(monkeypatch, capsys, "apply", "gloredi", *words)


@pytest.fixture(scope="module")
def slices():
    return ellipses(2, 64, generator=torch.Generator().manual_seed(5))[:, 0]


@pytest.fixture(scope="module")
def scan():
    return Radon(64, torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8), "fan", **FAN)


@pytest.mark.parametrize("ending", [".npz", ".h5", ".mat"])
def test_sinograms(ending, run, slices, scan):
    write_array(f"in{ending}", {"sinogram": scan(slices).numpy(), "angles": scan.angles.numpy()})
    assert run(f"in{ending}", "--out", f"out{ending}", "--size", "64", "--no-progress", *WORDS)[0] == 0
    found = torch.from_numpy(read_array(f"out{ending}", "image"))
    assert found.shape == (2, 64, 64)
    assert (found - slices).norm() < 0.8 * (scan.A_dagger(scan(slices)) - slices).norm()


def test_images_in_other_units_with_a_reference(run, slices, scan):
    start = scan.A_dagger(scan(slices))
    np.savez("in.npz", image=7 * start.numpy())
    np.savez("truth.npz", image=7 * slices.numpy())
    words = ["--images", "--reference", "truth.npz", "--picture", "out.png"]
    code, said, _ = run("in.npz", "--out", "out.npz", *words)
    assert code == 0
    found = torch.from_numpy(read_array("out.npz", "image")) / 7
    assert (found - slices).norm() < 0.8 * (start - slices).norm()
    assert read_image("out.png").shape == (64, 3 * 64)
    assert "error" in said
    assert run("in.npz", "--out", "again.npz", *words[:-2])[0] == 0
    np.testing.assert_array_equal(read_image("again.png"), read_image("out.png"))  # by itself, beside the result


def test_nifti_keeps_its_geometry(run, slices):
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(slices.permute(1, 2, 0).numpy(), affine), "in.nii.gz")
    assert run("in.nii.gz", "--views", "8", "--out", "out.nii.gz", "--picture", "out.png")[0] == 0
    assert np.array_equal(nibabel.load("out.nii.gz").affine, affine)
    found = torch.from_numpy(read_array("out.nii.gz")).permute(2, 0, 1)
    assert (found - slices).norm() < 0.35 * slices.norm()
    assert read_image("out.png").shape == (64, 3 * 64)
    assert run("in.nii.gz", "--out", "out.nii.gz")[0] == 0  # as it is
    assert read_array("out.nii.gz").shape == (64, 64, 2)


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
    assert 1 < np.sqrt((error**2).mean()) < 400  # Hounsfield units; not the file that came in


SINO = {"sinogram": np.ones((24, 8)), "angles": np.arange(8.0)}


@pytest.mark.parametrize(
    ("arrays", "words", "message"),
    [
        (SINO | {"angles": np.ones(4)}, WORDS, "8 columns need as many angles, got 4"),
        ({"sinogram": np.ones((24, 8))}, WORDS, "no array 'angles'"),
        (SINO | {"sinogram": np.full((24, 8), np.nan)}, WORDS, "values must be finite, got 192 NaN or infinite"),
        (SINO | {"sinogram": np.ones(8)}, WORDS, "expected real values in 2 or 3 dimensions"),
        (SINO, [], "source_distance must be given for a fan"),
        (SINO, ["--geometry", "cone"], "--geometry must be one of"),
        (SINO, ["--source-distance", "3", "--detector-distance", "3"], "source_distance must exceed"),
        (SINO, ["--views", "8"], "--views is for images"),
        ({"image": np.ones((4, 9))}, ["--images"], "slices must have at least 8 x 8 pixels"),
        ({"image": np.ones((9, 8))}, ["--images", "--views", "4"], "slices to be scanned must be square"),
        ({"image": np.ones((9, 8))}, ["--images", "--reference", "none.npz"], "none.npz: no such file"),
        ({"image": np.ones((9, 8))}, ["--images", "--reference", "in.npz", "--key", "truth"], "no array 'truth'"),
        ({"image": np.ones((9, 8))}, ["--images", "--picture", "out.jpg"], "out.jpg: --picture must end in .png"),
    ],
)
def test_bad_input_is_one_line(arrays, words, message, run):
    np.savez("in.npz", **arrays)
    code, _, error = run("in.npz", "--out", "out.npz", *words)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_only_a_slice_of_a_dicom_file_becomes_one(run):
    np.savez("in.npz", image=np.ones((2, 9, 8)))
    code, _, error = run("in.npz", "--images", "--out", "out.dcm")
    assert code == 2
    assert "out.dcm: a DICOM file can be written where SOURCE is one" in error


def test_truncated_dicom(run, tmp_path):
    from pydicom.data import get_testdata_file

    whole = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    (tmp_path / "in.dcm").write_bytes(whole[: len(whole) // 2])
    code, _, error = run("in.dcm", "--out", "out.dcm")
    assert code == 2
    assert "in.dcm: cannot be read, it may be damaged or truncated" in error
    assert len(error.strip().splitlines()) == 1
