"""Pipelines of Stable Diffusion with random weights, as small as their parts allow, that read real text."""

import json
import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LETTERS = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
VOCABULARY = {token: i for i, token in enumerate([*LETTERS, "<|startoftext|>", "<|endoftext|>"])}


def text_pipeline(folder, xl=False):
    """Stable Diffusion 1.5's or XL's pipeline; ``folder`` takes the files of the tokenizer, which spells words."""
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    last = len(VOCABULARY) - 1
    text = CLIPTextConfig(
        vocab_size=len(VOCABULARY), hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=8, bos_token_id=last - 1, eos_token_id=last, pad_token_id=last,
    )  # fmt: skip
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 8 + 6 * 8}
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=16 if xl else 8, **blocks, **({"addition_embed_type": "text_time", **sizes} if xl else {}),
    )  # fmt: skip
    vae, scheduler = (
        AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        DDIMScheduler(clip_sample=False, steps_offset=1),
    )
    if not xl:
        return StableDiffusionPipeline(
            vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
        )
    encoders = CLIPTextModel(text), CLIPTextModelWithProjection(text)
    return StableDiffusionXLPipeline(vae, *encoders, tokenizer, tokenizer, unet, scheduler, add_watermarker=False)
