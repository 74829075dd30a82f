"""SDXL's base in miniature: 64 px (8×8 latents at f8), up to 128."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ppd_serve.diffusion.sdxl import StableDiffusionXL
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release import Release
from tests.tiny_encoder import make_tiny_encoder
from tests.tiny_release import byte_tokenizer
from tests.twins.sd15 import tiny_autoencoder
from tests.twins.writing import MakeEncoder, clip_config, write_twin

FIRST, SECOND, POOLED, TOLD = 16, 24, 20, 8  # widths: text states, pooled text, each time id

SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def make_sdxl(
    path: Path, *, make_encoder: MakeEncoder | None = make_tiny_encoder, seed: int = 0
) -> Release:
    pipeline = sdxl_pipeline(seed)
    return write_twin(
        path,
        "sdxl-twin",
        pipeline,
        partial(UserAdapter.for_unet, pipeline.unet),
        replace(StableDiffusionXL.usual, sizes=((64, 64), (96, 64)), steps=4),
        make_encoder=make_encoder,
        seed=seed,
    )


def sdxl_pipeline(seed: int = 0, **unet: object) -> StableDiffusionXLPipeline:
    """The checkpoint's classes and its scheduler's config, word for word; ``unet`` changes it."""
    first, second = byte_tokenizer(max_length=16), byte_tokenizer(max_length=16)
    second.pad_token = "!"  # as the checkpoint's second tokenizer has it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(clip_config(first, FIRST))
        text_encoder_2 = CLIPTextModelWithProjection(
            clip_config(second, SECOND, hidden_act="gelu", projection_dim=POOLED)
        )
        config = {
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (16, 32, 32),
            "layers_per_block": 1,
            "transformer_layers_per_block": [1, 1, 2],
            "attention_head_dim": [2, 4, 4],  # in this class, the number of heads
            "use_linear_projection": True,
            "cross_attention_dim": FIRST + SECOND,
            "norm_num_groups": 8,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TOLD,
            "projection_class_embeddings_input_dim": 6 * TOLD + POOLED,
        }
        made = UNet2DConditionModel(**config | unet)
        vae = tiny_autoencoder(scaling_factor=0.13025)
    assert vae.config.force_upcast
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=first,
        tokenizer_2=second,
        unet=made,
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULER),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
