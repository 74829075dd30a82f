"""Trains the studio's base: a CLIP text encoder and a UNet on 16x16 latents, v-prediction.

Zero-terminal-SNR betas and trailing spacing, because brightness is something people choose
(arXiv 2305.08891); min-SNR weighting (arXiv 2303.09556) for few steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from training.autoencoder import to_input
from training.data.world import CAPTIONS, Caption
from training.stage import Draws, Metrics, Stage
from training.tokenizer import train_tokenizer

TEXT_WIDTH = 96
MAX_TOKENS = 24
EMPTY_PROMPT_SHARE = 0.12
SHORT_PROMPT_SHARE = 0.10
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
MIN_SNR_GAMMA = 5.0


def new_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(
        [str(c) for c in CAPTIONS],
        special=["<|pad|>", "<|startoftext|>", "<|endoftext|>"],
        vocabulary=512,
        max_length=MAX_TOKENS,
        frame=("<|startoftext|>", "<|endoftext|>"),
    )


def new_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def new_unet(latent_channels: int = 8) -> UNet2DConditionModel:
    """No attention at 16x16, where a batch would gain least: 2.2x per row from one guided picture
    to sixteen (single thread), 1.6-1.8x for the two-level shapes tried."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def noise_schedule() -> DDPMScheduler:
    return DDPMScheduler(**SCHEDULE)


def save_backbone(
    path: Path,
    vae: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    unet: UNet2DConditionModel,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a stock ``StableDiffusionPipeline`` directory, safetensors, rounded to ``dtype``."""
    scheduler = DDIMScheduler(
        **SCHEDULE, timestep_spacing="trailing", clip_sample=False, steps_offset=1
    )
    for name, part in (("vae", vae), ("unet", unet)):
        part.register_to_config(_name_or_path=f"studio/{name}")  # else where it was trained
    StableDiffusionPipeline(
        vae=vae.to(dtype), text_encoder=text_encoder.to(dtype), tokenizer=tokenizer,
        unet=unet.to(dtype), scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)  # fmt: skip
    for module in (vae, text_encoder, unet):
        module.float()
    # transformers loads in the precision that a config names, diffusers in float32: without this
    # a plain ``from_pretrained`` would mix the two.
    config = path / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2))


@torch.no_grad()
def encode_pool(vae: AutoencoderTiny, images: NDArray[np.uint8], batch: int = 64) -> Tensor:
    """Raw latents ``[N, C, 16, 16]`` on the CPU (before ``scaling_factor``)."""
    parts = (images[i : i + batch] for i in range(0, len(images), batch))
    return torch.cat([vae.encode(to_input(x).to(vae.device)).latents.cpu() for x in parts])


def prompt_for(caption: Caption, rng: np.random.Generator) -> str:
    """Mostly the caption; sometimes nothing (for guidance), sometimes only part of it."""
    chance = rng.random()
    if chance < EMPTY_PROMPT_SHARE:
        return ""
    if chance < EMPTY_PROMPT_SHARE + SHORT_PROMPT_SHARE:
        article = str(caption).split(" ", 2)
        return [f"a {article[2]}", f"a {caption.size} {caption.subject}", f"a {caption.subject}"][
            int(rng.integers(3))
        ]
    return str(caption)


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> Tensor:
    """As ``StableDiffusionPipeline`` does it: padded to the longest legal length, ``[B, 24]``."""
    return tokenizer(
        prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def base_stage(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    latents: Tensor,
    captions: NDArray[np.int64],
    directory: Path,
    *,
    steps: int,
    batch: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    bf16: bool = False,
    device: str = "cpu",
) -> Stage:
    """``latents`` are scaled to unit spread."""
    schedule = noise_schedule()
    alphas = schedule.alphas_cumprod
    for module in (unet, text_encoder):
        module.to(device).train().requires_grad_(True)
    unet.to(memory_format=torch.channels_last)

    def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        picked = draw.numpy.integers(len(latents), size=batch)
        z = latents[picked]
        prompts = [prompt_for(CAPTIONS[captions[i]], draw.numpy) for i in picked]
        ids = tokenize(tokenizer, prompts)
        noise = torch.randn(z.shape, generator=draw.torch)
        t = torch.randint(0, schedule.config.num_train_timesteps, (batch,), generator=draw.torch)
        noisy, target = schedule.add_noise(z, noise, t), schedule.get_velocity(z, noise, t)
        # v-prediction's min-SNR weight: min(SNR, γ) / (SNR + 1), here relative to its plain MSE.
        snr = alphas[t] / (1 - alphas[t])
        weight = (snr.clamp(max=MIN_SNR_GAMMA) + 1) / (snr + 1)
        states = text_encoder(input_ids=ids.to(device)).last_hidden_state
        predicted = unet(noisy.to(device), t.to(device), encoder_hidden_states=states).sample
        error = (predicted.float() - target.to(device)).square().mean((1, 2, 3))
        yield (weight.to(device) * error).mean(), {"mse": float(error.detach().mean())}

    return Stage(
        name="base", directory=directory, modules={"unet": unet, "text": text_encoder},
        loss=loss, steps=steps, learning_rate=learning_rate, seed=seed, warmup=200, bf16=bf16,
    )  # fmt: skip
