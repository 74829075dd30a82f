"""What a VLM's eyes make of one picture: its image tower's states, before any words."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

# A picture has 4 tokens in one model and 700 in another: their means over as many parts of equal
# length, in reading order, keep where in the picture something is, roughly.
PARTS = 4


@torch.inference_mode()
def picture_states(model: Any, processor: Any, picture: Image) -> NDArray[np.float32]:
    """``[PARTS · width]``. ``model`` is any of transformers' image-text-to-text models."""
    inputs = processor.image_processor(images=[picture], return_tensors="pt").to(model.device)
    known = inspect.signature(model.get_image_features).parameters
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
        if name in known
    }
    # One tensor, or one per tile of the picture: [tokens, width] each.
    seen = model.get_image_features(**inputs).pooler_output
    tokens = torch.cat([part.reshape(-1, part.shape[-1]) for part in seen])
    means = [part.mean(0) for part in tokens.float().tensor_split(PARTS)]
    return torch.cat(means).cpu().numpy()
