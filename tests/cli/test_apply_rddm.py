"""``hadamard apply rddm`` as it is typed."""

import numpy as np
import pytest

from hadamard.cli.files import read_image, write_image
from tests.cli.test_cli import command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ramp = np.linspace(0, 1, 21)[:, None, None] * np.linspace(0.2, 1, 30)[:, None] * np.array([1.0, 0.8, 0.6])
    write_image(tmp_path / "in.png", ramp)
    return tmp_path


def apply(monkeypatch, capsys, *words):
    return command(monkeypatch, capsys, "apply", "rddm", *words)


def test_the_tasks_are_those_of_the_network():
    from hadamard.cli.apply.rddm import _TASKS
    from hadamard.diffusion import RDDMPipeline

    assert RDDMPipeline.tasks == _TASKS


@pytest.mark.parametrize("task", ["noise", "blur", "dark", "rain", "holes"])
def test_a_picture_of_any_size_comes_back(folder, monkeypatch, capsys, task):
    code, out, error = apply(monkeypatch, capsys, "in.png", "--task", task, "--out", "out.png", "--steps", "2")
    assert code == 0, error
    assert out.strip().endswith("30 by 21")
    assert read_image(folder / "out.png").shape == (21, 30, 3)


def test_it_restores(folder, monkeypatch, capsys):
    clean = read_image("in.png")
    noisy = np.clip(clean + 0.15 * np.random.default_rng(0).standard_normal(clean.shape), 0, 1)
    write_image("noisy.png", noisy)
    assert apply(monkeypatch, capsys, "noisy.png", "--task", "noise", "-o", "out.png")[0] == 0
    assert np.mean((read_image("out.png") - clean) ** 2) < 0.5 * np.mean((noisy - clean) ** 2)


def test_the_same_seed_gives_the_same_picture(folder, monkeypatch, capsys):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        apply(monkeypatch, capsys, "in.png", "--task", "rain", "-o", f"{name}.png", "--seed", seed, "--no-progress")
    a, b, c = (read_image(f"{name}.png") for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


def test_known_pixels_are_kept(folder, monkeypatch, capsys):
    mask = np.zeros((21, 30))
    mask[5:11, 12:18] = 1
    write_image("mask.png", mask)
    assert apply(monkeypatch, capsys, "in.png", "--task", "holes", "--mask", "mask.png", "-o", "out.png")[0] == 0
    before, after = read_image("in.png"), read_image("out.png")
    assert (before == after)[mask == 0].all()
    assert (before != after)[mask == 1].any()


def test_grey_stays_grey_and_large_pictures_go_in_tiles(folder, monkeypatch, capsys):
    monkeypatch.setattr("hadamard.cli.apply.rddm._SIDE", 24)
    monkeypatch.setattr("hadamard.cli.apply.rddm._STRIDE", 16)
    write_image("grey.png", np.linspace(0, 1, 50 * 41).reshape(50, 41))
    assert apply(monkeypatch, capsys, "grey.png", "--task", "blur", "-o", "out.png", "--steps", "1")[0] == 0
    assert read_image("out.png").shape == (50, 41)


@pytest.mark.parametrize(("words", "message"), [
    (("in.png", "--task", "fog", "-o", "out.png"), "--task must be one of"),
    (("in.png", "--task", "rain", "-o", "out.png", "--steps", "0"), "--steps must be"),
    (("in.png", "--task", "rain", "-o", "out.png", "--mask", "in.png"), "--mask goes with --task holes"),
    (("none.png", "--task", "rain", "-o", "out.png"), "none.png: no such file"),
    (("in.png", "--task", "rain", "-o", "nowhere/out.png"), "no folder nowhere"),
    (("in.png", "--task", "rain", "-o", "out.xyz", "--steps", "1"), "ending"),
])  # fmt: skip
def test_bad_input_is_one_line(folder, monkeypatch, capsys, words, message):
    code, _, error = apply(monkeypatch, capsys, *words)
    assert code == 2
    assert message in " ".join(error.split())
    assert "Traceback" not in error
