"""Rescaling with two latents, hiding, and their couplings."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from hadamard.imaging import DualLatentHider, DualLatentRescaler, RescalingCycle, rescaling_loss
from hadamard.imaging.couplings import AffineCoupling, Couplings


def shaken(network, std=0.1):
    """With weights drawn at random, so that nothing is the identity."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network.eval().requires_grad_(False)


def pictures(*shape, dtype=torch.float32):
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


# ---- the bijection ----


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("latent", [0, 2])
def test_inverse_is_exact_both_ways(scale, latent):
    network = shaken(DualLatentRescaler(scale, 2, 6, latent), std=0.04)
    for dtype, tol in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        network = network.to(dtype)
        x, z = pictures(2, 3, 16, 24, dtype=dtype), pictures(2, latent, 8, 12, dtype=dtype)
        y = network.encode(x, z)
        assert y.picture.shape == (2, 3, 16 // scale, 24 // scale)
        assert y.picture.numel() + y.latent.numel() == x.numel() + z.numel()
        back = network.decode(y.picture, y.latent)
        torch.testing.assert_close(back.picture, x, rtol=0, atol=tol)
        torch.testing.assert_close(back.latent, z, rtol=0, atol=tol)
        again = network.encode(back.picture, back.latent)
        torch.testing.assert_close(again.latent, y.latent, rtol=0, atol=10 * tol)
    assert (y.picture - x.unfold(2, scale, scale).unfold(3, scale, scale).mean((-1, -2))).abs().max() > 1e-3


@pytest.mark.parametrize(("scale", "latent"), [(2, 0), (2, 1), (4, 1)])
def test_log_jacobian_is_that_of_autograd(scale, latent):
    network = shaken(DualLatentRescaler(scale, 1, 3, latent).double(), std=0.3)
    x, z = pictures(1, 3, 4, 4, dtype=torch.float64), pictures(1, latent, 2, 2, dtype=torch.float64)

    def flat(v):
        y = network.encode(v[: x.numel()].view_as(x), v[x.numel() :].view_as(z))
        return torch.cat([y.picture.flatten(), y.latent.flatten()])

    J = torch.autograd.functional.jacobian(flat, torch.cat([x.flatten(), z.flatten()]))
    torch.testing.assert_close(network.log_jacobian(x, z), torch.linalg.slogdet(J).logabsdet[None])


@pytest.mark.parametrize("scale", [2, 4])
def test_untrained_the_small_picture_is_the_mean_of_squares(scale):
    x = pictures(1, 3, 16, 16)
    network = DualLatentRescaler(scale, 2, 4)
    small = network.downscale(x, quantize=False)
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(x, scale))
    nearest = torch.nn.functional.interpolate(network.downscale(x), scale_factor=scale)
    torch.testing.assert_close(network.upscale(network.downscale(x)), nearest)


def test_without_the_second_latent_it_is_irn_written_out():
    """Haar as four filters over 4 in IRN's order, then the couplings' equations."""
    network = shaken(DualLatentRescaler(2, 2, 5, 0).double())
    x = pictures(1, 3, 8, 8, dtype=torch.float64)
    signs = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]).double()
    filters = signs[:, None] / 4
    bands = torch.stack([torch.nn.functional.conv2d(x[:, c : c + 1], filters, stride=2) for c in range(3)], 2)
    y1, y2 = bands.flatten(1, 2).split([3, 9], 1)
    for layer in network.levels[0]:
        y1 = y1 + layer.F(y2)
        y2 = y2 * (2 / (1 + torch.exp(-layer.H(y1))) - 1).exp() + layer.G(y1)
    found = network.encode(x)
    torch.testing.assert_close(found.picture, y1)
    torch.testing.assert_close(found.latent, y2)


def test_a_second_latent_that_nothing_reads_changes_nothing():
    """With the weights at its channels zero, the network with z_down is the one without."""
    plain, dual = (shaken(DualLatentRescaler(2, 2, 5, d)) for d in (0, 2))
    for mine, theirs in zip(dual.levels[0], plain.levels[0]):
        for block, other in ((mine.F, theirs.F), (mine.G, theirs.G), (mine.H, theirs.H)):
            reads = block is not mine.F
            for i, (layer, source) in enumerate(zip(block, other)):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
                rows = source.weight.shape[0]
                seen = layer.weight.shape[1] - source.weight.shape[1]
                if reads:  # z_down stands behind the three colours
                    layer.weight[:rows, :3], layer.weight[:rows, 3 + seen :] = source.weight.split(
                        [3, source.weight.shape[1] - 3], 1
                    )
                else:
                    layer.weight[:rows] = source.weight
                layer.bias[:rows] = source.bias
                assert i < 5
    x = pictures(1, 3, 16, 16)
    torch.testing.assert_close(dual.encode(x).picture, plain.encode(x).picture)
    torch.testing.assert_close(dual.encode(x).latent[:, 2:], plain.encode(x).latent)
    torch.testing.assert_close(dual.upscale(x), plain.upscale(x))


def test_both_latents_count():
    network, x = shaken(DualLatentRescaler(2, 2, 6)), pictures(1, 3, 16, 16)
    z = torch.ones(1, 2, 8, 8)
    assert not torch.equal(network.downscale(x, z, quantize=False), network.downscale(x, quantize=False))
    draws = [network.upscale(x, tau=0.5, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    y = network.encode(x, z)
    torch.testing.assert_close(network.upscale(y.picture.clamp(0, 1), y.latent).shape, x.shape)


# ---- eight bits ----


def test_the_small_picture_survives_a_png():
    from PIL import Image

    small = shaken(DualLatentRescaler(2, 2, 6)).downscale(pictures(1, 3, 16, 24))
    buffer = io.BytesIO()
    Image.fromarray((small[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "PNG")
    again = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(small, again)
    assert small.min() >= 0
    assert small.max() <= 1


def test_gradients_pass_the_rounding_and_training_learns():
    torch.manual_seed(0)
    network = DualLatentRescaler(2, 1, 8, 1, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, 16)
    x = ((ramp + ramp[:, None]) / 2)[None, None].repeat(2, 3, 1, 1)
    reference = torch.nn.functional.avg_pool2d(x, 2)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = rescaling_loss(network(x), x, reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert losses[-1] < losses[0] / 3


def test_cycle_is_down_and_up():
    network, x = shaken(DualLatentRescaler(2, 2, 6)), pictures(1, 3, 16, 16)
    cycle = network(x)
    torch.testing.assert_close(cycle.restored.clamp(0, 1), network.upscale(network.downscale(x)))
    torch.testing.assert_close(cycle.small, network.downscale(x, quantize=False))
    noisy = network(x, tau=0.1, sigma_down=0.1, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(noisy.small, cycle.small)


def test_loss_by_hand():
    x = torch.zeros(1, 1, 2, 2)
    cycle = RescalingCycle(
        torch.full((1, 1, 1, 1), 0.5),
        torch.full((1, 1, 2, 2), 0.25),
        torch.full((1, 3, 1, 1), 2.0),
        torch.ones(1, 1, 1, 1),
    )
    reference = torch.zeros(1, 1, 1, 1)
    assert rescaling_loss(cycle, x, reference).item() == pytest.approx((4 * 0.25 + 1.0 + 6.0 + 1.0) / 4)
    assert rescaling_loss(cycle, x, reference, guide=0, latent=0, down=0).item() == pytest.approx(0.25)


# ---- a module like others ----


def test_gradcheck():
    network = shaken(DualLatentRescaler(2, 1, 2, 1).double(), std=0.3)
    x = pictures(1, 3, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network.encode(x).latent, (x,), fast_mode=True)
    y = pictures(1, 3, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: network.decode(y).picture, (y,), fast_mode=True)


def test_samples_do_not_see_each_other():
    network, x = shaken(DualLatentRescaler(4, 1, 4)), pictures(3, 3, 16, 16)
    torch.testing.assert_close(network.downscale(x, quantize=False)[1:2], network.downscale(x[1:2], quantize=False))


def test_state_dict_copy_and_channels_last():
    network, x = shaken(DualLatentRescaler(2, 2, 4)), pictures(1, 3, 16, 16)
    other = DualLatentRescaler(2, 2, 4)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.downscale(x), network.downscale(x))
    assert torch.equal(copy.deepcopy(network).upscale(x), network.upscale(x))
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network.upscale(last), network.upscale(x))


def test_autocast_stays_invertible():
    network, x = shaken(DualLatentRescaler(2, 2, 6), std=0.05), pictures(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network.encode(x)
        back = network.decode(y.picture, y.latent).picture
    assert y.picture.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=0, atol=1e-2)


@pytest.mark.slow
@pytest.mark.bad_input  # the shapes' checks, which run in tests only, cannot be compiled
def test_compiles():
    network, x = shaken(DualLatentRescaler(2, 1, 4)), pictures(1, 3, 16, 16)
    torch.testing.assert_close(torch.compile(network.downscale)(x), network.downscale(x))
    torch.testing.assert_close(torch.compile(network.upscale)(x), network.upscale(x))


def test_couplings_and_their_bound():
    layer = shaken(AffineCoupling(2, 3, 4, clamp=0.5), std=3.0)
    assert layer.log_scale(pictures(1, 2, 8, 8)).abs().max() <= 0.5
    chain = shaken(Couplings(3, 2, 3, 4).double())
    x = pictures(2, 5, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(chain.inverse(chain(x)), x)
    assert torch.equal(chain.with_log_jacobian(x)[0], chain(x))


def test_shipped_networks_restore_more_than_interpolation():
    from hadamard.data import photographs

    x = photographs("test", colour=True)["cat"][None, :, 100:196, 150:246]
    for scale, least in ((2, 2.0), (4, 0.5)):
        network = DualLatentRescaler.pretrained(scale).requires_grad_(False)
        small = torch.nn.functional.interpolate(x, scale_factor=1 / scale, mode="bicubic", antialias=True)
        plain = torch.nn.functional.interpolate(small, scale_factor=scale, mode="bicubic", antialias=True)
        errors = [(y - x).square().mean().log10() for y in (network.upscale(network.downscale(x)), plain)]
        assert 10 * (errors[1] - errors[0]) > least
        assert -10 * (network.downscale(x) - small).square().mean().log10() > 33


# ---- hiding ----


@pytest.mark.parametrize("latent", [0, 2])
def test_hiding_is_exact_both_ways(latent):
    network = shaken(DualLatentHider(2, 5, latent).double(), std=0.05)
    cover, secret = pictures(2, 2, 3, 8, 12, dtype=torch.float64)
    hidden = network.encode(cover, secret)
    back = network.decode(hidden.stego, hidden.latent)
    torch.testing.assert_close(back.secret, secret)
    torch.testing.assert_close(back.cover, cover)
    assert back.latent.numel() == 0 or back.latent.abs().max() < 1e-10
    assert not torch.allclose(hidden.stego, cover)


def test_untrained_the_carrier_is_the_cover():
    cover, secret = pictures(2, 1, 3, 8, 8)
    network = DualLatentHider(2, 4)
    torch.testing.assert_close(network.hide(cover, secret), (cover * 255).round() / 255)
    hidden, revealed = network(cover, secret)
    torch.testing.assert_close(hidden.latent[:, 2:].square().sum(), secret.square().sum())
    assert revealed.secret.abs().max() < 1e-6


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: DualLatentRescaler(3), "scale must be one of 2, 4, 8, got 3"),
        (lambda n: DualLatentRescaler(2, 0), "count must be >= 1, got 0"),
        (lambda n: DualLatentRescaler(2, n_latent_down=-1), "n_latent_down must be >= 0, got -1"),
        (lambda n: DualLatentRescaler.pretrained(8), "scale must be one of 2, 4, got 8"),
        (lambda n: n.downscale(pictures(1, 3, 9, 8)), "x must have a height and width that are multiples of scale=2"),
        (lambda n: n.downscale(pictures(1, 1, 8, 8)), r"x must have shape \(..., 3, \*, \*\), got \(1, 1, 8, 8\)"),
        (lambda n: n.downscale(2 * pictures(1, 3, 8, 8)), "x must be >= 0 and <= 1, got"),
        (lambda n: n.downscale(pictures(1, 3, 8, 8).byte()), "x must have a floating dtype, got torch.uint8"),
        (lambda n: n.downscale(torch.full((1, 3, 8, 8), torch.nan)), "x must be finite"),
        (lambda n: n.encode(pictures(1, 3, 8, 8), pictures(1, 2, 8, 8)), r"z_down must have shape \(..., 1, 2, 4, 4"),
        (lambda n: n.upscale(pictures(1, 3, 4, 4), pictures(1, 9, 4, 4)), r"z_up must have shape \(..., 1, 11, 4, 4\)"),
        (lambda n: n.upscale(pictures(1, 3, 4, 4) - 1), "small must be >= 0 and <= 1, got"),
        (lambda n: n.upscale(pictures(1, 3, 4, 4), tau=-1), "tau must be >= 0, got -1"),
        (lambda n: DualLatentHider(1, 4).hide(*pictures(2, 1, 3, 8, 8)[:, :, :, :, :7]), "cover must have an even"),
        (lambda n: DualLatentHider(1).hide(pictures(1, 3, 8, 8), pictures(1, 3, 8, 6)), "secret must have the cover"),
        (lambda n: DualLatentHider(1, 4).reveal(pictures(1, 3, 8, 7)), "stego must have an even height and width"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(DualLatentRescaler(2, 1, 4))
