"""Weights in 4 or 8 bits through bitsandbytes, on CUDA and on the CPU.

4 bits are NF4 in blocks of 64 weights with one scale each; 8 bits are whole rows with one scale
each, computed in float16. Which layers that is done to is decided here, because it is part of what
the embeddings are.
"""

from __future__ import annotations

import logging
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
        # It says at every matrix product that it computes in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
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

    Where rows end inside a block, a quiet row shares its scale with a loud one (an error of .25 and
    more of its weights instead of .09), and the fast kernels on a CPU fail. The head writes the
    profile, and is often the embedding table too. The image tower is not spared: on the shipped
    encoder that changed the embeddings' cosine to float32's from .9999 to 1.0000.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()  # a CLIP tower has none
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and (layer is head or layer.in_features % BLOCK or layer.out_features % _OUTPUTS)
    ]
