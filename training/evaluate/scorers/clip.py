"""CLIP's cosine, and the two that were tuned on people's choices: PickScore and HPSv2.

PickScore (arXiv 2305.01569) is CLIP ViT-H with its own temperature: ``exp(scale)·cos``. HPSv2
(arXiv 2306.09341) is the same network under other weights and says the cosine itself; it was tuned
on whole pictures, padded to a square, where CLIP cuts the middle out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from training.evaluate.scorers.base import Scores, batches, gathered
from training.evaluate.scorers.source import load_pretrained


class ClipScorer:
    """``clip``, ``pickscore`` or ``hpsv2`` over a transformers CLIPModel directory."""

    def __init__(self, name: str, path: Path, device: str, dtype: torch.dtype) -> None:
        self.name = name
        self.model = load_pretrained(CLIPModel, path, dtype=dtype).to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        # Pillow's resampling is what the weights were tuned and published with.
        self.processor = CLIPImageProcessorPil.from_pretrained(path)
        self.longest = self.model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Scores:
        scale = self.model.logit_scale.float().exp() if self.name == "pickscore" else 1.0
        return gathered(
            [
                scale * (self._texts(text) * self._images(pictures)).sum(-1)
                for text, pictures in batches(prompts, images)
            ]
        )

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """What the image tower sees, at unit length: ``[N, dim]``."""
        parts = [self._images(p).cpu() for _, p in batches([""] * len(images), images)]
        return torch.cat(parts).numpy()

    def _texts(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.model.device)
        found = self.model.get_text_features(
            tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return torch.nn.functional.normalize(found.pooler_output.float(), dim=-1)

    def _images(self, images: list[Image.Image]) -> Tensor:
        if self.name == "hpsv2":
            images = [letterbox(i, self.model.config.vision_config.image_size) for i in images]
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        found = self.model.get_image_features(pixels.to(self.model.device, self.model.dtype))
        return torch.nn.functional.normalize(found.pooler_output.float(), dim=-1)


def letterbox(image: Image.Image, side: int) -> Image.Image:
    """The whole picture, ``side`` along its longer edge, on a black square."""
    scale = side / max(image.size)
    width, height = (round(length * scale) for length in image.size)
    square = Image.new("RGB", (side, side))
    small = image.resize((max(width, 1), max(height, 1)), Image.Resampling.BICUBIC)
    square.paste(small, ((side - width) // 2, (side - height) // 2))
    return square
