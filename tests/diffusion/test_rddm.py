"""Residual denoising against closed forms, diffusers' own schedulers, and a Gaussian whose answer is known."""

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, SchedulerMixin, UNet2DModel
from PIL import Image
from torch import nn

from hadamard.diffusion import AutoObjective, RDDMPipeline, RDDMScheduler, rddm_loss, rddm_output

SCHEDULES = ("decreased", "increased", "average")
KINDS = ("residual", "epsilon", "residual_epsilon", "sample_epsilon")


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pictures(dtype=torch.float64):
    """A clean picture, a degraded one, and noise."""
    clean, degraded = draw(2, 2, 3, 4, 4, seed=1, dtype=dtype).clamp(-0.9, 0.9)
    return clean, degraded, draw(2, 3, 4, 4, seed=2, dtype=dtype)


def output(kind, clean, residual, noise):
    """What a network without error gives."""
    parts = {"residual": residual, "epsilon": noise, "sample": clean}
    return torch.cat([parts[name] for name in kind.split("_")], 1)


def network(inputs, outputs, **options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=inputs, out_channels=outputs, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **options,
    ).eval()  # fmt: skip


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Given(nn.Module):
    """A network that answers with what it was given."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen = answer, []

    def forward(self, x, t, **more):
        self.seen.append((x, t, more))
        return type("Output", (), {"sample": self.answer})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("T", [1, 7, 1000])
def test_sums_are_those_of_the_shares(schedule, T):
    scheduler = RDDMScheduler(T, schedule, schedule, sum_scale=0.3)
    t = np.arange(1, T + 1)
    shares = {"increased": t / (T * (T + 1) / 2), "decreased": t[::-1] / (T * (T + 1) / 2), "average": t * 0 + 1 / T}
    sums = np.cumsum(shares[schedule])
    assert abs(scheduler.residual_cumsum.numpy() - sums).max() < 1e-12
    assert abs(scheduler.noise_cumsum.numpy() ** 2 - 0.3 * sums).max() < 1e-12
    assert float(scheduler.residual_cumsum[-1]) == 1.0


def test_timesteps_are_the_authors_grid():
    scheduler = RDDMScheduler()
    for steps in (1, 2, 3, 5, 7, 10, 1000):
        scheduler.set_timesteps(steps)
        expected = [int(t) for t in np.linspace(-1, 999, steps + 1)][:0:-1]
        assert scheduler.timesteps.tolist() == expected
        assert len(set(expected)) == steps


def test_forward_is_the_sum_of_all_steps():
    """The chain of single steps: a share of the residual and noise of that variance each time."""
    scheduler = RDDMScheduler(6, sum_scale=0.5)
    clean, degraded, _ = pictures()
    x, noise = clean.clone(), torch.zeros_like(clean)
    for t, (a, b2) in enumerate(zip(scheduler.residual_cumsum.tolist(), scheduler.noise_cumsum.square().tolist())):
        before = (
            (0.0, 0.0)
            if t == 0
            else (scheduler.residual_cumsum[t - 1].item(), scheduler.noise_cumsum[t - 1].item() ** 2)
        )
        step = (b2 - before[1]) ** 0.5 * draw(*clean.shape, seed=10 + t)
        x, noise = x + (a - before[0]) * (degraded - clean) + step, noise + step
        whole = scheduler.add_noise(clean, noise / b2**0.5, torch.full((2,), t), degraded)
        torch.testing.assert_close(x, whole, rtol=0, atol=1e-12)


def test_forward_has_the_variance_of_the_schedule():
    scheduler = RDDMScheduler(sum_scale=0.04)
    clean = torch.zeros(2, 50_000, dtype=torch.float64)
    noisy = scheduler.add_noise(clean, draw(2, 50_000), torch.tensor([300, 999]))
    expected = scheduler.noise_cumsum[[300, 999]]
    assert ((noisy.std(1) / expected - 1).abs() < 0.02).all()
    assert float(expected[1]) == pytest.approx(0.2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_without_error_any_steps_of_any_schedule_are_exact(kind, scale):
    clean, degraded, noise = pictures()
    for alpha in SCHEDULES:
        for beta in SCHEDULES:
            scheduler = RDDMScheduler(20, alpha, beta, sum_scale=scale, prediction_type=kind)
            for steps in (1, 2, 5, 20):
                scheduler.set_timesteps(steps)
                begin = 19 if kind != "epsilon" else 12  # at the last one nothing of the clean picture is left
                x = scheduler.add_noise(clean, noise, torch.full((2,), begin), degraded)
                for t in [begin, *[t for t in scheduler.timesteps.tolist() if t < begin]]:
                    x = scheduler.step(output(kind, clean, degraded - clean, noise), t, x, degraded).prev_sample
                assert (x - clean).abs().max() < 1e-11


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_turn_into_one_another(kind):
    clean, degraded, noise = pictures()
    scheduler = RDDMScheduler(prediction_type=kind)
    for t in (0, 10, 500, 990):
        x = scheduler.add_noise(clean, noise, torch.full((2,), t), degraded)
        found = scheduler.predict(output(kind, clean, degraded - clean, noise), t, x, degraded)
        for value, expected in zip(found, (clean, degraded - clean, noise)):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_is_that_of_ddim(beta_schedule, eta, kind):
    """With the transformed coefficients, on the same timesteps, with the same noise."""
    theirs = DDIMScheduler(beta_schedule=beta_schedule, clip_sample=False)
    given = theirs if kind == "ddim" else DDPMScheduler(beta_schedule=beta_schedule, clip_sample=False)
    ours = RDDMScheduler.from_ddim(given, variance_type="ddim")
    theirs.set_timesteps(50)
    ours.set_timesteps(timesteps=theirs.timesteps)
    x, chained = draw(2, 3, 4, 4), draw(2, 3, 4, 4)
    for i, t in enumerate(theirs.timesteps.tolist()):
        z, out = draw(2, 3, 4, 4, seed=3 + i), torch.tanh(x)
        expected = theirs.step(out, t, x, eta=eta, variance_noise=z).prev_sample
        single = ours.step(out, t, x, eta=eta, variance_noise=z).prev_sample
        assert (single - expected).abs().max() < 1e-6 * max(1, float(expected.abs().max()))
        chained = ours.step(torch.tanh(chained), t, chained, eta=eta, variance_noise=z).prev_sample
        x = expected
    assert (chained - x).abs().max() < 1e-3 * max(1, float(x.abs().max()))


def test_forward_is_that_of_ddim():
    theirs = DDIMScheduler()
    clean, _, noise = pictures()
    t = torch.tensor([3, 700])
    found = RDDMScheduler.from_ddim(theirs).add_noise(clean, noise, t)
    torch.testing.assert_close(found, theirs.add_noise(clean, noise, t), rtol=0, atol=1e-6)


def test_the_additive_chain_has_less_variance_than_ddim():
    theirs = DDIMScheduler()
    ours = RDDMScheduler.from_ddim(theirs)
    product = float(theirs.alphas_cumprod[480])
    ddim = float(theirs._get_variance(500, 480))
    assert float(ours._variance(500, 480, 1.0)) == pytest.approx(product * ddim, rel=1e-4)
    assert (float(ours._variance(500, 480, 1.0)), ddim) == (
        pytest.approx(0.0168, abs=1e-4),
        pytest.approx(0.1766, abs=1e-4),
    )


@pytest.mark.parametrize("t", [1, 40, 99])
def test_random_steps_draw_from_the_posterior(t):
    """Mean and variance of q(x at t - 1 | x at t, clean, residual), from the product of the two Gaussians."""
    scheduler = RDDMScheduler(100, sum_scale=0.5, prediction_type="residual")
    clean, degraded, noise = pictures()
    residual = degraded - clean
    x = scheduler.add_noise(clean, noise, torch.full((2,), t), degraded)
    (a, before), (b2, var) = (
        s[[t, t - 1]].tolist() for s in (scheduler.residual_cumsum, scheduler.noise_cumsum.square())
    )
    beta2 = b2 - var
    precision = 1 / beta2 + 1 / var
    mean = ((x - (a - before) * residual) / beta2 + (clean + before * residual) / var) / precision
    step = lambda z: scheduler.step(residual, t, x, degraded, eta=1.0, variance_noise=z).prev_sample  # noqa: E731
    still = step(torch.zeros_like(x))
    torch.testing.assert_close(still, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(step(noise) - still, noise / precision**0.5, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_law_of_the_clean_given_the_degraded(eta):
    """A Gaussian whose conditional expectations are known stands for the network."""
    m, s, gain, spread, seen = 0.4, 0.7, 0.8, 0.5, 0.9
    var = 1 / (1 / s**2 + gain**2 / spread**2)
    mean = var * (m / s**2 + gain * seen / spread**2)
    scheduler = RDDMScheduler(prediction_type="sample_epsilon", sum_scale=1.0, clip_sample=False, eta=eta)
    degraded = torch.full((20_000, 1, 1, 1), seen, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(500)
    x = scheduler.start(degraded, generator)
    for t in scheduler.timesteps.tolist():
        a, b = float(scheduler.residual_cumsum[t]), float(scheduler.noise_cumsum[t])
        off = x - a * degraded - (1 - a) * mean
        clean = mean + var * (1 - a) / (var * (1 - a) ** 2 + b**2) * off
        noise = (x - a * degraded - (1 - a) * clean) / b
        x = scheduler.step(torch.cat([clean, noise], 1), t, x, degraded, generator=generator).prev_sample
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x.var()) == pytest.approx(var, rel=0.05)


def test_the_last_step_gives_the_clean_estimate():
    scheduler = RDDMScheduler(prediction_type="residual")
    scheduler.set_timesteps(4)
    _, degraded, noise = pictures()
    out = scheduler.step(draw(2, 3, 4, 4, seed=9), scheduler.timesteps[-1], noise, degraded, eta=1.0)
    assert torch.equal(out.prev_sample, out.pred_original_sample)


def test_residuals_may_reach_two():
    white, black = torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 2, 2)
    step = lambda **options: RDDMScheduler(**options).step(white - black, 0, white, white).prev_sample  # noqa: E731
    assert torch.equal(step(), black)
    assert torch.equal(step(clip_residual_range=1.0), torch.zeros_like(black))  # as the authors' code clips


def test_schedules_are_exchanged_after_training():
    """First the residual, then the noise, or both at once: to a network without error it is all the same."""
    clean, degraded, noise = pictures()
    T = 100
    late = [max(2 * (t + 1) / T - 1, 0) for t in range(T)]
    early = [min(2 * (t + 1) / T, 1) ** 0.5 * 0.1 for t in range(T)]
    trained = RDDMScheduler(num_train_timesteps=T, prediction_type="residual_epsilon", time_input="cumsum")
    paths = [
        trained,
        RDDMScheduler.from_config(trained.config, alpha_schedule="average", beta_schedule="decreased"),
        RDDMScheduler.from_config(trained.config, residual_cumsum=late, noise_cumsum=early),
    ]
    told = []
    for scheduler in paths:
        scheduler.set_timesteps(10)
        x = scheduler.start(degraded, torch.Generator().manual_seed(0))
        noise = (x - degraded) / 0.1
        for t in scheduler.timesteps:
            told.append(tuple(float(v) for v in scheduler.time_inputs(t)))
            x = scheduler.step(torch.cat([degraded - clean, noise], 1), t, x, degraded).prev_sample
        assert (x - clean).abs().max() < 1e-12
    assert told[0] == told[10] == told[20] == (pytest.approx(100), pytest.approx(10))
    assert told[29][0] == 0 < told[29][1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_single_precision_at_least(dtype):
    clean, degraded, noise = pictures(torch.float32)
    scheduler = RDDMScheduler(prediction_type="epsilon")
    scheduler.set_timesteps(10)
    args = [v.to(dtype) for v in (noise, clean, degraded)]
    found = scheduler.step(args[0], 899, *args[1:])
    exact = scheduler.step(args[0].double(), 899, *(v.double() for v in args[1:]))
    assert found.prev_sample.dtype == dtype
    torch.testing.assert_close(found.prev_sample, exact.prev_sample.to(dtype), rtol=1e-3, atol=1e-4)


class TestAsASchedulerOfDiffusers:
    """What diffusers asks of its own schedulers."""

    def full_loop(self, scheduler, steps=10):
        scheduler.set_timesteps(steps)
        x = draw(2, 3, 4, 4, dtype=torch.float32) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
        return x

    def test_is_one(self):
        assert issubclass(RDDMScheduler, SchedulerMixin)
        assert all(hasattr(RDDMScheduler(), name) for name in ("init_noise_sigma", "scale_model_input", "order"))
        assert RDDMScheduler().compatibles == []

    @pytest.mark.parametrize("options", [
        {"sum_scale": 1.0}, {"alpha_schedule": "average"}, {"prediction_type": "epsilon"}, {"num_train_timesteps": 77},
        {"residual_cumsum": [0.5, 1.0], "noise_cumsum": [0.1, 0.2], "num_train_timesteps": 2},
    ])  # fmt: skip
    def test_saves_and_loads(self, options, tmp_path):
        scheduler = RDDMScheduler(**options)
        scheduler.save_pretrained(tmp_path)
        again = RDDMScheduler.from_pretrained(tmp_path)
        assert all(again.config[name] == value for name, value in scheduler.config.items() if name[0] != "_")
        steps = min(10, len(scheduler))
        assert torch.equal(self.full_loop(again, steps), self.full_loop(scheduler, steps))

    def test_converted_saves_and_loads_every_bit(self, tmp_path):
        scheduler = RDDMScheduler.from_ddim(DDIMScheduler())
        scheduler.save_pretrained(tmp_path)
        again = RDDMScheduler.from_pretrained(tmp_path)
        assert torch.equal(again.residual_cumsum, scheduler.residual_cumsum)
        assert torch.equal(again.noise_cumsum, scheduler.noise_cumsum)

    def test_reports_unused_options(self):
        config = RDDMScheduler().config
        scheduler, unused = RDDMScheduler.from_config(config, sum_scale=0.5, nonsense=1, return_unused_kwargs=True)
        assert (scheduler.config.sum_scale, unused) == (0.5, {"nonsense": 1})

    @pytest.mark.parametrize("t", [0, 1, 49, 500, 999])
    def test_steps_from_any_timestep(self, t):
        scheduler = RDDMScheduler()
        scheduler.set_timesteps(50)
        x = draw(2, 3, 4, 4, dtype=torch.float32)
        assert scheduler.step(0.1 * x, t, x).prev_sample.shape == x.shape
        assert torch.equal(
            scheduler.step(0.1 * x, torch.tensor(t), x).prev_sample, scheduler.step(0.1 * x, t, x).prev_sample
        )

    def test_tuple_and_output_are_the_same(self):
        scheduler = RDDMScheduler(eta=1.0)
        scheduler.set_timesteps(5)
        x = draw(2, 3, 4, 4)
        one = scheduler.step(x, 799, x, generator=torch.Generator().manual_seed(0))
        other = scheduler.step(x, 799, x, generator=torch.Generator().manual_seed(0), return_dict=False)
        assert all(torch.equal(a, b) for a, b in zip(one.to_tuple(), other, strict=True))

    def test_steps_before_set_timesteps_are_single(self):
        scheduler = RDDMScheduler(prediction_type="residual")
        clean, degraded, noise = pictures()
        x = scheduler.add_noise(clean, noise, torch.full((2,), 500), degraded)
        back = scheduler.step(degraded - clean, 500, x, degraded).prev_sample
        torch.testing.assert_close(back, scheduler.add_noise(clean, noise, torch.full((2,), 499), degraded))

    def test_one_generator_for_each_picture(self):
        scheduler = RDDMScheduler(eta=1.0)
        scheduler.set_timesteps(5)
        x = draw(2, 3, 4, 4)
        both = scheduler.step(x, 799, x, generator=[torch.Generator().manual_seed(i) for i in (3, 4)]).prev_sample
        one = scheduler.step(x[1:], 799, x[1:], generator=torch.Generator().manual_seed(4)).prev_sample
        assert torch.equal(both[1:], one)

    def test_a_pipeline_of_diffusers_runs_it(self):
        """The generating pipeline for any scheduler, beside the one for DDIM."""
        unet, images = network(1, 1), []
        theirs = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
        for pipe in (DDIMPipeline(unet, theirs), DDPMPipeline(unet, RDDMScheduler.from_ddim(theirs))):
            generator = torch.Generator().manual_seed(0)
            images.append(quiet(pipe)(2, generator, num_inference_steps=5, output_type="np").images)
        assert abs(images[0] - images[1]).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conditional", [True, False])
def test_loss_is_zero_without_error(kind, conditional):
    clean, degraded, _ = pictures()
    scheduler = RDDMScheduler(prediction_type=kind)
    seen = degraded if conditional else None
    generator = torch.Generator().manual_seed(5)
    torch.randint(1000, (2,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    residual = degraded - clean if conditional else -clean
    net = Given(output(kind, clean, residual, noise))
    again = torch.Generator().manual_seed(5)
    assert float(rddm_loss(net, scheduler, clean, seen, generator=again)) == 0
    assert net.seen[0][0].shape[1] == (6 if conditional else 3)
    t = torch.randint(1000, (2,), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(net.seen[0][0][:, :3], scheduler.add_noise(clean, noise, t, seen))
    off = Given(net.answer + 0.5)
    assert float(rddm_loss(off, scheduler, clean, seen, generator=again)) > 0


def test_losses_of_two_pictures_add_up():
    clean, degraded, _ = pictures()
    scheduler = RDDMScheduler(prediction_type="residual_epsilon")
    make = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    generator = make(5)
    torch.randint(1000, (2,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    net = Given(torch.cat([degraded - clean + 0.25, noise - 0.5], 1))
    assert float(rddm_loss(net, scheduler, clean, degraded, generator=make(5))) == pytest.approx(0.75)
    assert float(rddm_loss(net, scheduler, clean, degraded, loss="l2", generator=make(5))) == pytest.approx(0.3125)


def test_two_networks_are_told_their_own_sums():
    clean, degraded, noise = pictures()
    scheduler = RDDMScheduler(prediction_type="residual_epsilon", time_input="cumsum")
    first, second = Given(clean), Given(noise)
    t = torch.tensor([10, 999])
    found = rddm_output(first, scheduler, noise, t, degraded, unet_noise=second, class_labels=torch.tensor([1, 2]))
    assert torch.equal(found, torch.cat([clean, noise], 1))
    torch.testing.assert_close(first.seen[0][1].double(), 1000 * scheduler.residual_cumsum[t], rtol=1e-6, atol=0)
    torch.testing.assert_close(second.seen[0][1].double(), 1000 * scheduler.noise_cumsum[t], rtol=1e-6, atol=0)
    assert first.seen[0][2]["class_labels"].tolist() == second.seen[0][2]["class_labels"].tolist() == [1, 2]
    assert torch.equal(first.seen[0][0], torch.cat([noise, degraded], 1))


def test_automatic_objective_mixes_both_readings():
    """The loss at weight 1 and 0 is that of the single objectives, and its slope there is a difference quotient."""
    clean, degraded, _ = pictures()
    scheduler = RDDMScheduler(prediction_type="residual", sum_scale=1.0)
    net = Given(0.1 * draw(2, 3, 4, 4, seed=8))
    auto = AutoObjective().double()

    def loss(w):
        auto.weight.data.fill_(w)
        return auto(net, scheduler, clean, degraded, generator=torch.Generator().manual_seed(5))

    for w, kind in ((1.0, "residual"), (0.0, "epsilon")):
        alone = rddm_loss(
            net, RDDMScheduler(prediction_type=kind, sum_scale=1.0), clean, degraded,
            generator=torch.Generator().manual_seed(5),
        )  # fmt: skip
        assert float(loss(w).detach()) == pytest.approx(float(alone))
    value = loss(0.3)
    value.backward()
    quotient = (loss(0.3 + 1e-6).detach() - loss(0.3 - 1e-6).detach()) / 2e-6
    assert float(auto.weight.grad) == pytest.approx(float(quotient), rel=1e-4)


def test_automatic_objective_decides_once_it_leaves_the_middle():
    auto = AutoObjective(threshold=0.1)
    for weight, choice in ((0.5, None), (0.59, None), (0.61, "residual"), (0.39, "epsilon")):
        auto.weight.data.fill_(weight)
        assert auto.choice == choice


def test_gradients_reach_the_network():
    unet = network(6, 3)
    clean, degraded, _ = pictures(torch.float32)
    rddm_loss(unet, RDDMScheduler(), clean, degraded).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in unet.parameters())


@pytest.fixture(scope="module")
def restorer():
    return quiet(RDDMPipeline(network(6, 3), RDDMScheduler()))


def test_pipeline_is_its_loop_on_the_padded_picture(restorer):
    image = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    found = restorer(image, generator=torch.Generator().manual_seed(1), output_type="pt").images
    larger = torch.nn.functional.pad(image * 2 - 1, (0, 1, 0, 1), mode="reflect")
    scheduler = RDDMScheduler()
    scheduler.set_timesteps(5)
    x = scheduler.start(larger, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(restorer.unet(torch.cat([x, larger], 1), t).sample, t, x, larger).prev_sample
    torch.testing.assert_close(found, ((x + 1) / 2).clamp(0, 1)[..., :7, :9])


def test_pipeline_takes_and_gives_what_diffusers_does(restorer):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    options = {"generator": None, "output_type": "np"}
    make = lambda image: restorer(image, **options | {"generator": torch.Generator().manual_seed(1)}).images  # noqa: E731
    first = make(Image.fromarray(pixels))
    assert first.shape == (1, 8, 12, 3)
    assert abs(make(pixels[None].astype(np.float32) / 255) - first).max() < 1e-5
    assert abs(make(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255) - first).max() < 1e-5
    assert make([Image.fromarray(pixels)] * 2).shape == (2, 8, 12, 3)
    grey = make(Image.fromarray(pixels[..., 0]))
    assert grey.shape == (1, 8, 12, 3)
    assert isinstance(restorer(Image.fromarray(pixels)).images[0], Image.Image)
    assert restorer(Image.fromarray(pixels), output_type="latent", return_dict=False)[0].shape == (1, 3, 8, 12)


def test_pipeline_saves_and_loads(tmp_path):
    pipe = quiet(RDDMPipeline(network(2, 1), RDDMScheduler(prediction_type="residual_epsilon"), network(2, 1)))
    single = quiet(RDDMPipeline(network(2, 1), RDDMScheduler()))
    image = torch.rand(1, 1, 8, 8)
    for i, p in enumerate((pipe, single)):
        p.save_pretrained(tmp_path / str(i))
        again = quiet(RDDMPipeline.from_pretrained(tmp_path / str(i)))
        assert type(again.scheduler) is RDDMScheduler
        assert (again.unet_noise is None) == (p.unet_noise is None)
        images = [q(image, generator=torch.Generator().manual_seed(0), output_type="np").images for q in (p, again)]
        assert abs(images[0] - images[1]).max() < 1e-5


def test_pipeline_generates_what_ddim_generates():
    unet = network(1, 1)
    plain = quiet(DDIMPipeline(unet, DDIMScheduler(clip_sample=False, timestep_spacing="trailing")))
    ours = quiet(RDDMPipeline(unet, RDDMScheduler.from_ddim(plain.scheduler)))
    images = [
        p(batch_size=2, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np").images
        for p in (plain, ours)
    ]
    assert abs(images[0] - images[1]).max() < 1e-4


def test_the_restorer_that_ships_restores():
    """Rain on a photograph that it was not trained on."""
    from hadamard.data import photographs
    from hadamard.imaging.degradations import rain

    pipe = quiet(RDDMPipeline.pretrained())
    clean = photographs("test", colour=True)["cat"][None, :, 100:190, 150:243]
    wet = rain(clean, generator=torch.Generator().manual_seed(0))
    found = pipe(
        wet, class_labels=pipe.tasks.index("rain"), generator=torch.Generator().manual_seed(0), output_type="pt"
    )
    error = lambda x: float((x - clean).square().mean())  # noqa: E731
    assert error(found.images) < 0.6 * error(wet)


NET = Given(torch.zeros(2, 3, 4, 4))
X = torch.zeros(2, 3, 4, 4)


@pytest.mark.bad_input
@pytest.mark.parametrize(("call", "words"), [
    (lambda: RDDMScheduler(sum_scale=0.0), "sum_scale must be > 0"),
    (lambda: RDDMScheduler(sum_scale=1.5), "sum_scale"),
    (lambda: RDDMScheduler(alpha_schedule="cosine"), "alpha_schedule must be one of"),
    (lambda: RDDMScheduler(prediction_type="noise"), "prediction_type must be one of"),
    (lambda: RDDMScheduler(variance_type="ddim"), "from_ddim"),
    (lambda: RDDMScheduler(residual_cumsum=[0.5]), "residual_cumsum must be 1000 numbers"),
    (lambda: RDDMScheduler(2, noise_cumsum=[0.5, 0.2]), "do not fall"),
    (lambda: RDDMScheduler(2, noise_cumsum=[0.5, 1.2]), "noise_cumsum"),
    (lambda: RDDMScheduler(eta=2), "eta"),
    (lambda: RDDMScheduler().set_timesteps(1001), "num_inference_steps must be >= 1 and <= 1000"),
    (lambda: RDDMScheduler().set_timesteps(), "either"),
    (lambda: RDDMScheduler().set_timesteps(timesteps=[3, 5]), "timesteps must fall"),
    (lambda: RDDMScheduler().set_timesteps(timesteps=[1000]), "timesteps must fall"),
    (lambda: RDDMScheduler().step(X, 1000, X), "timestep must be"),
    (lambda: RDDMScheduler().step(X, 5, X, X[:1]), "input_image must have sample's shape"),
    (lambda: RDDMScheduler().step(X, 5, X * torch.nan), "sample must be finite"),
    (lambda: RDDMScheduler().step(X * torch.nan, 5, X), "model_output must be finite"),
    (lambda: RDDMScheduler(prediction_type="residual_epsilon").step(X, 5, X), "model_output must have shape"),
    (lambda: RDDMScheduler().step(X, 5, X, X, eta=-1), "eta"),
    (lambda: RDDMScheduler().add_noise(X, X, torch.tensor([0, 1000])), "timesteps must be"),
    (lambda: RDDMScheduler.from_ddim(DDIMScheduler(prediction_type="v_prediction")), "v_prediction"),
    (lambda: RDDMScheduler.from_ddim(nn.Identity()), "alphas_cumprod"),
    (lambda: rddm_loss(NET, RDDMScheduler(), X, X, loss="huber"), "loss must be one of"),
    (lambda: rddm_loss(NET, RDDMScheduler(prediction_type="residual_epsilon"), X, X), "6 channels"),
    (lambda: rddm_loss(NET, RDDMScheduler(), X, X, unet_noise=NET), "unet_noise goes with"),
    (lambda: AutoObjective(threshold=0.5), "threshold"),
    (lambda: RDDMPipeline(network(6, 3), RDDMScheduler())(torch.ones(1, 3, 8, 8) * 2), "image must be"),
    (lambda: RDDMPipeline(network(6, 3), RDDMScheduler())(X * torch.nan), "image must be finite"),
    (lambda: RDDMPipeline(network(6, 3), RDDMScheduler())(torch.zeros(1, 1, 1, 8, 8)), "incorrect format"),
    (lambda: RDDMPipeline(network(6, 3), RDDMScheduler())(), "to generate"),
    (lambda: RDDMPipeline(network(3, 3), RDDMScheduler())(torch.zeros(1, 3, 8, 8)), "to restore"),
    (lambda: RDDMPipeline(network(6, 3), RDDMScheduler())(X, class_labels=[1, 2, 3]), "class_labels"),
])  # fmt: skip
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.bad_input
def test_bad_types_are_refused():
    with pytest.raises(TypeError, match="model_output must have dtype"):
        RDDMScheduler().step(X.double(), 5, X)
    with pytest.raises(TypeError, match="timestep"):
        RDDMScheduler().step(X, 5.5, X)
