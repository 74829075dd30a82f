"""Stable Diffusion 1.x/2.x as a backbone: one CLIP text encoder, one UNet, one autoencoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from ppd_serve.diffusion.backbone import Text
from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.unet_backbone import UNetBackbone, words


class StableDiffusion(UNetBackbone):
    """A ``Backbone`` over the parts of a ``StableDiffusionPipeline``."""

    # Its own PNDM remembers four outputs, which no table does; DPM-Solver++ needs half its steps.
    usual = Defaults(sizes=((512, 512),), steps=25, guidance_scale=7.5, sampler="dpmpp_2m")
    pipeline = StableDiffusionPipeline
    left_out: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        super().__init__(pipeline)
        self._text_encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self._tokenizer = pipeline.tokenizer

    def _encode(self, prompt: str | None) -> Text:
        """``states``: the last hidden state, ``[1, tokens, dim]``."""
        with self._text_lock, torch.inference_mode():  # fast tokenizers are not thread-safe
            read = words(self._tokenizer, prompt or "")
            mask = None
            if getattr(self._text_encoder.config, "use_attention_mask", False):
                mask = read.attention_mask.to(self.device)
            return {"states": self._text_encoder(read.input_ids.to(self.device), mask)[0]}

    def denoise(self, x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor:
        return self.denoiser(
            x_BCHW.to(self.dtype), timesteps_B, text["states"].to(self.dtype), return_dict=False
        )[0]
