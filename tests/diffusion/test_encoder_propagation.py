"""Encoder propagation against the plain sampler, call by call."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from hadamard.diffusion import EncoderPropagation

SCHEDULERS = (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler)
TEXT = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def unet():
    return plain_unet()


def plain_unet(**options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), **options,
    ).eval()  # fmt: skip


def text_unet(**options):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **options,
    ).eval()  # fmt: skip


def pipeline(unet, scheduler=DDIMScheduler, **options):
    return SimpleNamespace(unet=unet, scheduler=scheduler(**options))


@torch.no_grad()
def sample(pipe, steps=20, batch=2, dtype=torch.float32, start=0, **condition):
    """The loop that every pipeline of diffusers has."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    shape = (batch, pipe.unet.config.in_channels, 8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) * scheduler.init_noise_sigma
    for t in scheduler.timesteps[start:]:
        noise = pipe.unet(scheduler.scale_model_input(x, t), t, **condition).sample
        x = scheduler.step(noise, t, x).prev_sample
    return x


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_every_step_a_key_step_nothing_changes(unet, scheduler):
    pipe = pipeline(unet, scheduler)
    plain = sample(pipe)
    for keys in (1, range(20), lambda step, steps: True):
        with EncoderPropagation(pipe, keys) as fast:
            assert torch.equal(sample(pipe), plain)
        assert (fast.calls, fast.key_calls) == (20, 20)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_decoding_in_one_batch_is_decoding_one_by_one(unet, scheduler):
    pipe = pipeline(copy.deepcopy(unet).double(), scheduler)
    with EncoderPropagation(pipe):
        one = sample(pipe, dtype=torch.float64)
    with EncoderPropagation(pipe, parallel=True, max_parallel=4):
        batch = sample(pipe, dtype=torch.float64)
        again = sample(pipe, dtype=torch.float64)
    torch.testing.assert_close(batch, one, rtol=0, atol=1e-10 * float(one.abs().max()))
    assert torch.equal(batch, again)


def test_it_is_the_definition(unet):
    """At other than key steps: the decoder on stored features, written against the UNet's public modules."""
    pipe, keys = pipeline(unet), {0, 3, 4, 9}

    @torch.no_grad()
    def by_hand():
        scheduler = pipe.scheduler
        scheduler.set_timesteps(12)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        for i, t in enumerate(scheduler.timesteps):
            emb = unet.time_embedding(unet.time_proj(t.expand(2)))
            if i in keys:
                h = unet.conv_in(x)
                skips = (h,)
                for block in unet.down_blocks:
                    h, more = block(h, emb)
                    skips += more
                stored = unet.mid_block(h, emb), skips
            h, skips = stored
            for block in unet.up_blocks:
                n = len(block.resnets)
                h, skips = block(h, skips[-n:], emb), skips[:-n]
            x = scheduler.step(unet.conv_out(unet.conv_act(unet.conv_norm_out(h))), t, x).prev_sample
        return x

    expected = by_hand()
    with EncoderPropagation(pipe, sorted(keys)):
        assert torch.equal(sample(pipe, 12), expected)


def test_blocks_run_as_often_as_they_should(unet):
    pipe, runs = pipeline(unet), {"down": 0, "up": 0, "rows": 0}
    hooks = [
        unet.down_blocks[0].resnets[0].register_forward_hook(lambda *_: runs.update(down=runs["down"] + 1)),
        unet.up_blocks[0].register_forward_hook(
            lambda _, __, out: runs.update(up=runs["up"] + 1, rows=runs["rows"] + len(out))
        ),
    ]
    try:
        for parallel, batches in ((False, 50), (True, 10)):  # one segment, of fifteen steps, takes two
            runs.update(down=0, up=0, rows=0)
            with EncoderPropagation(pipe, "50ls", parallel=parallel, max_parallel=10):
                sample(pipe, 50)
            assert runs == {"down": 9, "up": batches, "rows": 100}
    finally:
        for hook in hooks:
            hook.remove()


def test_other_steps_do_not_look_at_the_sample(unet):
    x, y = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), EncoderPropagation(unet, 2):
        outputs = []
        for second in (x, y):
            unet(x, 9)
            outputs.append(unet(second, 8).sample)
        assert torch.equal(*outputs)
        assert not torch.equal(unet(y, 7).sample, outputs[0])


def test_a_change_of_batch_runs_the_encoder_again(unet):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = unet(x[:1], 8).sample
        with EncoderPropagation(unet, 10) as fast:
            unet(x, 9)
            assert torch.equal(unet(x[:1], 8).sample, plain)
        assert fast.key_calls == 2


def test_a_generation_that_begins_later_counts_from_there(unet):
    pipe = pipeline(unet)
    plain = sample(pipe, start=8)
    with EncoderPropagation(pipe, lambda step, steps: step < 6 and steps == 12, parallel=True) as fast:
        assert not torch.equal(sample(pipe, start=8), plain)
    assert (fast.calls, fast.key_calls) == (12, 6)


def test_text_guidance_and_classes_keep_their_rows():
    pipe = pipeline(text_unet(num_class_embeds=3).double())
    condition = {"encoder_hidden_states": TEXT.double(), "class_labels": torch.tensor([0, 2])}
    with EncoderPropagation(pipe, 5, parallel=True):
        both = sample(pipe, dtype=torch.float64, **condition)
    with EncoderPropagation(pipe, 5):
        for row in (0, 1):
            one = {name: value[row : row + 1].expand(2, *value.shape[1:]) for name, value in condition.items()}
            torch.testing.assert_close(sample(pipe, dtype=torch.float64, **one)[row], both[row])


@pytest.mark.parametrize("parallel", [False, True])
def test_a_controlnet_runs_at_key_steps_only(parallel):
    pipe = pipeline(text_unet())
    torch.manual_seed(1)
    pipe.controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_channels=3).eval()
    for parameter in pipe.controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    picture, runs = torch.randn(2, 3, 64, 64), []
    hook = pipe.controlnet.conv_in.register_forward_hook(lambda *_: runs.append(1))

    @torch.no_grad()
    def controlled():
        pipe.scheduler.set_timesteps(9)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for t in pipe.scheduler.timesteps:
            down, middle = pipe.controlnet(x, t, TEXT, controlnet_cond=picture, return_dict=False)
            noise = pipe.unet(
                x, t, TEXT, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
            x = pipe.scheduler.step(noise, t, x).prev_sample
        return x

    plain = controlled()
    with EncoderPropagation(pipe, 1):
        assert torch.equal(controlled(), plain)
    runs.clear()
    with EncoderPropagation(pipe, 3, parallel=parallel):
        fast = controlled()
    assert len(runs) == 3
    assert not torch.allclose(fast, plain)
    hook.remove()


def test_an_adapters_residuals_are_inherited():
    unet = text_unet()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    residuals = [torch.ones(2, 8, 8, 8), torch.ones(2, 16, 4, 4)]
    with torch.no_grad(), EncoderPropagation(unet, 4):
        outputs = [
            unet(x, t, TEXT, down_intrablock_additional_residuals=[r.clone() for r in residuals]).sample
            for t in (9, 8, 7)
        ]
    with torch.no_grad(), EncoderPropagation(unet, 4):
        unet(x, 9, TEXT, down_intrablock_additional_residuals=[r.clone() for r in residuals])
        assert torch.equal(unet(x, 8, TEXT).sample, outputs[1])
        assert torch.equal(unet(x, 7, TEXT).sample, outputs[2])


def test_injected_noise_is_the_starting_noise_in_late_steps(unet):
    pipe = pipeline(unet)
    with EncoderPropagation(pipe, 1):
        plain = sample(pipe, 2, start=1)  # a single step, at the end: nothing is left to be denoised
    with EncoderPropagation(pipe, 1, noise_injection=0.1):
        assert torch.equal(sample(pipe, 2, start=1), plain)
    seen, start = [], torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    hook = unet.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for alpha in (0.0, 0.1):
        with EncoderPropagation(pipe, 1, noise_injection=alpha, injection_tau=0.3):
            sample(pipe, 4)  # timesteps 750, 500, 250, 0
    hook.remove()
    for i in (0, 1):
        assert torch.equal(seen[4 + i], seen[i])
    torch.testing.assert_close(seen[6] - seen[2], 0.1 * start)


def test_afterwards_the_model_is_as_before(unet):
    pipe = pipeline(unet)
    fast = EncoderPropagation(pipe, 3, noise_injection=0.1)
    modules = [unet, *unet.modules()]
    for _ in range(2):
        assert fast.enable().enable().enabled
        fast.disable()
        assert not fast.enabled
    assert not any("forward" in module.__dict__ for module in modules)
    assert "step" not in pipe.scheduler.__dict__

    def patched(*args, **kwargs):
        return type(unet).forward(unet, *args, **kwargs)

    unet.forward = patched
    try:
        with pytest.raises(RuntimeError, match="stop"), EncoderPropagation(pipe, 3):
            raise RuntimeError("stop")
        assert unet.forward is patched
    finally:
        del unet.forward


def test_pipelines_still_find_the_schedulers_arguments(unet):
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    make = lambda: pipe(num_inference_steps=5, eta=0.5, generator=torch.Generator().manual_seed(0), output_type="np")  # noqa: E731
    plain = make().images
    with EncoderPropagation(pipe, 1, noise_injection=1e-9):
        assert abs(make().images - plain).max() < 1e-5


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_steps": "best"}, "key_steps must be one of '50ls', '50if', got 'best'"),
        ({"key_steps": 0}, "key_steps must be >= 1, got 0"),
        ({"key_steps": [1, 2]}, r"key_steps must hold step 0, got \[1, 2\]"),
        ({"key_steps": []}, "key_steps must hold step 0, got none"),
        ({"key_steps": [0, -1]}, "key_steps must be >= 0, got -1"),
        ({"max_parallel": 0, "parallel": True}, "max_parallel must be >= 1, got 0"),
        ({"noise_injection": -1.0}, "noise_injection must be >= 0, got -1.0"),
        ({"noise_injection": float("nan")}, "noise_injection must be >= 0, got nan"),
        ({"injection_tau": 2.0}, "injection_tau must be >= 0 and <= 1, got 2.0"),
    ],
)
def test_bad_parameters(unet, options, message):
    with pytest.raises(ValueError, match=message):
        EncoderPropagation(pipeline(unet), **options)


@pytest.mark.bad_input
def test_bad_models(unet):
    with pytest.raises(TypeError, match="model must be, or have as unet, a UNet with conv_in.*, got Linear"):
        EncoderPropagation(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model must be a pipeline with a scheduler for parallel.*got UNet2DModel"):
        EncoderPropagation(unet, 2, parallel=True)
    with pytest.raises(ValueError, match="must call the network once a step, got HeunDiscreteScheduler of order 2"):
        EncoderPropagation(pipeline(unet, HeunDiscreteScheduler)).enable()
    pipe = pipeline(unet)
    with EncoderPropagation(pipe, [0, 7]), pytest.raises(ValueError, match="below the number of steps, 5, got 7"):
        sample(pipe, 5)
