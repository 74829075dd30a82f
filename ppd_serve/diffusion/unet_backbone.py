"""What Stable Diffusion and SDXL have in common: a UNet over an autoencoder's latents.

All of a ``Backbone`` but what the UNet is told of a prompt, which a family adds. The steps are
those of the family's stock pipeline, so that its pictures can be compared.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ppd_serve.diffusion.backbone import Text
from ppd_serve.diffusion.preview import LinearPreview, fit_preview
from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.schedules import SCHEDULES, Schedule, samplers
from ppd_serve.errors import GenerationFailed, InvalidInput, ReleaseError

TEXTS_KEPT = 512


class UNetBackbone(ABC):
    """A ``Backbone`` over the parts of a stock pipeline, without its words."""

    usual: ClassVar[Defaults]  # how the published checkpoint is sampled
    pipeline: ClassVar[type[DiffusionPipeline]]
    left_out: ClassVar[dict[str, Any]]  # what the pipeline need not load
    later = ()

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.denoiser = pipeline.unet.eval().requires_grad_(False)
        self._vae = pipeline.vae.eval().requires_grad_(False)
        self.device, self.dtype = pipeline.unet.device, pipeline.unet.dtype
        if self.denoiser.config.time_cond_proj_dim is not None:
            raise ReleaseError("time_cond_proj_dim: guidance as the UNet's input is not supported")
        # The pipeline has mended old configs (steps_offset, clip_sample) while being built.
        self.scheduler_config = dict(pipeline.scheduler.config)
        self.samplers = samplers(self.scheduler_config)
        self._scale = pipeline.vae_scale_factor
        self._multiple = self._scale * 2 ** (len(self.denoiser.config.block_out_channels) - 1)
        self._largest = 2 * self._scale * self.denoiser.config.sample_size
        self._compiled = False
        self._text_lock = threading.Lock()
        self.encode = lru_cache(TEXTS_KEPT)(self._encode)
        self._schedule = lru_cache(TEXTS_KEPT)(self._make_schedule)

    @classmethod
    def load(cls, path: Path, device: str | torch.device, dtype: torch.dtype) -> Self:
        """From a directory; ReleaseError if its parts cannot be read or do not fit."""
        try:
            pipeline = cls.pipeline.from_pretrained(
                path, dtype=dtype, use_safetensors=True, local_files_only=True, **cls.left_out
            )
        except (OSError, ValueError, KeyError) as error:
            raise ReleaseError(f"cannot load the backbone {path.name}: {error}") from error
        return cls(pipeline.to(device))

    @abstractmethod
    def _encode(self, prompt: str | None) -> Text:
        """What ``encode`` makes and keeps."""

    @abstractmethod
    def denoise(self, x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor: ...

    def texts_found(self) -> tuple[int, int]:
        found = self.encode.cache_info()
        return found.hits, found.misses

    def compile(self, backend: str = "inductor") -> None:
        """Compile the denoiser's transformer blocks, which repeat, for batches of 1, 2, 4, 8, …

        Each size is compiled in its first forward. Put an adapter on first or later, as you like.
        """
        # One compiled form for each batch size, width and number of users; beyond the limit torch
        # goes back to running the block as it is, without a word.
        torch._dynamo.config.recompile_limit = max(256, torch._dynamo.config.recompile_limit)
        self.denoiser.compile_repeated_blocks(backend=backend, dynamic=False)
        self._compiled = True

    def bucket(self, parts: int) -> int:
        return 1 << (parts - 1).bit_length() if self._compiled else parts

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        for field, side in (("width", width), ("height", height)):
            if side % self._multiple or not 0 < side <= self._largest:
                raise InvalidInput(
                    f"must be a multiple of {self._multiple}, at most {self._largest}", field=field
                )
        return self.denoiser.config.in_channels, height // self._scale, width // self._scale

    def schedule(self, sampler: str, steps: int) -> Schedule:
        if sampler not in self.samplers:
            raise InvalidInput(f"must be one of {', '.join(self.samplers)}", field="sampler")
        if not 1 <= steps <= self.scheduler_config["num_train_timesteps"]:
            raise InvalidInput("must be at least 1 and no more than in training", field="steps")
        try:
            return self._schedule(sampler, steps)
        except (ArithmeticError, LookupError):  # near as many steps as in training, some repeat
            raise InvalidInput(f"are too many for {sampler}", field="steps") from None

    def _make_schedule(self, sampler: str, steps: int) -> Schedule:
        return SCHEDULES[sampler](self.scheduler_config, steps)

    def to_latents(self, pixels_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to what the denoiser works on, ``[B, C, h, w]`` (training)."""
        found = self._vae.encode(pixels_B3HW.to(self.device, self._vae.dtype))
        # AutoencoderKL tells a distribution, of which the mean is taken; AutoencoderTiny a point.
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return latents * self._vae.config.scaling_factor

    def preview(self, x0_BCHW: Tensor) -> np.ndarray:
        return self._preview(x0_BCHW)

    @cached_property
    def _preview(self) -> LinearPreview:
        """Fitted when first asked for: decoding a handful of small drawings."""
        return fit_preview(self.to_latents, self.decode, self._scale)

    def decode(self, latents_BCHW: Tensor) -> np.ndarray:
        latents = latents_BCHW.to(self._vae.dtype) / self._vae.config.scaling_factor
        pixels = self._vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5
        return as_bytes(pixels)


def as_bytes(pixels_B3HW: Tensor) -> np.ndarray:
    """Pictures in [0, 1] as ``[B, H, W, 3]`` of a byte each. GenerationFailed where one is not
    finite: half precision overflows in some autoencoders, and NaN would come out as black."""
    if not pixels_B3HW.isfinite().all():
        raise GenerationFailed("the picture is not finite")
    pixels = pixels_B3HW.clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def words(tokenizer: Any, prompt: str) -> Any:
    """A prompt as CLIP reads it: padded to its full length, longer ones cut."""
    return tokenizer(
        prompt,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
