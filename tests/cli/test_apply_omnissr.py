"""``hadamard apply omnissr`` with the network that comes along, with a saved one, and on what is no panorama."""

import numpy as np
import pytest

from hadamard.cli.files import read_image, write_image
from tests.cli.test_cli import command
from tests.diffusion.test_omnissr import pipeline


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "small.png", np.random.default_rng(0).random((8, 16, 3)))
    return lambda *words: command(monkeypatch, capsys, "apply", "omnissr", *words, "--no-progress")


def test_larger_and_like_the_small_one(run, tmp_path):
    code, said, error = run("small.png", "-o", "large.png", "--steps", "3", "--view-batch", "7")
    assert code == 0, error
    assert "wrote large.png: 32 by 16" in said
    large, small = read_image(tmp_path / "large.png"), read_image(tmp_path / "small.png")
    means = large.reshape(8, 2, 16, 2, 3).mean((1, 3))
    assert np.corrcoef(means.ravel(), small.ravel())[0, 1] > 0.95


def test_a_model_of_ones_own(run, tmp_path):
    pipeline().save_pretrained(tmp_path / "mine")
    code, _, error = run("small.png", "-o", "large.png", "--steps", "2", "--model", "mine", "--scale", "4")
    assert code == 0, error
    assert read_image(tmp_path / "large.png").shape == (32, 64, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tall.png",), "tall.png: a panorama must be twice as wide as high, got 8 by 8"),
        (("small.png", "--model", "small.png"), "must be a folder that a pipeline's save_pretrained wrote"),
        (("small.png", "--scale", "1"), "--scale must be >= 2, got 1"),
        (("small.png", "--reduced", "zero"), "boundary must be one of"),
    ],
)
def test_bad_input(run, tmp_path, words, message):
    write_image(tmp_path / "tall.png", np.zeros((8, 8)))
    code, _, error = run(*words, "-o", "large.png")
    assert code == 2
    assert message in error
