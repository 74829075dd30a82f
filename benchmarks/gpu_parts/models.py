"""Models with random weights in the published checkpoints' shapes, made on the device itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDPMWuerstchenScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableCascadeCombinedPipeline,
    StableCascadeUNet,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from benchmarks.gpu_parts import architectures as shapes
from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.sdxl import StableDiffusionXL
from ppd_serve.diffusion.stable_cascade import StableCascade, StageB
from ppd_serve.diffusion.stable_diffusion import StableDiffusion
from training.policy import Weights

Size = Literal["full", "toy"]


@dataclass(frozen=True)
class Model:
    """``pipeline`` makes the stock one, ``backbone`` ours of its parts. ``trained``: what is,
    beside the user branch."""

    pipeline: Callable[[Size], Any]
    backbone: Callable[[Any], Backbone]
    usual: Defaults
    toy_side: int = 64
    trained: Weights = "lora"

    def defaults(self, size: Size) -> Defaults:
        if size == "full":
            return self.usual
        return replace(self.usual, sizes=((self.toy_side, self.toy_side),), steps=3)


def build(model: Model, size: Size, device: str, dtype: torch.dtype) -> Any:
    """The stock pipeline with random weights. The same seed, the same weights on one device."""
    torch.manual_seed(0)
    with torch.device(device), _default_dtype(dtype):
        pipeline = model.pipeline(size)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_vlm(size: Size, device: str, dtype: torch.dtype) -> Any:
    """A VLM in the shape of Qwen2.5-VL 7B."""
    config = Qwen2_5_VLConfig(**(shapes.QWEN_7B if size == "full" else shapes.TOY_QWEN))
    torch.manual_seed(0)
    with torch.device(device), _default_dtype(dtype):
        return Qwen2_5_VLForConditionalGeneration(config).eval()


def _sd15(size: Size) -> StableDiffusionPipeline:
    full = size == "full"
    clip = shapes.CLIP_L if full else shapes.TOY_CLIP
    return StableDiffusionPipeline(
        vae=AutoencoderKL(**shapes.SD15_VAE | ({} if full else shapes.TOY_VAE)),
        text_encoder=_text_encoder(CLIPTextModel, clip),
        tokenizer=byte_tokenizer(clip["max_position_embeddings"]),
        unet=UNet2DConditionModel(**shapes.SD15_UNET if full else shapes.TOY_SD15_UNET),
        scheduler=_scheduler(PNDMScheduler, shapes.SD15_SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(size: Size) -> StableDiffusionXLPipeline:
    full = size == "full"
    first, second = (shapes.CLIP_L, shapes.CLIP_BIG_G) if full else (shapes.TOY_CLIP,) * 2
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**shapes.SDXL_VAE | ({} if full else shapes.TOY_VAE)),
        text_encoder=_text_encoder(CLIPTextModel, first),
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, second),
        tokenizer=byte_tokenizer(first["max_position_embeddings"]),
        tokenizer_2=byte_tokenizer(second["max_position_embeddings"]),
        unet=UNet2DConditionModel(**shapes.SDXL_UNET if full else shapes.TOY_SDXL_UNET),
        scheduler=_scheduler(EulerDiscreteScheduler, shapes.SDXL_SCHEDULER),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip


def _cascade(size: Size) -> StableCascadeCombinedPipeline:
    full = size == "full"
    clip = shapes.CLIP_BIG_G if full else shapes.TOY_CLIP
    tokenizer = byte_tokenizer(clip["max_position_embeddings"])
    text_encoder = _text_encoder(CLIPTextModelWithProjection, clip)
    scheduler = _scheduler(DDPMWuerstchenScheduler, {})
    return StableCascadeCombinedPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, scheduler=scheduler,
        decoder=StableCascadeUNet(**shapes.CASCADE_STAGE_B if full else shapes.TOY_STAGE_B).eval(),
        vqgan=PaellaVQModel(**{} if full else shapes.TOY_VQGAN).eval(),
        prior_prior=StableCascadeUNet(
            **shapes.CASCADE_STAGE_C if full else shapes.TOY_STAGE_C
        ).eval(),
        prior_text_encoder=text_encoder, prior_tokenizer=tokenizer, prior_scheduler=scheduler,
    )  # fmt: skip


def _our_cascade(pipeline: StableCascadeCombinedPipeline) -> StableCascade:
    sampling = {**pipeline.scheduler.config, "_class_name": "DDPMWuerstchenScheduler"}
    return StableCascade(
        pipeline.prior_prior, sampling, pipeline.prior_text_encoder, pipeline.prior_tokenizer,
        StageB(pipeline.decoder, sampling, pipeline.vqgan),
        Path(),  # nobody asks for latents of pictures
    )  # fmt: skip


MODELS = {
    "sd15": Model(_sd15, StableDiffusion, StableDiffusion.usual),
    "sdxl": Model(_sdxl, StableDiffusionXL, StableDiffusionXL.usual),
    "stable-cascade": Model(
        _cascade, _our_cascade, StableCascade.usual, toy_side=128, trained="adapter"
    ),
}  # fmt: skip


def byte_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Of CLIP's kind, without its merges: what is read does not matter here, how much does."""
    words = ["<|start|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 0), ("<|end|>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>",
        pad_token="<|end|>", model_max_length=length,
    )  # fmt: skip


def _text_encoder(cls: Any, config: dict[str, Any]) -> nn.Module:
    made: nn.Module = cls(
        CLIPTextConfig(**config, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    ).eval()
    return made


def _scheduler(cls: Any, config: dict[str, Any]) -> Any:
    with torch.device("cpu"), _default_dtype(torch.float32):  # its tables stay on the CPU
        return cls.from_config(config)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
