import pytest
import torch

from hadamard.diffusion import DiffusersDenoiser, as_denoiser, convert, noise_levels

KINDS = ("sample", "epsilon", "v_prediction", "noise", "score")


def _draw():
    g = torch.Generator().manual_seed(0)
    x0, z = (torch.randn(3, 2, 4, generator=g, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    return x0, z, sigma, x0 + sigma[:, None, None] * z


@pytest.mark.parametrize("given", KINDS)
@pytest.mark.parametrize("wanted", KINDS)
def test_every_pair_by_the_definitions(given, wanted):
    x0, z, sigma, x = _draw()
    s = sigma[:, None, None]
    a = 1 / (1 + s**2)
    truth = {
        "sample": x0, "epsilon": z, "noise": s * z, "v_prediction": a.sqrt() * z - (1 - a).sqrt() * x0, "score": -z / s,
    }  # fmt: skip
    torch.testing.assert_close(convert(truth[given], x, sigma, given, wanted), truth[wanted])


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_same_clean_picture_as_a_step_of_ddim(prediction):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(50)
    x_t = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def net(x, t):
        return torch.sin(x + t.float().reshape(-1, 1, 1, 1) / 300)

    denoise = DiffusersDenoiser(net, scheduler)
    for t in (0, 400, 980):
        sigma = float(noise_levels(scheduler)[t])
        expected = scheduler.step(net(x_t, torch.tensor(t)), t, x_t).pred_original_sample
        found = denoise(x_t * (1 + sigma**2) ** 0.5, sigma)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * max(1, sigma))


def test_the_best_denoiser_of_normal_numbers_and_its_score():
    s = 0.7
    denoise = as_denoiser(lambda x: x * s**2 / (1 + s**2), "noise")  # blind, at the one level that it knows
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoise(x, s), x / (1 + s**2))
    torch.testing.assert_close(convert(denoise(x, s), x, s, "sample", "score"), -x / (1 + s**2))


def test_levels_by_picture():
    denoise = as_denoiser(lambda x, s: x * s[:, None], "sample", "sigma")
    torch.testing.assert_close(
        denoise(torch.ones(2, 3), torch.tensor([1.0, 2.0])), torch.tensor([[1.0], [2.0]]).expand(2, 3)
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_denoiser(torch.nn.Identity(), "noize"), "prediction must be one of"),
        (lambda: as_denoiser(torch.nn.Identity(), "noise", "tau"), "schedule must be one of"),
        (lambda: as_denoiser(torch.nn.Identity())(torch.ones(2, 3), 0.0), "sigma must be > 0"),
        (lambda: as_denoiser(torch.nn.Identity())(torch.ones(2, 3), torch.ones(3)), "sigma must be one number or 2"),
        (lambda: as_denoiser(torch.nn.Identity())(torch.full((2, 3), torch.nan), 1.0), "x must be finite"),
        (lambda: noise_levels(torch.tensor([0.2, 0.8])), "schedule must decrease"),
        (lambda: as_denoiser(torch.nn.Identity(), "epsilon", torch.tensor([0.8, 0.2]))(torch.ones(1, 2), 9.0),
         "sigma must be >= "),
        (lambda: as_denoiser(torch.nn.Identity()).timestep(1.0), "timestep needs a schedule"),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.bad_input
def test_bad_types():
    with pytest.raises(TypeError, match="schedule must have alphas_cumprod"):
        noise_levels([0.9, 0.1])
    with pytest.raises(TypeError, match="net must be callable, got int"):
        as_denoiser(3)
