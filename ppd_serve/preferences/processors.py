"""The processor of a VLM, for pictures and text.

Pictures always pass through Pillow: whether torchvision happens to be installed must not change an
embedding, and nothing here needs it. What a model's processor knows of videos is left out.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import PROCESSOR_MAPPING, AutoConfig, AutoImageProcessor, AutoTokenizer

from ppd_serve.errors import ReleaseError

# What transformers raises for a directory that holds something else.
UNREADABLE = (OSError, ValueError, ImportError, AttributeError, KeyError)


def load_processor(path: str | Path) -> Any:
    """The processor of a transformers model directory. Raises what transformers raises, or
    ReleaseError for a kind that reads more than pictures and text."""
    kind = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(path))]
    settings, _ = kind.get_processor_dict(path)
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(path, backend="pil"),
        "tokenizer": AutoTokenizer.from_pretrained(path),
        "video_processor": None,
    }
    if foreign := set(kind.get_attributes()) - parts.keys():
        raise ReleaseError(f"encoder: {kind.__name__} also wants {', '.join(sorted(foreign))}")
    if parts["tokenizer"].pad_token is None:  # people are read together, padded
        parts["tokenizer"].pad_token = parts["tokenizer"].eos_token
    given = [parts[name] for name in kind.get_attributes()]
    return _without_video(kind).from_args_and_dict(given, settings)


def _without_video(kind: Any) -> Any:
    """The same processor; its part for videos, which alone would need torchvision, is not one of
    its attributes."""

    class PicturesAndText(kind):  # type: ignore[misc]
        video_processor = SimpleNamespace(num_frames=None, fps=None)  # SmolVLM asks for them

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

    return PicturesAndText


def limit_pixels(model: Any, processor: Any, pixels: int) -> None:
    """Show the model at most ``pixels`` of each picture, in the unit that its kind counts in.

    Qwen-VL resizes to any multiple of its patches; Idefics3 and SmolVLM cut into tiles, beside one
    view of the whole; LLaVA-OneVision has a list of tilings, for a picture that stands alone
    (among others, every picture is one tile). The rest (LLaVA) see pictures at one size. A budget
    below a model's least is its least.
    """
    images = processor.image_processor
    if hasattr(images, "merge_size"):
        least = (images.patch_size * images.merge_size) ** 2
        most = max(least, min(pixels, images.size["longest_edge"]))
        images.size = {
            "shortest_edge": min(images.size["shortest_edge"], most),
            "longest_edge": most,
        }
    elif hasattr(images, "do_image_splitting"):
        tile = images.max_image_size["longest_edge"]
        across = max(1, int(pixels**0.5) // tile)
        if across * tile < images.size["longest_edge"]:
            images.size = {"longest_edge": across * tile}
        images.do_image_splitting = images.do_image_splitting and across > 1
    elif hasattr(images, "image_grid_pinpoints"):
        tilings = sorted(images.image_grid_pinpoints, key=lambda tiling: tiling[0] * tiling[1])
        fit = [tiling for tiling in tilings if tiling[0] * tiling[1] <= pixels] or tilings[:1]
        images.image_grid_pinpoints = model.config.image_grid_pinpoints = fit
