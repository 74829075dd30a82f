"""LAION's aesthetic predictor: how much people would rate a picture, from 1 to 10.

A linear map of CLIP ViT-L/14's image embedding at unit length, fitted on SAC, Logos and AVA
(``sac+logos+ava1-l14-linearMSE``). It does not look at the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel

from training.evaluate.scorers.base import Scores, batches, gathered
from training.evaluate.scorers.head import LinearHead
from training.evaluate.scorers.source import load_pretrained


class AestheticModel(CLIPPreTrainedModel):
    """CLIP's image tower with the linear head: ``[B, 3, H, W]`` -> ``[B]``."""

    config_class = CLIPVisionConfig
    main_input_name = "pixel_values"
    _keep_in_fp32_modules_strict = ("head",)

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.tower = CLIPVisionModelWithProjection(config)
        self.head = LinearHead(config.projection_dim)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.tower(pixel_values).image_embeds.float()
        return self.head(torch.nn.functional.normalize(seen, dim=-1))


class AestheticScorer:
    """``aesthetic`` over a directory that ``convert`` wrote."""

    name = "aesthetic"

    def __init__(self, path: Path, device: str, dtype: torch.dtype) -> None:
        self.model = load_pretrained(AestheticModel, path, dtype=dtype).to(device)
        self.processor = CLIPImageProcessorPil.from_pretrained(path)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], images: Sequence[Image]) -> Scores:
        parts = []
        for _, pictures in batches(prompts, images):
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
            parts.append(self.model(pixels.to(self.model.device, self.model.tower.dtype)))
        return gathered(parts)
