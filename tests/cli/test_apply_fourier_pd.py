"""``hadamard apply fourier_pd`` on simulated scans, and what it says to bad ones."""

import h5py
import nibabel
import numpy as np
import pytest
import torch

from hadamard.cli.files import read_array, read_image, write_array
from hadamard.data import acquire_kspace, hyperthermia, undersampling_mask
from tests.cli.test_cli import command


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: command(monkeypatch, capsys, "apply", "fourier_pd", *words)


@pytest.fixture(scope="module")
def scan():
    anatomy = torch.zeros(64, 64)
    anatomy[12:52, 8:56] = 1.0
    anatomy[20:30, 20:40] = 0.5
    series = hyperthermia(anatomy, 3, motion=0.0, drift=0.0)
    mask = undersampling_mask(64, 64, 4)
    return series, mask, acquire_kspace(series.images, mask, noise=0.01)


def test_series_to_image_temperature_and_picture(run, scan):
    series, mask, kspace = scan
    write_array("in.h5", {"kspace": kspace.numpy(), "mask": mask.numpy(), "reference": series.images.abs().numpy()})
    words = ["--te", "0.02", "--reference", "reference", "--picture", "out.png", "--no-progress"]
    code, _, error = run("in.h5", "--out", "out.h5", *words)
    assert code == 0, error
    image = torch.from_numpy(read_array("out.h5", "image"))
    assert image.shape == (3, 64, 64)
    assert (image - series.images).norm() < 0.4 * series.images.norm()
    warm = read_array("out.h5", "temperature")[-1][series.tumour[-1].numpy()].mean()
    assert abs(warm - float(series.temperature[-1][series.tumour[-1]].mean())) < 1.5
    assert read_image("out.png").shape == (64, 4 * 64)


def test_coils(run, scan):
    series, mask, _ = scan
    sens = torch.stack([torch.full((64, 64), 0.6 + 0j), torch.full((64, 64), 0.8j)])
    kspace = acquire_kspace(series.images[:1, None] * sens, mask)
    np.savez("in.npz", kspace=kspace.numpy(), mask=mask.numpy(), sens=sens.numpy())
    assert run("in.npz", "--out", "out.npz", "--sens", "sens")[0] == 0
    image = torch.from_numpy(read_array("out.npz", "image"))
    assert image.shape == (1, 64, 64)
    assert (image - series.images[:1]).norm() < 0.4 * series.images[:1].norm()
    assert run("in.npz", "--out", "coils.npz")[0] == 0
    assert read_array("coils.npz", "image").shape == (1, 2, 64, 64)


_HEADER = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace>
<matrixSize><x>{x}</x><y>64</y><z>1</z></matrixSize>
<fieldOfView_mm><x>128</x><y>160</y><z>5</z></fieldOfView_mm></encodedSpace></encoding></ismrmrdHeader>"""


def _fastmri(scan, x=64):
    series, mask, kspace = scan
    with h5py.File("in.h5", "w") as file:
        file["kspace"], file["mask"] = kspace[:, None].numpy(), mask.numpy()
        file["ismrmrd_header"] = _HEADER.format(x=x)
        file["reconstruction_rss"] = series.images.abs()[:, 12:52, 8:56].numpy()
        file.attrs["patient_id"], file.attrs["max"] = "p7", 0.5
        file.create_group("more").attrs["unit"] = "ms"
        file["more/te"] = 20.0
        file["more/te"].attrs["echo"] = 1


def test_hdf5_keeps_header_and_attributes(run, scan):
    _fastmri(scan)
    code, said, error = run("in.h5", "--out", "out.h5", "--reference", "reconstruction_rss", "--picture", "out.png")
    assert code == 0, error
    assert "error of the magnitude" in said
    assert read_image("out.png").shape == (40, 4 * 48)
    with h5py.File("out.h5") as file:
        assert dict(file.attrs) == {"patient_id": "p7", "max": 0.5}
        assert file["ismrmrd_header"][()].decode() == _HEADER.format(x=64)
        assert file["more"].attrs["unit"] == "ms"
        assert file["more/te"].attrs["echo"] == 1
        assert file["image"].shape == (3, 64, 64)
        assert "kspace" not in file


def test_nifti_has_the_headers_voxels(run, scan):
    _fastmri(scan)
    assert run("in.h5", "--out", "out.nii.gz", "--te", "0.02")[0] == 0
    image = nibabel.load("out.nii.gz")
    assert image.header.get_zooms() == (2.0, 2.5, 5.0)
    assert np.allclose(image.affine @ [31.5, 31.5, 1, 1], [0, 0, 0, 1])
    assert image.header.get_xyzt_units()[0] == "mm"
    _fastmri(scan, x=32)
    code, _, error = run("in.h5", "--out", "out.nii.gz")
    assert code == 2
    assert "in.h5: k-space is 64 x 64, its ismrmrd_header says 32 x 64" in error


AFFINE = np.array([[0, -1.5, 0, 10], [2.0, 0, 0, -3], [0, 0, 4, 7], [0, 0, 0, 1]])


def _save(name, values, affine=AFFINE):
    image = nibabel.Nifti1Image(values, affine)
    image.header["descrip"] = b"kept"
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, name)


def test_complex_nifti_series_keeps_its_geometry(run, scan):
    volume = scan[0].images.permute(1, 2, 0)[:, :, None].expand(-1, -1, 2, -1).numpy()  # x, y, z, t
    _save("in.nii.gz", volume)
    words = ["--acceleration", "3", "--picture", "out.png", "--no-progress"]
    code, _, error = run("in.nii.gz", "--out", "out.nii.gz", *words)
    assert code == 0, error
    image = nibabel.load("out.nii.gz")
    assert np.array_equal(image.affine, AFFINE)
    assert image.header["descrip"].item() == b"kept"
    assert image.header.get_xyzt_units() == ("mm", "sec")
    found = np.asarray(image.dataobj)
    assert found.shape == volume.shape
    assert np.linalg.norm(found - volume) < 0.4 * np.linalg.norm(volume)
    assert read_image("out.png").shape == (64, 4 * 64)
    assert run("in.nii.gz", "--out", "warm.nii", "--te", "0.02", *words[:2])[0] == 0
    warm = nibabel.load("warm.nii")
    assert np.array_equal(warm.affine, AFFINE)
    there = scan[0].tumour[-1].numpy()
    assert abs(np.asarray(warm.dataobj)[there][:, 1, 2].mean() - float(scan[0].temperature[-1][there].mean())) < 1.5


def test_magnitude_and_phase_in_two_files(run, scan):
    volume = scan[0].images.permute(1, 2, 0).numpy()
    _save("in.nii", np.abs(volume))
    _save("phase.nii", np.angle(volume))
    np.save("mask.npy", scan[1].numpy())
    assert run("in.nii", "--phase", "phase.nii", "--out", "out.nii", "--mask", "mask.npy")[0] == 0
    modulus, angle = (nibabel.load(name) for name in ("out.nii", "out_phase.nii"))
    assert np.array_equal(angle.affine, AFFINE)
    found = np.asarray(modulus.dataobj) * np.exp(1j * np.asarray(angle.dataobj))
    assert np.linalg.norm(found - volume) < 0.4 * np.linalg.norm(volume)


@pytest.mark.parametrize(
    ("phase", "affine", "words", "message"),
    [
        (None, AFFINE, ["--acceleration", "4"], "a magnitude alone has no phase to reconstruct"),
        (np.ones((64, 64, 2)), AFFINE, [], "phase.nii: the phase must have shape (64, 64, 3)"),
        (np.ones((64, 64, 3)), np.eye(4), [], "their affines differ"),
        (np.full((64, 64, 3), 4095.0), AFFINE, [], "the phase must be in radians, got values up to 4095"),
        (np.ones((64, 64, 3)), AFFINE, [], "images are fully sampled, give --acceleration or --mask"),
        (np.ones((64, 64, 3)), AFFINE, ["--te", "0.02", "--acceleration", "4"], "--te needs at least two moments"),
        (np.full((64, 64, 3), np.nan), AFFINE, ["--acceleration", "4"], "images must be finite"),
    ],
)
def test_bad_nifti_is_one_line(phase, affine, words, message, run):
    _save("in.nii", np.ones((64, 64, 3)))
    if phase is not None:
        _save("phase.nii", phase, affine)
        words = ["--phase", "phase.nii", *words]
    code, _, error = run("in.nii", "--out", "out.nii", *words)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


KSPACE = np.ones((2, 16, 16), dtype=np.complex64)


@pytest.mark.parametrize(
    ("arrays", "words", "message"),
    [
        ({"kspace": KSPACE, "mask": np.ones((15, 16))}, [], "the mask must have shape (16, 16) like k-space"),
        ({"kspace": KSPACE, "mask": np.full((16, 16), 2)}, [], "the mask must hold zeros and ones only"),
        ({"kspace": KSPACE, "mask": np.zeros((16, 16))}, [], "the mask must have ones"),
        ({"kspace": KSPACE}, ["--acceleration", "4"], "--acceleration is for images"),
        ({"kspace": KSPACE * np.nan}, [], "k-space must be finite"),
        ({"kspace": KSPACE.real}, [], "k-space must be complex"),
        ({"kspace": KSPACE[0, 0]}, [], "k-space must have shape (slices[, coils], H, W)"),
        ({"kspace": KSPACE}, ["--te", "20"], "--te must be > 0 and <= 1"),
        ({"kspace": KSPACE[:1]}, ["--te", "0.02"], "--te needs at least two moments"),
        ({"kspace": KSPACE, "sens": np.ones((1, 8, 8))}, ["--sens", "sens"], "sens must have shape (1, 16, 16)"),
        ({"k": KSPACE, "l": KSPACE}, [], "no array 'kspace'"),
    ],
)
def test_bad_input_is_one_line(arrays, words, message, run):
    np.savez("in.npz", **arrays)
    code, _, error = run("in.npz", "--out", "out.npz", *words)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
