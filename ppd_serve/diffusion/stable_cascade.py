"""Stable Cascade as a backbone: Stage C, then Stage B, then a VQGAN (arXiv 2306.00637).

Stage C makes a small, semantic latent of a prompt and is where users have their say, as in PPD
(arXiv 2501.06655). Stage B draws the VQGAN's latent, told of Stage C's, in steps of its own that
nobody's taste is in. The steps are those of diffusers' prior and decoder pipelines, so that its
pictures can be compared.

The directory is what ``StableCascadeCombinedPipeline.save_pretrained`` writes;
``cascade_halves.py`` makes it of the checkpoint's two published halves. Both read a prompt with the
same text encoder, so only Stage C's is loaded; image prompts are not served. For training, put
``effnet_encoder.safetensors`` of stabilityai/stable-cascade beside ``model_index.json`` (see
``effnet.py``).

Sizes: diffusers makes cells of 42.67 pixels in Stage C, and 10.67 of Stage B's in each of them,
rounded both times. Only multiples of 128 pixels (3 cells, 32 of Stage B's) come out as asked.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMWuerstchenScheduler, StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from ppd_serve.diffusion.backbone import Text
from ppd_serve.diffusion.effnet import CELL, FILE, EfficientNetEncoder
from ppd_serve.diffusion.grids import Config
from ppd_serve.diffusion.preview import LinearPreview, fit_preview
from ppd_serve.diffusion.request import Defaults, GenerationRequest
from ppd_serve.diffusion.schedules import Schedule
from ppd_serve.diffusion.unet_backbone import TEXTS_KEPT, as_bytes, words
from ppd_serve.diffusion.wuerstchen import NAME, wuerstchen
from ppd_serve.errors import InvalidInput, ReleaseError

MULTIPLE, LARGEST, MOST_STEPS = 128, 2048, 1000
CELLS_C, CELLS_B = 3, 32  # latent cells along a side of MULTIPLE pixels
VQGAN_SCALE = MULTIPLE // CELLS_B


class _CascadeStage:
    """What both stages have in common: a ``StableCascadeUNet`` and its sampler."""

    def __init__(self, unet: StableCascadeUNet, scheduler_config: Config, cells: int) -> None:
        self.denoiser = unet.eval().requires_grad_(False)
        self.device, self.dtype = unet.device, unet.dtype
        self.scheduler_config = dict(scheduler_config)
        self.samplers = (NAME,)
        self._cells = cells
        self._compiled = False
        self._schedule = lru_cache(64)(partial(wuerstchen, self.scheduler_config))
        self._schedule(1)  # a config that no table can sample is refused now

    def compile(self, backend: str = "inductor") -> None:
        """Compile the denoiser's blocks for batches of 1, 2, 4, 8, …, each in its first forward."""
        torch._dynamo.config.recompile_limit = max(256, torch._dynamo.config.recompile_limit)
        for blocks in (*self.denoiser.down_blocks, *self.denoiser.up_blocks):
            for block in blocks:
                block.compile(backend=backend, dynamic=False)
        self._compiled = True

    def bucket(self, parts: int) -> int:
        return 1 << (parts - 1).bit_length() if self._compiled else parts

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        for field, side in (("width", width), ("height", height)):
            if side % MULTIPLE or not 0 < side <= LARGEST:
                raise InvalidInput(
                    f"must be a multiple of {MULTIPLE}, at most {LARGEST}", field=field
                )
        h, w = (side // MULTIPLE * self._cells for side in (height, width))
        return self.denoiser.config.in_channels, h, w

    def schedule(self, sampler: str, steps: int) -> Schedule:
        if sampler not in self.samplers:
            raise InvalidInput(f"must be {NAME}", field="sampler")
        if not 1 <= steps <= MOST_STEPS:
            raise InvalidInput(f"must be at least 1 and at most {MOST_STEPS}", field="steps")
        return self._schedule(steps)


class StageB(_CascadeStage):
    """From Stage C's latent to the VQGAN's. ``steps`` and ``guidance_scale`` are the stock
    pipeline's; guidance of 1 or less is none."""

    def __init__(
        self, unet: StableCascadeUNet, scheduler_config: Config, vqgan: PaellaVQModel
    ) -> None:
        super().__init__(unet, scheduler_config, CELLS_B)
        self._vqgan = vqgan.eval().requires_grad_(False)
        self.steps, self.guidance_scale = 10, 0.0

    def asked(self, request: GenerationRequest) -> GenerationRequest:
        return replace(
            request,
            sampler=NAME,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            guidance_rescale=0.0,
            guidance_interval=(0.0, 1.0),
            users=(),
        )

    def told(self, text: Text, latent_BCHW: Tensor) -> Text:
        return {"pooled": text["pooled"], "effnet": latent_BCHW}

    def denoise(self, x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor:
        effnet = text.get("effnet")  # absent where only the cost of a forward is measured
        return self.denoiser(
            x_BCHW.to(self.dtype),
            timesteps_B.to(self.dtype),
            clip_text_pooled=text["pooled"].to(self.dtype),
            effnet=None if effnet is None else effnet.to(self.dtype),
            return_dict=False,
        )[0]

    def preview(self, x0_BCHW: Tensor) -> np.ndarray:
        return self._preview(x0_BCHW)

    @cached_property
    def _preview(self) -> LinearPreview:
        """Fitted when first asked for: decoding a handful of small drawings."""
        return fit_preview(self._to_latents, self.decode, VQGAN_SCALE)

    def _to_latents(self, pixels_B3HW: Tensor) -> Tensor:
        pixels = pixels_B3HW.to(self.device, self.dtype) / 2 + 0.5
        return self._vqgan.encode(pixels).latents / self._vqgan.config.scale_factor

    def decode(self, latents_BCHW: Tensor) -> np.ndarray:
        latents = latents_BCHW.to(self.dtype) * self._vqgan.config.scale_factor
        pixels = self._vqgan.decode(latents).sample.float()
        return as_bytes(pixels)


class StableCascade(_CascadeStage):
    """A ``Backbone`` over the parts of a stock pipeline; it is Stage C itself."""

    usual = Defaults(
        sizes=((1024, 1024), (896, 1152), (1152, 896), (768, 1280), (1280, 768)),
        steps=20,
        guidance_scale=4.0,
        sampler=NAME,
    )

    def __init__(
        self,
        unet: StableCascadeUNet,
        scheduler_config: Config,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: Any,
        stage_b: StageB,
        effnet: Path,
    ) -> None:
        """``effnet`` is the file of the encoder's weights, read when training asks for latents."""
        super().__init__(unet, scheduler_config, CELLS_C)
        self._text_encoder = text_encoder.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._stage_b = stage_b
        self._effnet = effnet
        self.later = (stage_b,)
        self._text_lock = threading.Lock()
        self.encode = lru_cache(TEXTS_KEPT)(self._encode)

    @classmethod
    def load(cls, path: Path, device: str | torch.device, dtype: torch.dtype) -> StableCascade:
        """From a directory; ReleaseError if its parts cannot be read.

        Part by part: diffusers 0.42 no longer finds the VQGAN's class by the name that pipelines
        have in ``model_index.json``, so it loads none of Stable Cascade's whole.
        """

        def part(kind: Any, name: str) -> Any:
            loaded = kind.from_pretrained(
                path / name, dtype=dtype, use_safetensors=True, local_files_only=True
            )
            return loaded.to(device)

        try:
            vqgan, b = part(PaellaVQModel, "vqgan"), part(StableCascadeUNet, "decoder")
            return cls(
                part(StableCascadeUNet, "prior_prior"),
                DDPMWuerstchenScheduler.load_config(path / "prior_scheduler"),
                part(CLIPTextModelWithProjection, "prior_text_encoder"),
                AutoTokenizer.from_pretrained(path / "prior_tokenizer", local_files_only=True),
                StageB(b, DDPMWuerstchenScheduler.load_config(path / "scheduler"), vqgan),
                path / FILE,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ReleaseError(f"cannot load the backbone {path.name}: {error}") from error

    def compile(self, backend: str = "inductor") -> None:
        super().compile(backend)
        self._stage_b.compile(backend)

    def _encode(self, prompt: str | None) -> Text:
        """``states``: the last hidden state, ``[1, tokens, dim]``; ``pooled``: its projected
        summary, ``[1, 1, dim]``."""
        with self._text_lock, torch.inference_mode():  # fast tokenizers are not thread-safe
            prompted = words(self._tokenizer, prompt or "").to(self.device)
            read = self._text_encoder(
                prompted.input_ids,
                attention_mask=prompted.attention_mask,
                output_hidden_states=True,
            )
            return {"states": read.hidden_states[-1], "pooled": read.text_embeds[:, None]}

    def texts_found(self) -> tuple[int, int]:
        found = self.encode.cache_info()
        return found.hits, found.misses

    def denoise(self, x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor:
        pictures = self.denoiser.config.clip_image_in_channels  # no image prompt: zeros
        return self.denoiser(
            x_BCHW.to(self.dtype),
            timesteps_B.to(self.dtype),
            clip_text_pooled=text["pooled"].to(self.dtype),
            clip_text=text["states"].to(self.dtype),
            clip_img=torch.zeros(len(x_BCHW), 1, pictures, dtype=self.dtype, device=self.device),
            return_dict=False,
        )[0]

    def to_latents(self, pixels_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to what Stage C makes, ``[B, 16, h, w]`` (training): features of the
        picture at three quarters of its size, where a cell is 32 pixels."""
        sides = [side // MULTIPLE * CELLS_C * CELL for side in pixels_B3HW.shape[-2:]]
        pixels = F.interpolate(pixels_B3HW.to(self.device), sides, mode="bilinear", antialias=True)
        return self._encoder(pixels.to(self.dtype))

    @cached_property
    def _encoder(self) -> EfficientNetEncoder:
        return EfficientNetEncoder.load(self._effnet).to(self.device, self.dtype)

    def preview(self, x0_BCHW: Tensor) -> np.ndarray:
        return self._stage_b.preview(x0_BCHW)

    def decode(self, latents_BCHW: Tensor) -> np.ndarray:
        return self._stage_b.decode(latents_BCHW)
