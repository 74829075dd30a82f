"""How near two pairs are in CLIP space: what Diffusion-RPO (arXiv 2406.06382) weights by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
T = TypeVar("T")

_AT_ONCE = 32


def unit(features: Array) -> Array:
    """Rows ``[..., F]`` at length 1; a zero stays zero."""
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return np.asarray(features / np.where(length > 0, length, 1), np.float32)


def pair_distance(prompt: Array, picture_w: Array, picture_l: Array) -> Array:
    """``D_ij = 1 - cos(e_i, e_j)``, pair i by its winner and pair j by its loser: ``[B, B]``.

    prompt, picture_w, picture_l: features ``[B, F]`` of any length. ``e`` is the unit prompt beside
    the unit picture, so the cosine is the mean of the prompts' and the pictures' own.
    """
    prompt = unit(prompt)
    cosine = (prompt @ prompt.T + unit(picture_w) @ unit(picture_l).T) / 2
    return np.asarray(1 - cosine, np.float32)


class Clip:
    """Features of prompts and pictures from a ``transformers.CLIPModel``.

    place: a directory or a hub id; weights are safetensors. A text longer than the model reads is
    cut. Raises ``OSError`` (from transformers) where there is no such model.
    """

    def __init__(
        self, place: str | Path, *, revision: str | None = None, device: str = "cpu"
    ) -> None:
        from transformers import CLIPModel, CLIPProcessor

        # The processor picks the image side that works without torchvision by itself.
        self._processor = CLIPProcessor.from_pretrained(place, revision=revision)
        model = CLIPModel.from_pretrained(place, revision=revision, use_safetensors=True)
        self._model = model.to(device).eval()
        self._device = device

    @property
    def dim(self) -> int:
        return int(self._model.config.projection_dim)

    def prompts(self, texts: Sequence[str]) -> Array:
        """Unit features ``[N, F]``."""
        longest = self._model.config.text_config.max_position_embeddings
        words = {"padding": True, "truncation": True, "max_length": longest}
        return self._features(
            self._model.get_text_features,
            texts,
            lambda some: self._processor(text=some, return_tensors="pt", **words),
        )

    def pictures(self, pictures: Sequence[Image.Image]) -> Array:
        """Unit features ``[N, F]``."""
        return self._features(
            self._model.get_image_features,
            pictures,
            lambda some: self._processor(images=some, return_tensors="pt"),
        )

    @torch.inference_mode()
    def _features(
        self, model: Callable[..., Any], items: Sequence[T], ready: Callable[[list[T]], Any]
    ) -> Array:
        found = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(items), _AT_ONCE):
            batch = ready(list(items[start : start + _AT_ONCE])).to(self._device)
            found.append(unit(model(**batch).pooler_output.float().cpu().numpy()))
        return np.concatenate(found)
