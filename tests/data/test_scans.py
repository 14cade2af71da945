import pytest
import torch

from hadamard.data import available, ct_slices, ellipses, mr_slices, read_dicom, volume, volume_slices


def test_slices_are_of_water_air_and_bone():
    slices = ct_slices(64)
    assert set(slices) == {"head", "abdomen", "spine"}
    for image in slices.values():
        assert image.shape == (64, 64)
        assert image.min() == 0
        assert 1.5 < image.max() <= 2.5
        assert ((image > 0.9) & (image < 1.2)).float().mean() > 0.15  # soft tissue
        assert image[0, 0] == 0  # outside the circle


def test_averaging_keeps_the_mean():
    small, large = ct_slices(64)["head"], ct_slices(128)["head"]
    inside = torch.nn.functional.avg_pool2d(large[None], 2)[0]
    torch.testing.assert_close(small[16:48, 16:48], inside[16:48, 16:48])


def test_mr_slices_lie_between_0_and_1():
    for image in mr_slices(32).values():
        assert image.min() == 0
        assert image.max() == 1


def test_phantoms_are_different_bodies_inside_the_circle():
    images = ellipses(20, 48, generator=torch.Generator().manual_seed(3))
    assert images.shape == (20, 1, 48, 48)
    assert images.min() == 0
    assert images.max() <= 2.5
    assert (images[:, :, 0, 0] == 0).all()
    assert (images.flatten(1).max(1).values > 0.7).all()
    assert torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(9).min() > 1
    again = ellipses(20, 48, generator=torch.Generator().manual_seed(3))
    assert torch.equal(images, again)


@pytest.mark.bad_input
def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="size must be <= 512, got 600|size must be >= 1 and <= 512, got 600"):
        ct_slices(600)
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        ellipses(0)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"^DICOM files need pydicom: pip install 'hadamard\[imaging\]'$"):
        read_dicom("slice.dcm")


@pytest.mark.parametrize(("name", "least"), [("mni152", 100), ("colin27", 100), ("head_ct", 90)])
def test_heads_cut_into_slices(name, least):
    if not available({"colin27": "heads"}.get(name, name)):
        pytest.skip(f"{name} is not in the cache")
    slices = volume_slices(name, 32)
    assert len(slices) >= least
    assert slices.shape[1:] == (32, 32)
    assert slices.min() == 0
    assert slices.max() <= (2.5 if name == "head_ct" else 1)
    assert (slices[:, 0, 0] == 0).all()
    if name == "head_ct":
        assert ((slices > 0.9) & (slices < 1.2)).float().mean() > 0.1  # soft tissue


@pytest.mark.bad_input
def test_bad_volumes():
    with pytest.raises(ValueError, match="name must be one of 'mni152', 'colin27', 'head_ct', got 'foot'"):
        volume("foot")
    with pytest.raises(ValueError, match="axis must be >= 0 and <= 2, got 3"):
        volume_slices("mni152", axis=3)
