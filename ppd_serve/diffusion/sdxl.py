"""Stable Diffusion XL as a backbone: two CLIP text encoders, and a UNet that is told the size.

arXiv 2307.01952. The base model alone; its refiner is another network with other conditions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from ppd_serve.diffusion.backbone import Text
from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.unet_backbone import UNetBackbone, words
from ppd_serve.errors import ReleaseError

TIME_IDS = 6  # original height and width, crop top and left, target height and width


class StableDiffusionXL(UNetBackbone):
    """A ``Backbone`` over the parts of a ``StableDiffusionXLPipeline``."""

    usual = Defaults(
        sizes=((1024, 1024), (896, 1152), (1152, 896), (832, 1216), (1216, 832)),
        steps=30,
        guidance_scale=5.0,
        sampler="euler",
    )
    pipeline = StableDiffusionXLPipeline
    left_out: ClassVar[dict[str, Any]] = {"add_watermarker": False}

    def __init__(self, pipeline: StableDiffusionXLPipeline) -> None:
        super().__init__(pipeline)
        if pipeline.text_encoder is None or _micro_conditions(pipeline) != TIME_IDS:
            raise ReleaseError("not SDXL's base: its UNet takes other conditions (a refiner's?)")
        if self._vae.config.get("latents_mean") is not None:
            raise ReleaseError("latents_mean: latents that are not centred are not supported")
        self._text_encoders = [
            encoder.eval().requires_grad_(False)
            for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
        ]
        self._tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2]
        self._zeros_for_none = pipeline.config.force_zeros_for_empty_prompt
        # Its autoencoder overflows in float16. In bfloat16, with float32's range, it does not.
        if self._vae.dtype == torch.float16 and self._vae.config.get("force_upcast"):
            self._vae.to(torch.float32)
        self._time_ids = lru_cache(64)(self._make_time_ids)

    def _encode(self, prompt: str | None) -> Text:
        """``states``: both encoders' last but one hidden states side by side, ``[1, tokens, dim]``;
        ``pooled``: the second's projected summary, ``[1, dim]``."""
        if prompt is None and self._zeros_for_none:  # as it was trained to have no prompt
            return {key: torch.zeros_like(x) for key, x in self._encode("").items()}
        with self._text_lock, torch.inference_mode():  # fast tokenizers are not thread-safe
            first, second = (
                encoder(
                    words(tokenizer, prompt or "").input_ids.to(self.device),
                    output_hidden_states=True,
                )
                for tokenizer, encoder in zip(self._tokenizers, self._text_encoders, strict=True)
            )
            states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
            return {"states": states, "pooled": second.text_embeds}

    def denoise(self, x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor:
        B, _, h, w = x_BCHW.shape
        told = {
            "text_embeds": text["pooled"].to(self.dtype),
            "time_ids": self._time_ids(h * self._scale, w * self._scale).expand(B, -1),
        }
        return self.denoiser(
            x_BCHW.to(self.dtype),
            timesteps_B,
            text["states"].to(self.dtype),
            added_cond_kwargs=told,
            return_dict=False,
        )[0]

    def _make_time_ids(self, height: int, width: int) -> Tensor:
        """A picture that was never larger nor cropped, ``[1, 6]``: the best the model knows."""
        ids = [height, width, 0, 0, height, width]
        return torch.tensor([ids], dtype=torch.float32, device=self.device)


def _micro_conditions(pipeline: StableDiffusionXLPipeline) -> float:
    """How many numbers this UNet is told beside the pooled text."""
    unet = pipeline.unet
    told = unet.config.projection_class_embeddings_input_dim or 0
    pooled = pipeline.text_encoder_2.config.projection_dim
    return (told - pooled) / (unet.config.addition_time_embed_dim or 1)
