"""OmniSSR: an engine that knows the answer, a plain sampler, and the null-space projection."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import LDMSuperResolutionPipeline
from PIL import Image

from hadamard.diffusion import OmniSSRPipeline, TangentSphere, null_space_project
from hadamard.diffusion.planar_engine import PlanarEngine
from hadamard.diffusion.tangent_sphere import enlarge
from hadamard.operators import bicubic

SCHEDULERS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)
BLOCKS = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
PERIODIC = ("symmetric", "circular")


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def network(takes=6, gives=3, **options):
    torch.manual_seed(0)
    return UNet2DModel(
        8, takes, gives, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, add_attention=False,
        **BLOCKS, **options,
    ).eval()  # fmt: skip


def pipeline(unet=None, scheduler=None, vae=None):
    pipe = OmniSSRPipeline(unet or network(), scheduler or DDIMScheduler(), vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded():
    return torch.Generator().manual_seed(1)


Y = 0.5 * draw(2, 3, 8, 16)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_interaction_it_is_the_plain_sampler(scheduler):
    """Bit by bit: views, noise and steps as anyone would write them."""
    pipe = pipeline(scheduler=scheduler())
    ours = pipe(Y, 2, 5, gamma_l=0.0, generator=seeded()).views
    sphere, schedule, generator = TangentSphere((16, 32)), scheduler(), seeded()
    low = sphere(enlarge(Y, 2).clamp(-1, 1)).transpose(1, 2).flatten(0, 1).clamp(-1, 1)
    schedule.set_timesteps(5)
    x = schedule.add_noise(low, torch.randn(low.shape, generator=generator), schedule.timesteps[:1])
    more = {} if scheduler is DPMSolverMultistepScheduler else {"generator": generator}
    with torch.no_grad():
        for t in schedule.timesteps:
            x = schedule.step(pipe.unet(torch.cat([x, low], 1), t).sample, t, x, **more).prev_sample
    assert torch.equal(ours, x.clamp(-1, 1).unflatten(0, (2, 18)).transpose(1, 2))


class Oracle(torch.nn.Module):
    """Predicts the velocity that leads to known views."""

    def __init__(self, views, schedule):
        super().__init__()
        self.register_buffer("views", views)
        self.schedule, self.config, self.dtype = schedule, network().config, torch.float32

    def forward(self, x, t):
        kept = self.schedule.alphas_cumprod[t]
        noise = (x[:, :3] - kept.sqrt() * self.views) / (1 - kept).sqrt()
        return type("Output", (), {"sample": kept.sqrt() * noise - (1 - kept).sqrt() * self.views})


def smooth():
    """A band-limited panorama (1, 3, 32, 64)."""
    return enlarge(0.4 * draw(1, 3, 8, 16), 4)


def test_an_engine_that_knows_the_views_gives_the_panorama():
    truth, schedule = smooth(), DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    y = bicubic(2, (32, 64), boundary=PERIODIC)(truth)
    views = TangentSphere((32, 64))(truth)[0].transpose(0, 1)
    for gamma, bound in ((0.0, 2e-3), (0.5, 2e-3)):
        pipe = pipeline(network(), schedule)
        pipe.unet.forward = Oracle(views, schedule).forward
        found = pipe(y, 2, 4, gamma_l=gamma, generator=seeded()).images
        assert (found * 2 - 1 - truth).square().mean() < bound


def test_the_result_reduces_to_the_small_picture():
    pipe, y, reduce = pipeline(scheduler=DDIMScheduler(prediction_type="sample")), 0.2 * Y, bicubic(
        2, (16, 32), boundary=PERIODIC)  # fmt: skip
    with torch.no_grad():
        pipe.unet.conv_out.weight *= 0.1
    found = pipe(y, 2, 3, generator=seeded()).images
    assert 0 < found.min() < found.max() < 1  # nothing is cut off
    assert (reduce(found * 2 - 1) - y).norm() <= 1e-5 * y.norm()
    free = pipe(y, 2, 3, gamma_p=0.0, gamma_e=0.0, generator=seeded()).images
    assert (reduce(free * 2 - 1) - y).norm() > 0.1 * y.norm()


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_projection_never_moves_away_from_the_truth(scale, seed):
    truth, x = draw(3, 16, 32, seed=seed).double(), draw(3, 16, 32, seed=seed + 50).double()
    A = bicubic(scale, (16, 32), boundary=PERIODIC, dtype=torch.float64)
    after = null_space_project(x, A(truth), A)
    torch.testing.assert_close(A(after), A(truth))
    before = (x - truth).square().sum()
    torch.testing.assert_close((after - truth).square().sum() + (after - x).square().sum(), before)  # Pythagoras


def test_interaction_makes_views_agree():
    sphere = TangentSphere((16, 32))
    apart, together = (
        sphere.disagreement(pipeline()(Y, 2, 6, gamma_l=g, generator=seeded()).views).mean() for g in (0.0, 0.5)
    )
    assert together < 0.7 * apart


def test_interaction_at_every_third_step_ends_with_one():
    calls, pipe = [], pipeline()
    make = pipe.sphere

    def counted(*args):
        sphere = make(*args)
        plain = sphere.merge
        sphere.merge = lambda views: calls.append(1) or plain(views)
        return sphere

    pipe.sphere = counted
    pipe(Y, 2, 7, otii_every=3)
    assert len(calls) == 3 + 1  # steps 0, 3 and 6, and the end


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_clean_pictures_are_the_schedulers(prediction):
    schedule = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    schedule.set_timesteps(10)
    engine = PlanarEngine(network(), schedule, None, None, None, None)
    x, output = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=1)
    for t in schedule.timesteps:
        want = schedule.step(output, t, x).pred_original_sample
        torch.testing.assert_close(engine.clean(x, output, t), want)
        torch.testing.assert_close(engine.meaning(x, want, t), output, rtol=1e-3, atol=1e-3)


def test_it_saves_and_loads(tmp_path):
    pipe = pipeline(scheduler=DDPMScheduler(prediction_type="v_prediction"))
    pipe.save_pretrained(tmp_path)
    again = OmniSSRPipeline.from_pretrained(tmp_path, local_files_only=True, low_cpu_mem_usage=False)
    again.set_progress_bar_config(disable=True)
    assert again.vae is None
    assert torch.equal(*(p(Y, 2, 3, generator=seeded()).images for p in (pipe, again)))


def test_latent_engines():
    """A super-resolution pipeline of diffusers, an upscaler that takes texts and levels, and image to image."""
    torch.manual_seed(0)
    vq = VQModel(3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), norm_num_groups=4,
                 latent_channels=3, num_vq_embeddings=16)  # fmt: skip
    pipe = OmniSSRPipeline.from_engine(LDMSuperResolutionPipeline(vq, network(), DDIMScheduler()))
    pipe.set_progress_bar_config(disable=True)
    assert pipe(Y, 2, 2, generator=seeded()).images.shape == (2, 3, 16, 32)

    kl = AutoencoderKL(3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), norm_num_groups=4)
    unet = UNet2DConditionModel(
        8, 7, 4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), block_out_channels=(8, 8),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=6, attention_head_dim=2, num_class_embeds=10,
    )  # fmt: skip
    upscaler = pipeline(unet, DDIMScheduler(), kl)
    found = upscaler(Y, 2, 2, prompt_embeds=draw(1, 5, 6), class_label=0, generator=seeded()).images
    assert found.shape == (2, 3, 16, 32)

    to_image = pipeline(network(4, 4), DDIMScheduler(), kl)
    counts = []
    to_image.unet.register_forward_hook(lambda *_: counts.append(1))
    assert to_image(Y, 2, 10, strength=0.3, generator=seeded()).images.shape == (2, 3, 16, 32)
    assert len(counts) == 3


def test_views_in_parts_are_the_same():
    whole, parts = (pipeline()(Y, 2, 3, view_batch=n, generator=seeded()).images for n in (None, 5))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_pictures_in_and_out():
    picture = Image.fromarray(((Y[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    (found,) = pipeline()(picture, 2, 2, output_type="pil", generator=seeded()).images
    assert found.size == (32, 16)
    images, views = pipeline()([picture, picture], 2, 2, output_type="np", return_dict=False, generator=seeded())
    assert images.shape == (2, 16, 32, 3)
    assert views.shape == (2, 3, 18, 8, 8)
    assert np.ptp(images) > 0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": Y[..., :14]}, r"size must be \(H, 2 H\)"),
        ({"image": Y[:, :2]}, r"image must have shape \(B, 3, h, 2 h\), got \(2, 2, 8, 16\)"),
        ({"image": 4 * Y}, "image must be >= -1 and <= 1"),
        ({"image": torch.full_like(Y, float("nan"))}, "image must be finite"),
        ({"scale": 1}, "scale must be >= 2, got 1"),
        ({"gamma_l": 1.5}, "gamma_l must be >= 0 and <= 1"),
        ({"strength": 0}, "strength must be > 0"),
        ({"patch": 9}, "patch must be a multiple of 2, which the model can halve as often, got 9"),
        ({"fov": 30}, "the views must cover the sphere"),
        ({"output_type": "latent"}, "output_type must be one of"),
        ({"prompt_embeds": torch.ones(1, 2, 3)}, "unet takes no text, got prompt_embeds"),
        ({"class_label": 1}, "unet takes no class, got class_label"),
        ({"view_batch": 0}, "view_batch must be >= 1, got 0"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        pipeline()(**{"image": Y, "scale": 2, "num_inference_steps": 2} | change)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"scheduler": EulerDiscreteScheduler()}, "scheduler must keep the variance.*got EulerDiscreteScheduler"),
        ({"unet": network(5)}, "unet must take 3 or 6 channels and give 3, got 5 and 3"),
    ],
)
def test_engines_that_do_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**parts)(Y, 2, 2)


@pytest.mark.bad_input
def test_a_non_integer_scale():
    with pytest.raises(TypeError, match=r"scale must be an integer, got float 2.5"):
        pipeline()(Y, 2.5)
