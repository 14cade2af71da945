import pytest
import torch

from hadamard.data.cine import PROVENANCE, acquire, beating_heart, coil_maps, kt_mask
from hadamard.spectral.fft import fft_centred


def test_series_moves_and_repeats_with_its_seed():
    series = beating_heart(12, 48, random_state=3)
    assert torch.equal(series, beating_heart(12, 48, random_state=3))
    assert not torch.equal(series, beating_heart(12, 48, random_state=4))
    assert series.abs().max() == pytest.approx(1)
    change = (series.abs().amax(0) - series.abs().amin(0))[24 - 8 : 24 + 12, 24 - 8 : 24 + 10]
    assert change.max() > 0.3


def test_contrast_reaches_the_right_ventricle_first():
    brightness = beating_heart(24, 64).abs()[:, 20:44, 20:44].amax((-2, -1))
    assert brightness[-1] > brightness[0] + 0.3


@pytest.mark.parametrize("acceleration", [2, 4, 6, 8])
def test_mask_has_the_acceleration_and_the_centre(acceleration):
    mask = kt_mask(5, 48, 40, acceleration, random_state=1)
    assert mask.sum((-2, -1)).eq(48 // acceleration * 40).all()
    assert mask[:, 23:25].all()
    assert not torch.equal(mask[0], mask[1])


def test_noise_and_outliers_have_the_size_that_was_asked_for():
    series, mask = beating_heart(6, 32), torch.ones(6, 32, 32, dtype=torch.bool)
    exact = fft_centred(series)
    noise = acquire(series, mask, noise=0.05) - exact
    assert noise.abs().square().mean().sqrt() == pytest.approx(0.05, rel=0.05)
    spikes = acquire(series, mask, noise=0.0, outliers=0.02) - exact
    assert spikes.norm() ** 2 == pytest.approx(0.02 * series.numel(), rel=0.2)


def test_coils_see_the_series_through_their_maps():
    series, mask, sens = beating_heart(2, 16), torch.ones(2, 16, 16, dtype=torch.bool), coil_maps(3, 16, 16)
    assert torch.allclose(acquire(series, mask, sens, noise=0)[1], fft_centred(series * sens[1]), atol=1e-5)


def test_provenance_says_that_it_is_generated():
    assert PROVENANCE.startswith("Generated")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: beating_heart(0), "frames must be >= 1"),
        (lambda: beating_heart(2, 4), "size must be >= 16"),
        (lambda: kt_mask(1, 8, 8, 0.5), "acceleration must be >= 1"),
        (lambda: acquire(torch.ones(2, 4, 4), torch.ones(2, 4, 4)), "series must have a complex dtype"),
        (lambda: acquire(beating_heart(2, 16), torch.ones(2, 8, 8, dtype=torch.bool)), "mask must have shape"),
        (
            lambda: acquire(beating_heart(2, 16), torch.ones(2, 16, 16, dtype=torch.bool), outliers=2),
            "outliers must be",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
