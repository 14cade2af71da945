import numpy as np
import pytest
import torch

from hadamard.images import pad_to_multiple


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 8), (2, 1, 6, 9), (1, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_against_numpy(shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    for mode, theirs in {"reflect": "reflect", "replicate": "edge", "constant": "constant"}.items():
        larger, crop = pad_to_multiple(x, 4, mode)
        more = [(0, 0)] * (len(shape) - 2) + [(0, -shape[-2] % 4), (0, -shape[-1] % 4)]
        assert np.array_equal(larger.numpy(), np.pad(x.numpy(), more, mode=theirs))
        assert torch.equal(crop(larger), x)


def test_what_fits_is_not_copied():
    x = torch.ones(2, 8, 4)
    larger, crop = pad_to_multiple(x, 4)
    assert larger is x
    assert crop(larger) is x


def test_an_image_too_small_to_be_mirrored():
    x = torch.tensor([[1.0, 2.0]])
    assert pad_to_multiple(x, 4)[0].tolist() == [[1.0, 2.0, 2.0, 2.0]] * 4


def test_crop_serves_other_channels_and_gradients_pass():
    x = torch.ones(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    _, crop = pad_to_multiple(x, 4)
    assert crop(torch.ones(2, 7, 8, 8)).shape == (2, 7, 5, 6)
    assert torch.autograd.gradcheck(lambda v: pad_to_multiple(v, 4)[0], (x,))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), 2), "x must have at least 2 dimensions"),
        ((torch.ones(3, 3), 0), "m must be >= 1, got 0"),
        ((torch.ones(3, 3), 2, "mirror"), "mode must be one of"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        pad_to_multiple(*arguments)
