"""What a release is measured against: stock diffusers on the same backbone, nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from ppd_serve.release import Release

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}


class Stock:
    """``StableDiffusionPipeline`` with the release's sampler, guidance and size.

    Takes the bodies of ``POST /generate``; of their users it knows nothing. ``steps``: the
    release's if not given.
    """

    def __init__(self, release: Release, dtype: torch.dtype, steps: int | None = None) -> None:
        self.dtype, self.defaults = dtype, release.defaults
        self.steps = steps or release.defaults.steps
        self.pipeline = StableDiffusionPipeline.from_pretrained(
            release.backbone_path, dtype=dtype, local_files_only=True,
            safety_checker=None, requires_safety_checker=False,
        )  # fmt: skip
        kind = SCHEDULERS[release.defaults.sampler]
        self.pipeline.scheduler = kind.from_config(self.pipeline.scheduler.config)
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, body: Mapping[str, Any]) -> Image.Image:
        """One picture, by one call of the pipeline."""
        width, height = self.defaults.sizes[0]
        drawn = self.pipeline(
            body["prompt"],
            negative_prompt=body["negative_prompt"],
            width=width,
            height=height,
            num_inference_steps=self.steps,
            guidance_scale=self.defaults.guidance_scale,
            guidance_rescale=self.defaults.guidance_rescale,
            generator=torch.Generator().manual_seed(body["seed"]),
        )
        image: Image.Image = drawn.images[0]
        return image

    @torch.inference_mode()
    def bare(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        """What these pictures need at least, as one batch: their texts, ``steps`` forwards of the
        denoiser (guided: two parts a picture), the autoencoder. No schedule, no pictures."""
        states = self._states([b[key] for key in ("negative_prompt", "prompt") for b in bodies])
        parts = self.pipeline
        width, height = (side // parts.vae_scale_factor for side in self.defaults.sizes[0])
        channels = parts.unet.config.in_channels
        latents = torch.randn(len(bodies), channels, height, width).to(self.dtype)
        parts.scheduler.set_timesteps(self.steps)
        for timestep in parts.scheduler.timesteps:
            parts.unet(latents.repeat(2, 1, 1, 1), timestep, states, return_dict=False)
        parts.vae.decode(latents / parts.vae.config.scaling_factor, return_dict=False)

    def _states(self, prompts: Sequence[str]) -> torch.Tensor:
        words = self.pipeline.tokenizer(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt"
        )
        states: torch.Tensor = self.pipeline.text_encoder(words.input_ids)[0]
        return states
