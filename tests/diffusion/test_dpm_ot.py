"""DPM-OT against plain samplers that start where it starts, and as a citizen of diffusers."""

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)

from hadamard.diffusion import DPMOTPipeline, LatentTransport, memorisation_report, mode_mixture_ratio
from hadamard.transport import semi_discrete_ot

SCHEDULERS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = draw(24, 2, 8, 8).clamp(-1, 1)
OF = torch.arange(24) % 3


def network(**options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **options,
    ).eval()  # fmt: skip


def pipeline(scheduler=DDIMScheduler, labels=None, steps=20, last=5, **options):
    schedule = scheduler(**options)
    transport = LatentTransport.fit(IMAGES, schedule, steps, last, labels=labels, tol=0.5)
    pipe = DPMOTPipeline(network(num_class_embeds=None if labels is None else 3), schedule, transport)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plain():
    return pipeline()


@pytest.fixture(scope="module")
def classes():
    return pipeline(labels=OF)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_it_is_the_last_steps_of_the_plain_sampler(scheduler):
    """From the stored latents: the loop that every image-to-image pipeline of diffusers has."""
    pipe, noise = pipeline(scheduler), draw(3, 2, 8, 8, seed=1)
    ours = pipe(noise=noise, output_type="latent", generator=torch.Generator().manual_seed(2)).images
    schedule = scheduler()
    schedule.set_timesteps(20)
    x, generator = pipe.transport(noise), torch.Generator().manual_seed(2)
    torch.randint(24, (3,), generator=generator)  # the classes that there are not
    if hasattr(schedule, "set_begin_index"):
        schedule.set_begin_index(15)
    with torch.no_grad():
        for t in schedule.timesteps[15:]:
            out = pipe.unet(schedule.scale_model_input(x, t), t).sample
            more = {} if scheduler is DPMSolverMultistepScheduler else {"generator": generator}
            x = schedule.step(out, t, x, **more).prev_sample
    assert torch.equal(ours, x)


def test_with_all_steps_it_is_the_whole_sampler(monkeypatch):
    """The stored latents are then nearly noise; from them diffusers' own pipeline makes the same pictures."""
    pipe, noise = pipeline(steps=10, last=10), draw(3, 2, 8, 8, seed=1)
    ours = pipe(noise=noise, output_type="np").images
    reference = DDIMPipeline(pipe.unet, DDIMScheduler())
    reference.set_progress_bar_config(disable=True)
    start = pipe.transport(noise)
    monkeypatch.setattr("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", lambda *_, **__: start)
    theirs = reference(batch_size=3, num_inference_steps=10, output_type="np").images
    assert abs(ours - theirs).max() < 1e-6


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_latents_are_the_schedulers_noisy_pictures(scheduler):
    schedule = scheduler()
    transport = LatentTransport.fit(IMAGES, schedule, 20, 5, tol=2.0, generator=torch.Generator().manual_seed(3))
    schedule.set_timesteps(20)
    t = schedule.timesteps[-5]
    expected = schedule.add_noise(IMAGES, draw(*IMAGES.shape, seed=3), t.expand(24))
    assert torch.equal(transport.latents, expected)
    assert transport.config.timestep == float(t)


def test_the_map_is_that_of_transport(plain):
    found = semi_discrete_ot(plain.transport.latents.flatten(1), tol=0.2)
    z = draw(500, 2, 8, 8, seed=4)
    same = (plain.transport.assign(z) == found.assign(z.flatten(1))).float().mean()
    assert same > 0.7  # two solutions of tolerances 0.5 and 0.2
    shares = torch.bincount(plain.transport.assign(draw(5000, 2, 8, 8, seed=5)), minlength=24) / 5000
    assert (shares - 1 / 24).abs().sum() < 0.5


def test_noise_goes_to_latents_of_its_class(classes):
    labels = torch.tensor([2, 0, 0, 1, 2, 1])
    z = draw(6, 2, 8, 8, seed=1)
    found = classes.transport.assign(z, labels)
    assert torch.equal(OF[found], labels)
    for c in range(3):
        rows = OF.eq(c).nonzero()[:, 0]
        sites = classes.transport.latents[rows].flatten(1)
        scores = z[labels == c].flatten(1) @ (sites - sites.mean(0)).T + classes.transport.heights[rows]
        assert torch.equal(found[labels == c], rows[scores.argmax(1)])


def test_the_network_is_told_the_class(classes):
    noise = draw(2, 2, 8, 8, seed=1)
    both = classes(noise=noise, class_labels=[0, 2], output_type="pt").images
    one = classes(noise=noise[1:], class_labels=2, output_type="pt").images
    torch.testing.assert_close(both[1:], one)
    seen = []
    hook = classes.unet.class_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0].tolist()))
    classes(noise=noise, class_labels=[0, 2])
    hook.remove()
    assert seen == [[0, 2]] * 5


def test_saves_and_loads_as_a_pipeline(classes, tmp_path):
    classes.save_pretrained(tmp_path)
    noise = draw(3, 2, 8, 8, seed=1)
    before = classes(noise=noise, class_labels=[0, 1, 2], output_type="np").images
    pipe = DPMOTPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.transport, LatentTransport)
    assert (pipe(noise=noise, class_labels=[0, 1, 2], output_type="np").images == before).all()
    half = DPMOTPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert (half.transport.latents.dtype, half.transport.heights.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(half.transport.heights, classes.transport.heights)


def test_moves_to_half_precision_but_for_its_heights(plain):
    transport = LatentTransport.from_config(plain.transport.config)
    transport.load_state_dict(plain.transport.state_dict())
    transport = transport.to(torch.float16)
    assert (transport.latents.dtype, transport.heights.dtype) == (torch.float16, torch.float32)
    z = draw(200, 2, 8, 8, seed=1)
    assert (transport.assign(z.half()) == plain.transport.assign(z)).float().mean() > 0.9


def test_output_types_and_generators(plain):
    make = lambda kind, seed=0, **more: plain(  # noqa: E731
        batch_size=2, generator=torch.Generator().manual_seed(seed), output_type=kind, **more
    )
    pt, array, latent = (make(kind).images for kind in ("pt", "np", "latent"))
    assert array.shape == (2, 8, 8, 2)
    torch.testing.assert_close(pt, (latent / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), pt)
    assert torch.equal(make("pt").images, pt)
    assert not torch.equal(make("pt", 1).images, pt)
    assert torch.equal(make("pt", return_dict=False)[0], pt)
    generators = [torch.Generator().manual_seed(k) for k in (0, 1)]
    assert plain(batch_size=2, generator=generators, output_type="pt").images.shape == pt.shape


def test_another_schedule_of_the_same_timestep():
    pipe = pipeline(timestep_spacing="trailing", steps=20, last=4)  # timesteps 199, 149, 99, 49
    noise = draw(2, 2, 8, 8, seed=1)
    assert pipe(noise=noise, num_inference_steps=10, last_steps=2).images[0] is not None
    with pytest.raises(ValueError, match="the schedule must have the latents' timestep, 199, at last_steps, got 299"):
        pipe(noise=noise, num_inference_steps=10, last_steps=3)


def test_random_coupling_keeps_classes_and_visits_all(classes):
    labels = torch.tensor([0, 1, 2] * 300)
    found = classes.indices(torch.empty(900, 2, 8, 8), labels, "random", torch.Generator().manual_seed(0))
    assert torch.equal(OF[found], labels)
    counts = torch.bincount(found, minlength=24)
    assert counts.min() > 15
    again = classes.indices(torch.empty(900, 2, 8, 8), labels, "random", torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


def test_network_in_half_precision(plain):
    pipe = DPMOTPipeline(network().to(torch.bfloat16), DDIMScheduler(), plain.transport)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(noise=draw(2, 2, 8, 8), output_type="latent").images
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


class TestChecks:
    def test_memorisation_against_brute_force(self):
        train, held_out, made = draw(40, 3, 4, 4), draw(30, 3, 4, 4, seed=1), draw(20, 3, 4, 4, seed=2) * 0.5
        report = memorisation_report(made, train, held_out)
        nearest = [torch.cdist(x.flatten(1), train.flatten(1)).amin(1) for x in (made, held_out)]
        assert abs(report.generated - float(nearest[0].median())) < 1e-4
        assert abs(report.held_out - float(nearest[1].median())) < 1e-4
        assert report.duplicates == float((nearest[0] < nearest[1].quantile(0.01)).double().mean())
        assert f"ratio {report.ratio:.2f}" in str(report)

    def test_fresh_data_and_copies(self):
        train, held_out, fresh = draw(3, 300, 6)
        assert 0.8 < memorisation_report(fresh, train, held_out).ratio < 1.25
        copies = memorisation_report(train[:50], train, held_out)
        assert (copies.ratio, copies.duplicates) == (0.0, 1.0)

    def test_mode_mixture(self):
        p = torch.tensor([[0.5, 0.5, 0.0], [0.75, 0.25, 0.0], [0.76, 0.24, 0.0], [1.0, 0.0, 0.0]])
        assert mode_mixture_ratio(p) == 0.5
        assert mode_mixture_ratio(p, 0.5) == 0.25

    @pytest.mark.bad_input
    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"generated must have shape \(..., 6\), got \(4, 5\)"):
            memorisation_report(draw(4, 5), draw(4, 6), draw(4, 6))
        with pytest.raises(ValueError, match="held_out must be finite"):
            memorisation_report(draw(4, 6), draw(4, 6), draw(4, 6) / 0)
        with pytest.raises(ValueError, match="threshold must be > 0 and <= 0.5, got 0.7"):
            mode_mixture_ratio(torch.full((2, 2), 0.5), 0.7)
        with pytest.raises(ValueError, match="rows that sum to 1"):
            mode_mixture_ratio(torch.full((2, 2), 0.7))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": draw(4, 2, 8)}, r"images must have 4 dimension\(s\), got shape \(4, 2, 8\)"),
        ({"images": draw(4, 2, 8, 8) / 0}, "images must be finite"),
        ({"last_steps": 21}, "last_steps must be <= the schedule's 20 steps, got 21"),
        ({"last_steps": 0}, "last_steps must be >= 1, got 0"),
        ({"labels": torch.zeros(5).long()}, r"labels must have shape \(..., 24\), got \(5,\)"),
        ({"labels": -OF}, "labels must be >= 0, got -2"),
    ],
)
def test_bad_latents(change, message):
    options = {"images": IMAGES, "scheduler": DDIMScheduler(), "num_inference_steps": 20, "last_steps": 5} | change
    with pytest.raises(ValueError, match=message):
        LatentTransport.fit(**options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": draw(2, 2, 4, 4)}, r"noise must have shape \(..., 2, 8, 8\), got \(2, 2, 4, 4\)"),
        ({"noise": draw(2, 2, 8, 8) / 0}, "noise must be finite"),
        ({"class_labels": [0, 1, 2]}, "class_labels must be one or 2, got 3"),
        ({"class_labels": 3}, "class_labels must be classes that have latents, got 3"),
        ({"coupling": "best"}, "coupling must be one of 'optimal', 'random', got 'best'"),
        ({"output_type": "jpg"}, "output_type must be one of"),
        ({"last_steps": 0}, "last_steps must be >= 1, got 0"),
        ({"noise": None, "batch_size": 0}, "batch_size must be >= 1, got 0"),
    ],
)
def test_bad_calls(classes, change, message):
    with pytest.raises(ValueError, match=message):
        classes(**{"noise": draw(2, 2, 8, 8)} | change)


@pytest.mark.bad_input
def test_classes_must_be_said_to_the_map(classes):
    with pytest.raises(ValueError, match="class_labels must be given, below 3"):
        classes.transport(draw(2, 2, 8, 8))
