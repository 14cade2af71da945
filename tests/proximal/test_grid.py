"""Rounding with a straight-through gradient, and the projection onto a grid."""

import pytest
import torch

from hadamard.proximal import round_ste, to_grid


def test_round_is_torchs_with_the_identity_as_gradient(generator):
    x = torch.cat([torch.randn(50, generator=generator), torch.tensor([0.5, 1.5, 2.5, -0.5])]).requires_grad_()
    y = round_ste(x)
    assert torch.equal(y, x.detach().round())
    weights = torch.randn(len(x), generator=generator)
    assert torch.equal(torch.autograd.grad((weights * y).sum(), x)[0], weights)


@pytest.mark.parametrize(("zero", "qmin", "qmax"), [(0, 0, 255), (10, 0, 15), (0, -8, 7), (-3, -128, 127)])
def test_torchs_fake_quantisation_and_its_gradient(zero, qmin, qmax, generator):
    x = (20 * torch.randn(400, generator=generator)).requires_grad_()
    mine = to_grid(x, 0.25, zero, qmin, qmax)
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.25, zero, qmin, qmax)
    torch.testing.assert_close(mine, theirs)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (mine, theirs)]
    assert torch.equal(*gradients)
    assert 0 < gradients[0].sum() < len(x)


def test_scales_by_channel(generator):
    x = torch.randn(3, 40, generator=generator)
    scale, zero = torch.tensor([0.1, 0.25, 0.5]), torch.tensor([3, 8, 0])
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero.int(), 0, 0, 15)
    torch.testing.assert_close(to_grid(x, scale[:, None], zero[:, None], 0, 15), theirs)


def test_idempotent_nearest_and_learnable_scale(generator):
    x = 3 * torch.randn(200, dtype=torch.float64, generator=generator)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y = to_grid(x, scale, 8, 0, 15)
    torch.testing.assert_close(to_grid(y, scale, 8, 0, 15), y)
    grid = 0.3 * (torch.arange(16, dtype=torch.float64) - 8)
    torch.testing.assert_close((x - y).abs(), (x[:, None] - grid).abs().amin(1))
    (gradient,) = torch.autograd.grad(y.sum(), scale)
    ends = (y <= grid[0] + 1e-9) & (x / 0.3 < -8.5) | (y >= grid[-1] - 1e-9) & (x / 0.3 > 7.5)
    by_hand = torch.where(ends, y / 0.3, (y - x) / 0.3).sum()  # the learned step size's rule
    torch.testing.assert_close(gradient, by_hand)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale must be > 0, got 0.0"),
        ({"scale": torch.tensor([0.1, -1.0])}, "scale must be > 0, got -1"),
        ({"qmax": -1}, "qmax must be >= 0, got -1"),
        ({"x": torch.ones(2, dtype=torch.long)}, "x must have a floating dtype"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        to_grid(**{"x": torch.ones(2), "scale": 1.0} | change)
