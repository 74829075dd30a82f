"""How large a release's models are: counted from their configs, without a weight being read."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from ppd_serve.diffusion.backbone import loaded_parts
from ppd_serve.preferences.quantisation import BLOCK, layers_kept

BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
FOUR_BIT = 0.5 + 4 / BLOCK  # a float32 scale for every block
# No longer where pipelines say that it is: see ``StableCascade.load``.
MOVED = {("diffusers", "PaellaVQModel"): "diffusers.pipelines.deprecated.wuerstchen"}


@dataclass(frozen=True)
class Size:
    """A model's parameters, and those of them that 4-bit layers would hold."""

    name: str
    parameters: int
    in_four_bit: int = 0

    def memory(self, dtype: str, *, four_bit: bool = False) -> int:
        """Bytes of the weights alone."""
        small = self.in_four_bit if four_bit else 0
        return round((self.parameters - small) * BYTES[dtype] + small * FOUR_BIT)


def size_of(name: str, model: nn.Module) -> Size:
    """Of any model, on the meta device too."""
    kept = {*layers_kept(model)}
    small = (
        layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name not in kept
    )
    return Size(name, sum(p.numel() for p in model.parameters()), sum(small))


def backbone_sizes(path: Path) -> list[Size]:
    """Of every model of a saved pipeline that is served."""
    return [
        size_of(name, _on_meta(path / name, *kind))
        for name, kind in loaded_parts(path).items()
        if (path / name / "config.json").exists()
    ]


def encoder_size(path: Path) -> Size:
    """Of a transformers model."""
    architecture = json.loads((path / "config.json").read_text())["architectures"][0]
    return size_of("encoder", _on_meta(path, "transformers", architecture))


def tensors_size(name: str, file: Path) -> Size:
    """Of a safetensors file, by its header."""
    with safe_open(file, "pt") as tensors:
        shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
    return Size(name, sum(map(math.prod, shapes)))


def _on_meta(path: Path, library: str, kind: str) -> nn.Module:
    cls: Any = getattr(_module(MOVED.get((library, kind), library)), kind)
    with torch.device("meta"):
        if issubclass(cls, PreTrainedModel):
            return cls(cls.config_class.from_pretrained(path))  # type: ignore[no-any-return]
        return cls.from_config(cls.load_config(path))  # type: ignore[no-any-return]


def _module(library: str) -> ModuleType:
    """What a pipeline's index means: a library, or a pipeline of diffusers with its own models."""
    if library in ("diffusers", "transformers", *MOVED.values()):
        return importlib.import_module(library)
    try:
        return importlib.import_module(f"diffusers.pipelines.{library}")
    except ModuleNotFoundError:
        return importlib.import_module(f"diffusers.pipelines.deprecated.{library}")
