"""Day one, without training: the CLIP image tower that the public IP-Adapters were trained with.

A person is the mean embedding of the pictures they preferred less that of those they rejected, at
the length that an image embedding has: what their choices have in common, given to an adapter that
draws what an image has in common with it (arXiv 2308.06721). Whoever's choices say nothing is zero.

An encoder directory is a ``CLIPVisionModelWithProjection`` (the ``image_encoder`` folder of
``h94/IP-Adapter``) and an ``encoder.json``, which may say instead where on the hub the model is.
No profile is written and no transform fitted; the model's words play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import AutoImageProcessor, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.embedding_space import embedding_space
from ppd_serve.preferences.model_files import HubModel, model_directory
from ppd_serve.preferences.pair_encoder import Array, ChunkReading, PairEncoder
from ppd_serve.preferences.prompt import Choice
from ppd_serve.preferences.quantisation import Quantisation

_NOTHING = 1e-5  # of a picture's length: a difference that rounding makes of equal pictures


class ClipConfig(BaseModel):
    """``encoder.json`` of a CLIP tower."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: HubModel | None = None  # None: in the encoder directory itself


class ClipEncoder(PairEncoder):
    """A chunk's state is ``[dim + 1]``: preferred less rejected, and how long a picture's is."""

    rows = 1

    def __init__(self, model: Any, processor: Any, *, space: str, cache_chunks: int = 4096) -> None:
        super().__init__(space, cache_chunks)
        self.model = model
        self.processor = processor
        self.dim = model.config.projection_dim

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        quantisation: Quantisation | None = None,
    ) -> ClipEncoder:
        """Load an encoder directory. Raises ReleaseError naming what is missing or unsafe."""
        if quantisation is not None:
            raise ReleaseError("encoder: a CLIP tower is small and is not quantised")
        path = Path(path)
        try:
            config = ClipConfig.model_validate_json((path / "encoder.json").read_bytes())
        except ValidationError as error:
            raise ReleaseError(f"encoder.json: {error.errors()[0]['msg']}") from None
        try:
            weights = model_directory(path, config.model)
            model = CLIPVisionModelWithProjection.from_pretrained(
                weights, dtype=getattr(torch, dtype), use_safetensors=True
            )
            processor = _processor(weights, model.config.image_size)
        except (OSError, ValueError) as error:
            raise ReleaseError(f"encoder: {error}") from error
        space = embedding_space(path, dtype=dtype, quantisation=None, weights=weights)
        return cls(model.to(device).eval(), processor, space=space)

    def read_all(self, chunks: Sequence[Sequence[Choice]]) -> list[ChunkReading]:
        pictures = [image for chunk in chunks for _, *pair in chunk for image in pair]
        readings: list[ChunkReading] = []
        seen, start = self._embed(pictures), 0
        for chunk in chunks:
            pairs = seen[start : start + 2 * len(chunk)].reshape(len(chunk), 2, self.dim)
            start += 2 * len(chunk)
            length = np.linalg.norm(pairs, axis=-1).mean(keepdims=True).reshape(1)
            state = np.concatenate([(pairs[:, 0] - pairs[:, 1]).mean(0), length])
            readings.append((state.astype(np.float32), None))
        return readings

    def embedding(self, state: Array) -> Array:
        difference, length = state[None, :-1], state[-1]
        found = float(np.linalg.norm(difference))
        if found <= _NOTHING * length:
            return np.zeros_like(difference)
        return np.asarray(difference * (length / found), np.float32)

    def see(self, picture: Image.Image) -> Array:
        found: Array = self._embed([picture])[0]
        return found

    @torch.inference_mode()
    def _embed(self, pictures: Sequence[Image.Image]) -> Array:
        """``[pictures, dim]``, as IP-Adapter is given them."""
        inputs = self.processor(images=list(pictures), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        found: Array = self.model(pixels).image_embeds.float().cpu().numpy()
        return found


def _processor(path: Path, side: int) -> Any:
    """CLIP's own settings where the repository has none, as diffusers takes them."""
    if (path / "preprocessor_config.json").exists():
        return AutoImageProcessor.from_pretrained(path, backend="pil")
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
