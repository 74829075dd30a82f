"""ImageReward (arXiv 2304.05977): BLIP reads the caption while it looks at the picture.

ViT-L/16 sees the picture; a BERT whose layers attend to it reads the caption; its first token's
state goes through a linear head, and the reward is standardised by the published constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoTokenizer, BlipConfig, BlipVisionModel
from transformers.models.blip.modeling_blip import BlipPreTrainedModel
from transformers.models.blip.modeling_blip_text import BlipTextModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from training.evaluate.scorers.base import Scores, batches, gathered
from training.evaluate.scorers.head import LinearHead
from training.evaluate.scorers.source import load_pretrained

MEAN, SPREAD = 0.16717362830052426, 1.0333394966054072
LONGEST = 35  # tokens of a caption


class ImageRewardModel(BlipPreTrainedModel):
    """Pixels ``[B, 3, H, W]`` and a caption's tokens ``[B, T]`` -> ``[B]``."""

    config_class = BlipConfig
    _keep_in_fp32_modules_strict = ("head",)

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_model = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.head = LinearHead(config.text_config.hidden_size)
        self.post_init()

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = self.vision_model(pixel_values).last_hidden_state
        read = self.text_model(
            input_ids, attention_mask=attention_mask, encoder_hidden_states=seen, is_decoder=False
        ).last_hidden_state
        return (self.head(read[:, 0].float()) - MEAN) / SPREAD


class ImageRewardScorer:
    """``imagereward`` over a directory that ``convert`` wrote."""

    name = "imagereward"

    def __init__(self, path: Path, device: str, dtype: torch.dtype) -> None:
        self.model = load_pretrained(ImageRewardModel, path, dtype=dtype).to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.processor = CLIPImageProcessorPil.from_pretrained(path)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], images: Sequence[Image]) -> Scores:
        parts = []
        for texts, pictures in batches(prompts, images):
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
            tokens = self.tokenizer(
                texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            ).to(self.model.device)
            pixels = pixels.to(self.model.device, self.model.vision_model.dtype)
            parts.append(self.model(pixels, tokens["input_ids"], tokens["attention_mask"]))
        return gathered(parts)
