"""The accelerations on whole pipelines that read text, with guidance: Stable Diffusion 1.5's and XL's."""

import pytest
import torch

from hadamard.diffusion import EncoderPropagation, FeatureInheritance
from tests.diffusion.pipelines import text_pipeline


@pytest.fixture(scope="module", params=[False, True], ids=["1.5", "XL"])
def pipe(request, tmp_path_factory):
    pipe = text_pipeline(tmp_path_factory.mktemp("tokenizer"), request.param)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, text="a cat", steps=6):
    generator = torch.Generator().manual_seed(0)
    return pipe(text, num_inference_steps=steps, guidance_scale=5.0, generator=generator, output_type="pt").images


def test_the_text_matters(pipe):
    assert (draw(pipe) != draw(pipe, "a dog")).any()


@pytest.mark.parametrize("tool", [EncoderPropagation, FeatureInheritance])
def test_every_step_a_key_step_gives_the_same_bits(pipe, tool):
    plain = draw(pipe)
    options = {"rules": "deep"} if tool is FeatureInheritance else {}
    with tool(pipe, key_steps=1, **options):
        assert torch.equal(draw(pipe), plain)
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("tool", [EncoderPropagation, FeatureInheritance])
def test_fewer_key_steps_change_it_and_leave_nothing_behind(pipe, tool):
    plain = draw(pipe)
    options = {"rules": "deep"} if tool is FeatureInheritance else {}
    with tool(pipe, key_steps=3, **options):
        fast = draw(pipe)
        other = draw(pipe, "a dog")
    assert (fast != plain).any()
    assert (other != fast).any()
    assert torch.equal(draw(pipe), plain)


def test_steps_between_key_steps_are_decoded_together_as_one_by_one(pipe):
    with EncoderPropagation(pipe, key_steps=3):
        one_by_one = draw(pipe)
    with EncoderPropagation(pipe, key_steps=3, parallel=True):
        together = draw(pipe)
    torch.testing.assert_close(together, one_by_one, rtol=1e-3, atol=1e-4)
