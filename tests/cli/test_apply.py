"""``hadamard apply`` as it is typed: every method that has a file form, on good files and on bad ones."""

from pathlib import Path

import numpy as np
import pytest

from hadamard import catalog
from hadamard.cli.files import read_array, read_image, write_array, write_image
from tests.cli.test_cli import command

SUFFIX = {
    "matrix_completion": ".csv", "rdledm": ".npz", "learned_proximal": ".png", "spright": ".csv",
    "primal_dual_unet": ".npz", "robust_unmixing": ".npz", "dual_latent_rescaling": ".png",
    "fourier_pd": ".h5", "fairness_pid": ".csv", "omnissr": ".png",
}  # fmt: skip


def write(key, path):
    """A small good input."""
    if key == "matrix_completion":
        path.write_text(
            "user,item,rating\n" + "".join(f"u{u},i{i},{u + i % 2}\n" for u in range(5) for i in range(u, 6))
        )
    elif key == "fairness_pid":
        path.write_text(
            "prediction,sensitive,client\n" + "".join(f"{i % 3 > 1},{'fm'[i % 2]},{i % 5}\n" for i in range(40))
        )
    elif key == "spright":
        path.write_text("".join(f"{value}\n" for value in range(16)))
    elif key == "robust_unmixing":
        write_array(path, {"cube": np.random.default_rng(0).random((6, 7, 9)), "wavelengths": np.arange(9)})
    elif key == "rdledm":
        write_array(path, {"kspace": np.ones((3, 8, 8), dtype=np.complex64), "mask": np.ones((3, 8, 8))})
    elif key == "fourier_pd":
        write_array(path, {"kspace": np.ones((2, 16, 16), dtype=np.complex64), "mask": np.ones((16, 16))})
    elif key == "primal_dual_unet":
        write_array(path, {"sinogram": np.ones((24, 4), dtype=np.float32), "angles": np.arange(4) * np.pi / 4})
    elif key == "omnissr":
        write_image(path, np.linspace(0, 1, 128).reshape(8, 16))
    else:
        write_image(path, np.linspace(0, 1, 256).reshape(16, 16))


@pytest.fixture(params=list(SUFFIX))
def method(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return request.param, tmp_path / f"in{SUFFIX[request.param]}", tmp_path / f"out{SUFFIX[request.param]}"


def test_every_command_is_here():
    """Or in a file of its own, where it takes more than one array or picture."""
    able = {row.key for row in catalog.methods().values() if row.apply}
    assert set(SUFFIX) <= able
    assert all((Path(__file__).parent / f"test_apply_{key}.py").exists() for key in able - set(SUFFIX))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_file_in_file_out(method, monkeypatch, capsys):
    key, source, out = method
    write(key, source)
    code, _, error = command(monkeypatch, capsys, "apply", key, source.name, "--out", out.name)
    assert code == 0, error
    if key == "matrix_completion":
        assert out.read_text().startswith("user,item,rating\nu1,i0,")
    elif key == "fairness_pid":
        assert out.read_text().startswith("quantity,client,value,low,high\nglobal,,")
    elif key == "rdledm":
        assert read_array(out, "image").shape == (3, 8, 8)
    elif key == "fourier_pd":
        assert read_array(out, "image").dtype == np.complex64
    elif key == "primal_dual_unet":
        assert read_array(out, "image").shape == (1, 16, 16)
    elif key == "robust_unmixing":
        assert read_array(out, "abundances").shape == (6, 7, 4)
        assert read_array(out, "wavelengths").tolist() == list(range(9))
    elif key == "spright":
        assert len(out.read_text().splitlines()) > 4
    elif key == "omnissr":
        assert read_image(out).shape == (16, 32)
    else:
        assert read_image(out).shape == ((8, 8) if key == "dual_latent_rescaling" else (16, 16))


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "folder", "no folder for the result"])
def test_bad_files_are_one_line_and_exit_code_2(method, monkeypatch, capsys, fault):
    key, source, out = method
    write(key, source)
    if fault == "missing":
        source.unlink()
    elif fault == "empty":
        source.write_bytes(b"")
    elif fault == "truncated":
        whole = source.read_bytes()
        source.write_bytes(whole[:-3] if source.suffix == ".csv" else whole[: len(whole) // 2])
    elif fault == "folder":
        source.unlink()
        source.mkdir()
    else:
        out = out.parent / "nowhere" / out.name
    code, _, error = command(monkeypatch, capsys, "apply", key, str(source), "--out", str(out))
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert (out if fault.startswith("no folder") else source).name in error
    assert not out.exists()
