"""Stable Diffusion 1.5 in miniature: 64 px (8×8 latents at f8), up to 128."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel

from ppd_serve.diffusion.stable_diffusion import StableDiffusion
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release import Release
from tests.tiny_encoder import make_tiny_encoder
from tests.tiny_release import byte_tokenizer
from tests.twins.writing import MakeEncoder, clip_config, write_twin

SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def make_sd15(
    path: Path, *, make_encoder: MakeEncoder | None = make_tiny_encoder, seed: int = 0
) -> Release:
    pipeline = sd15_pipeline(seed)
    return write_twin(
        path,
        "sd15-twin",
        pipeline,
        partial(UserAdapter.for_unet, pipeline.unet),
        replace(StableDiffusion.usual, sizes=((64, 64), (128, 64)), steps=4),
        make_encoder=make_encoder,
        seed=seed,
    )


def sd15_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """The checkpoint's classes and its scheduler's config, word for word."""
    tokenizer = byte_tokenizer(max_length=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(clip_config(tokenizer, 24))
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16, 32, 32),
            layers_per_block=1,
            cross_attention_dim=24,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vae = tiny_autoencoder(scaling_factor=0.18215)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler.from_config(SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_autoencoder(*, scaling_factor: float) -> AutoencoderKL:
    """Stable Diffusion's and SDXL's alike: f8, four channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        scaling_factor=scaling_factor,
    )
