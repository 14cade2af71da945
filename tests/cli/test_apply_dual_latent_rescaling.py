"""``hadamard apply dual_latent_rescaling``: down, back, odd sizes, large pictures in tiles."""

import numpy as np
import pytest
import torch

from hadamard.cli.apply import dual_latent_rescaling as module
from hadamard.cli.files import read_image, write_image
from hadamard.data import photographs
from hadamard.imaging import DualLatentRescaler
from tests.cli.test_cli import command

KEY = "dual_latent_rescaling"


@pytest.fixture
def cat(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = photographs("test", colour=True)["cat"][:, 101:182, 120:215]  # 81 by 95
    write_image("cat.png", x.permute(1, 2, 0).numpy())
    return x


def run(monkeypatch, capsys, *arguments):
    return command(monkeypatch, capsys, "apply", KEY, *arguments, "--no-progress")


@pytest.mark.parametrize(("scale", "small"), [(2, (41, 48)), (4, (21, 24))])
def test_down_and_back(cat, scale, small, monkeypatch, capsys):
    code, output, error = run(
        monkeypatch, capsys, "cat.png", "--out", "small.tiff", "--scale", str(scale), "--picture", "seen.png"
    )
    assert code == 0, error
    assert "--back needs --size 95x81" in error
    assert f"wrote small.tiff: {small[1]} by {small[0]}" in output
    assert read_image("small.tiff").shape == (*small, 3)
    height, width, _ = read_image("seen.png").shape
    assert height >= 81
    assert width >= 3 * 95
    code, _, error = run(
        monkeypatch, capsys, "small.tiff", "--out", "large.tiff", "--scale", str(scale), "--back", "--size", "95x81",
        "--picture", "seen.png", "--truth", "cat.png",
    )  # fmt: skip
    assert code == 0, error
    large = torch.from_numpy(read_image("large.tiff")).permute(2, 0, 1)
    assert large.shape == cat.shape
    assert -10 * (large - cat).square().mean().log10() > {2: 30, 4: 24}[scale]


def test_a_png_remembers_and_keeps_what_goes_with_it(cat, monkeypatch, capsys):
    """Scale and size need not be given again; EXIF data and the size in print stay, and no other scale is believed."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open("cat.png") as picture:
        picture.save("in.png", exif=exif, dpi=(100, 100))
    code, _, error = run(monkeypatch, capsys, "in.png", "--out", "small.png", "--scale", "4")
    assert (code, error) == (0, "")
    code, _, error = run(monkeypatch, capsys, "small.png", "--out", "large.png", "--back")
    assert code == 0, error
    assert read_image("large.png").shape == (81, 95, 3)
    for name, dots in (("small.png", 25), ("large.png", 100)):
        with Image.open(name) as picture:
            assert picture.getexif()[0x0112] == 6
            assert picture.info["dpi"][0] == pytest.approx(dots, rel=0.02)
    code, _, error = run(monkeypatch, capsys, "small.png", "--out", "large.png", "--back", "--scale", "2")
    assert code == 2
    assert "small.png: was made with --scale 4, got 2" in error


def test_grey_stays_grey(cat, monkeypatch, capsys):
    write_image("grey.png", cat.mean(0)[:80, :96].numpy())
    assert run(monkeypatch, capsys, "grey.png", "--out", "small.png")[0] == 0
    assert read_image("small.png").ndim == 2


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("up", [False, True])
def test_tiles_change_nothing(scale, up, monkeypatch):
    network = DualLatentRescaler.pretrained(scale).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 88, 104, generator=generator, dtype=torch.float64)
    whole = network.upscale(x) if up else network.downscale(x)
    monkeypatch.setattr(module, "_TILE", 9 if not up else 31)
    torch.testing.assert_close(module._in_tiles(network, x, up, "", False), whole)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cat.png", "--out", "small.png", "--scale", "3"], "--scale must be one of 2, 4, got 3"),
        (["cat.png", "--out", "no/small.png"], "no/small.png: no folder no"),
        (["cat.png", "--out", "small.jpg"], "small.jpg: the way back needs every bit of the small picture"),
        (["cat.png", "--out", "small.png", "--size", "9x9"], "--size goes with --back"),
        (["cat.png", "--out", "small.png", "--truth", "cat.png"], "--truth goes with --back"),
        (["cat.png", "--out", "small.png", "--picture", "seen.jpg"], "seen.jpg: --picture must end in .png"),
        (["cat.png", "--out", "big.png", "--back", "--size", "95"], "--size must be WIDTHxHEIGHT, such as"),
        (["cat.png", "--out", "big.png", "--back", "--size", "95x81"], "--size must be at most 190x162"),
        (["cat.png", "--out", "big.png", "--back", "--truth", "cat.png"], "cat.png: the original must be 190 by 162"),
        (["nan.tiff", "--out", "small.png"], "nan.tiff: the picture must be finite, got 1 NaN or infinite"),
        (["high.tiff", "--out", "small.png"], "high.tiff: values must lie in [0, 1], got 0 to 255"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(cat, arguments, message, monkeypatch, capsys):
    from PIL import Image

    values = np.zeros((8, 8), dtype=np.float32)
    for name, value in (("nan.tiff", np.nan), ("high.tiff", 255.0)):
        values[2, 3] = value
        Image.fromarray(values).save(name)
    code, _, error = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
