import hashlib
import sys
import zipfile

import numpy as np
import pytest
import torch

from hadamard import data
from hadamard.data import DataUnavailable, Source

fetching = sys.modules["hadamard.data.fetch"]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A source whose package is a file on this disk, and a cache of its own."""
    monkeypatch.setenv("HADAMARD_DATA", str(tmp_path / "cache"))
    archive = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("thing/data/table.txt", "42")
        z.writestr("thing/code.py", "raise SystemExit")
    source = Source(
        name="thing", kind="wheel", package="thing", version="1.0", members=("thing/data/table.txt",), licence="CC0",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(), what="a number", size_mb=0,
    )  # fmt: skip
    calls = []

    def pip(command, cwd, **_):
        calls.append(command)
        (cwd / archive.name).write_bytes(archive.read_bytes())
        return type("Done", (), {"returncode": 0, "stderr": "", "stdout": ""})

    monkeypatch.setattr(fetching, "sources", lambda: {"thing": source})
    monkeypatch.setattr(fetching.subprocess, "run", pip)
    return source, calls, archive


def test_fetch_keeps_only_the_members_and_downloads_once(wheel):
    source, calls, _ = wheel
    assert not data.available("thing")
    for _ in range(2):
        assert data.fetch("thing")["table.txt"].read_text() == "42"
    assert data.available("thing")
    assert [p.name for p in source.folder.iterdir()] == ["table.txt"]
    assert [p.name for p in source.folder.parent.iterdir()] == [source.folder.name]
    assert len(calls) == 1
    assert {"--no-deps", "thing==1.0"} <= set(calls[0])


def test_another_archive_is_refused(wheel):
    source, _, archive = wheel
    archive.write_bytes(b"something else")
    with pytest.raises(DataUnavailable, match=r"thing==1.0 has sha256 .*; run `hadamard data fetch thing`"):
        data.fetch("thing")
    assert not data.available("thing")
    assert list(source.folder.parent.iterdir()) == []


def test_a_missing_tool_or_network_is_one_line(wheel, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(fetching.subprocess, "run", missing)
    with pytest.raises(DataUnavailable, match=r"^thing: pip is not installed; run `hadamard data fetch thing`"):
        data.fetch("thing")
    failed = type("Done", (), {"returncode": 1, "stderr": "long\nERROR: no route", "stdout": ""})
    monkeypatch.setattr(fetching.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataUnavailable, match=r"pip could not download thing==1.0 \(ERROR: no route\)"):
        data.fetch("thing")


@pytest.mark.bad_input
def test_unknown_names():
    with pytest.raises(ValueError, match="name must be one of"):
        data.fetch("netflix")
    with pytest.raises(ValueError, match="split must be one of"):
        data.photographs("validation")
    with pytest.raises(ValueError, match="size must be >= 1"):
        data.digits(0)


def test_every_source_is_pinned_and_has_terms():
    for source in data.sources().values():
        assert source.kind in ("wheel", "npm", "deb")
        assert len(source.sha256) == 64
        assert source.version
        assert source.members
        assert source.licence


@pytest.mark.parametrize("colour", [False, True])
def test_photographs_are_split_by_photograph(colour):
    train, test = data.photographs("train", colour=colour), data.photographs("test", colour=colour)
    assert not set(train) & set(test)
    assert set(data.photographs("all", colour=colour)) == set(train) | set(test)
    for x in (*train.values(), *test.values()):
        assert x.dtype == torch.float32
        assert 0 <= float(x.min()) < float(x.max()) <= 1
        assert x.shape[:1] == (3,) if colour else x.ndim == 2


def test_digits_keep_their_shape_when_enlarged():
    small, large = data.digits(), data.digits(28)
    assert small.images.shape == (1797, 1, 8, 8)
    assert large.images.shape == (1797, 1, 28, 28)
    means = small.images.flatten(1).mean(1), large.images.flatten(1).mean(1)
    assert float(torch.corrcoef(torch.stack(means))[0, 1]) > 0.99
    assert torch.equal(small.labels, large.labels)


def test_idx_files_are_read(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    header = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">i4").tobytes()
    (tmp_path / "images").write_bytes(header + pixels.tobytes())
    read = sys.modules["hadamard.data.mnist"]._read_idx(tmp_path / "images")
    assert torch.equal(read, torch.from_numpy(pixels))


@pytest.mark.skipif(not data.available("movielens_100k"), reason="run `hadamard data fetch movielens_100k`")
def test_movielens_is_whole():
    table = data.movielens_100k()
    assert len(table.ratings) == len(table.users) == len(table.items) == len(table.timestamps) == 100_000
    assert (int(table.users.max()), int(table.items.max())) == (942, 1681)
    assert sorted(set(table.ratings)) == [1, 2, 3, 4, 5]
    assert "GroupLens" in table.provenance


@pytest.mark.skipif(not data.available("blood_cells"), reason="run `hadamard data fetch blood_cells`")
def test_blood_cells_are_whole():
    cells = data.blood_cells()
    assert cells.components.shape == (700, 50)
    assert len(set(cells.kinds)) == 10
    assert cells.of("CD14+ Monocyte").shape == (129, 50)
    assert "CC BY 4.0" in cells.provenance
    with pytest.raises(ValueError, match="kind must be one of CD14"):
        cells.of("neuron")


@pytest.mark.skipif(not data.available("adult"), reason="run `hadamard data fetch adult`")
def test_adult_is_whole():
    table = data.adult()
    assert table.shape == (48_842, 15)
    assert set(table["income"]) == {"<=50K", ">50K"}
    assert "Adult" in table.attrs["provenance"]
