"""Weights in 4 or 8 bits through bitsandbytes, on CUDA and on the CPU.

4 bits are NF4 in blocks of 64 weights with one scale each. Which layers that is done to is decided
here, because it is part of what the embeddings are.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

Quantisation = Literal["4bit", "8bit"]

BLOCK = 64  # weights that share a scale
_OUTPUTS = 32  # that the fast kernels on a CPU (AVX-512 BF16) make at a time


def bitsandbytes_config(how: Quantisation, model: nn.Module, dtype: str) -> BitsAndBytesConfig:
    """``model``: the same architecture, on the meta device; ``dtype``: what is computed in."""
    skipped = layers_kept(model)
    if how == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=skipped,
    )


def layers_kept(model: Any) -> list[str]:
    """Linear layers that stay as they are: the head, and those whose width is no whole number of
    blocks.

    Where rows end inside a block the fast kernels read other rows' scales: the weights' error is
    .25 and more instead of .09. The head writes the profile, and is often the embedding table too.
    """
    head = model.get_output_embeddings()
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and (layer is head or layer.in_features % BLOCK or layer.out_features % _OUTPUTS)
    ]
