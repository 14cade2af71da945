"""``hadamard apply robust_unmixing``: cubes in, maps out in the same format with what belonged to them."""

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from typer import Typer
from typer.testing import CliRunner

from hadamard.cli.apply.robust_unmixing import apply
from hadamard.cli.cubes import read_cube
from hadamard.cli.files import read_array, read_image, write_array
from hadamard.data import mixed_scene, smooth_spectra

SCENE = mixed_scene(smooth_spectra(2, 24, random_state=1), 16, bad=0.1)
HEADER = """ENVI
description = {
  a scene}
samples = 16
lines   = 16
bands = 24
header offset = 0
data type = 4
interleave = %s
byte order = %d
map info = {UTM, 1, 1, 500000, 4000000, 30, 30, 11, North}
wavelength units = Nanometers
wavelength = {
 %s}
"""
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def run(tmp_path):
    app = Typer()
    app.command()(apply)

    def go(source, out, *options):
        arguments = [str(tmp_path / source), "-o", str(tmp_path / out), "-k", "2", "--no-progress", "--max-iter", "30"]
        return CliRunner().invoke(app, [*arguments, *map(str, options)])

    return go


def write_envi(path, interleave="bsq", order=0, cube=SCENE.cube):
    axes = {"bsq": (2, 0, 1), "bil": (0, 2, 1), "bip": (0, 1, 2)}[interleave]
    path.write_text(HEADER % (interleave, order, ", ".join(str(400 + 10 * i) for i in range(24))))
    cube.transpose(axes).astype(">f4" if order else "<f4").tofile(path.with_suffix(".img"))


def test_maps_spectra_and_what_else_was_in_the_file(run, tmp_path):
    write_array(tmp_path / "in.npz", {"scene": SCENE.cube, "wavelengths": np.arange(24), "place": np.array("here")})
    result = run("in.npz", "out.npz")
    assert result.exit_code == 0, result.exception
    assert "2 of 24 bands broken" in result.output
    get = lambda name: read_array(tmp_path / "out.npz", name)  # noqa: E731
    assert get("abundances").shape == (16, 16, 2)
    assert get("guidance").shape == (16, 16)
    assert get("endmembers").shape == (2, 24)
    assert get("bad_bands").tolist() == SCENE.bad_bands.tolist()
    assert get("wavelengths").tolist() == list(range(24))
    assert str(get("place")) == "here"
    assert read_image(tmp_path / "out.png").shape == (16 * 10 + 4, 4 * (16 * 10 + 4))


def test_a_reference_sets_the_order_and_shows_errors(run, tmp_path):
    write_array(tmp_path / "in.npy", SCENE.cube)
    write_array(tmp_path / "true.npy", SCENE.abundances[..., ::-1])
    result = run("in.npy", "out.npy", "--reference", tmp_path / "true.npy")
    assert result.exit_code == 0, result.exception
    assert float(result.output.split("error ")[1]) < 0.05
    maps = read_array(tmp_path / "out.npy")
    assert maps.shape == (16, 16, 3)
    assert np.abs(maps[..., :2] - SCENE.abundances[..., ::-1]).mean() < 0.05
    assert read_image(tmp_path / "out.png").shape[0] == 3 * (16 * 10 + 4)


def test_hdf5_keeps_datasets_and_attributes(run, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["image/cube"] = SCENE.cube
        file["image/wavelengths"] = np.arange(24)
        file["image/wavelengths"].attrs["units"] = "nm"
        file.attrs["sensor"] = "invented"
    result = run("in.h5", "out.h5")
    assert result.exit_code == 0, result.exception
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["abundances"].shape == (16, 16, 2)
        assert file["image/wavelengths"].attrs["units"] == "nm"
        assert file.attrs["sensor"] == "invented"


def test_matlab_keeps_variables(run, tmp_path):
    savemat(tmp_path / "in.mat", {"Y": SCENE.cube, "name": "scene"})
    result = run("in.mat", "out.mat")
    assert result.exit_code == 0, result.exception
    found = loadmat(tmp_path / "out.mat")
    assert found["abundances"].shape == (16, 16, 2)
    assert found["name"] == ["scene"]


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("order", [0, 1])
def test_envi_is_read_in_every_order(tmp_path, interleave, order):
    write_envi(tmp_path / "in.hdr", interleave, order)
    np.testing.assert_array_equal(read_cube(tmp_path / "in.hdr").values, SCENE.cube.astype(np.float32))


def test_envi_keeps_its_geometry(run, tmp_path):
    write_envi(tmp_path / "in.hdr")
    result = run("in.hdr", "out.hdr")
    assert result.exit_code == 0, result.exception
    maps = read_cube(tmp_path / "out.hdr")
    assert maps.values.shape == (16, 16, 3)
    assert maps.rest["map info"] == "{UTM, 1, 1, 500000, 4000000, 30, 30, 11, North}"
    assert maps.rest["band names"] == "{abundances 1, abundances 2, guidance}"
    assert "wavelength" not in maps.rest
    np.testing.assert_allclose(maps.values[..., :2].sum(-1), 1, atol=1e-6)
    library = (tmp_path / "out-endmembers.hdr").read_text()
    assert "wavelength = {\n 400, 410" in library
    assert np.fromfile(tmp_path / "out-endmembers.sli", "<f4").size == 2 * 24


def test_bad_cubes_are_one_line(run, tmp_path):
    nan = SCENE.cube.copy()
    nan[0, 0, 3] = np.nan
    write_array(tmp_path / "nan.npy", nan)
    write_array(tmp_path / "flat.npy", SCENE.cube[0])
    write_array(tmp_path / "text.npz", {"cube": np.full((2, 2, 2), "a")})
    write_array(tmp_path / "two.npz", {"a": SCENE.cube, "b": SCENE.cube})
    write_array(tmp_path / "good.npy", SCENE.cube)
    write_array(tmp_path / "wrong.npy", SCENE.abundances[:5])
    write_envi(tmp_path / "cut.hdr")
    (tmp_path / "cut.img").write_bytes((tmp_path / "cut.img").read_bytes()[:100])
    write_envi(tmp_path / "alone.hdr")
    (tmp_path / "alone.img").unlink()
    (tmp_path / "short.hdr").write_text("ENVI\nsamples = 3\n")
    (tmp_path / "other.hdr").write_text("not one")
    (tmp_path / "cube.tif").write_bytes(b"II")
    for source, out, options, message in [
        ("nan.npy", "out.npy", (), "1 values are NaN or infinite, in band(s) 3 (counted from 0)"),
        ("flat.npy", "out.npy", (), "expected a cube of shape (height, width, bands), got (16, 24)"),
        ("text.npz", "out.npz", (), "expected real numbers"),
        ("two.npz", "out.npz", (), "holds 2 arrays of three dimensions, give --key; it has a, b"),
        ("two.npz", "out.npz", ("--key", "c"), "holds no array 'c'; it has a, b"),
        ("good.npy", "out.npz", (), "expected the ending .npy"),
        ("good.npy", "out.npy", ("--reference", tmp_path / "wrong.npy"), "expected abundances of shape (16, 16, 2)"),
        ("good.npy", "out.npy", ("-k", 25), "n_endmembers must be >= 1 and <= min(n_samples, n_features)"),
        ("cut.hdr", "out.hdr", (), "cut.img is truncated: 100 bytes, expected 24576"),
        ("alone.hdr", "out.hdr", (), "no data beside the header, such as alone.img"),
        ("short.hdr", "out.hdr", (), "the header lacks or garbles a field"),
        ("other.hdr", "out.hdr", (), "is not an ENVI header"),
        ("cube.tif", "out.tif", (), "unknown ending '.tif'"),
    ]:
        result = run(source, out, *options)
        assert isinstance(result.exception, (ValueError, FileNotFoundError)), (source, result.output)
        assert message in str(result.exception)
        assert "\n" not in str(result.exception)
        assert not (tmp_path / out).exists()
