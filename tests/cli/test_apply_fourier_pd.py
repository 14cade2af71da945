"""``hadamard apply fourier_pd`` on simulated scans, and what it says to bad ones."""

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


KSPACE = np.ones((2, 16, 16), dtype=np.complex64)


@pytest.mark.parametrize(
    ("arrays", "words", "message"),
    [
        ({"kspace": KSPACE, "mask": np.ones((15, 16))}, [], "the mask must have shape (16, 16) like k-space"),
        ({"kspace": KSPACE, "mask": np.full((16, 16), 2)}, [], "the mask must hold zeros and ones only"),
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
