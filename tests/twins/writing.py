"""What all twins share: an adapter that shows, an encoder of one's choice, and the release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig, PreTrainedTokenizerFast

from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.preferences.encoder import embedding_space
from ppd_serve.preferences.transform import BetweenUserTransform
from ppd_serve.release import Manifest, Release, Source, write_release
from tests.tiny_encoder import DIM, ROWS

MakeEncoder = Callable[[Path, int], Path]
"""Writes an encoder directory to a path, from a seed: any VLM with its prompt and transform."""


def write_twin(
    path: Path,
    name: str,
    pipeline: Any,
    new_adapter: Callable[[int], UserAdapter],
    defaults: Defaults,
    *,
    make_encoder: MakeEncoder | None,
    seed: int,
) -> Release:
    """A release of ``pipeline`` (it is saved) and ``new_adapter(embedding width)``, whose values
    are drawn here, so that users show. Without an encoder, embeddings are the tiny one's shape."""
    encoder, space, (rows, dim) = None, None, (ROWS, DIM)
    if make_encoder is not None:
        written = make_encoder(path / "encoder", seed)
        encoder = Source(path="encoder")
        space = embedding_space(written, dtype="float32", quantisation=None)
        rows, _, dim = BetweenUserTransform.load(written / "transform.safetensors").matrix.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = new_adapter(dim)
        for branch in adapter.branches:
            nn.init.normal_(branch.to_v_ip.weight, std=0.5)
    adapter.save(path / "adapter" / "ip_adapter.safetensors")
    pipeline.save_pretrained(path / "backbone", safe_serialization=True)
    return write_release(
        path,
        Manifest(
            name=name,
            version="1.0",
            backbone=Source(path="backbone"),
            adapter=Source(path="adapter/ip_adapter.safetensors"),
            encoder=encoder,
            embedding_space=space,
            embedding_shape=(rows, dim),
            defaults=defaults,
            example_prompts=["a red house by the sea"],
        ),
    )


def clip_config(tokenizer: PreTrainedTokenizerFast, width: int, **more: Any) -> CLIPTextConfig:
    """A CLIP text encoder of two layers over ``tokenizer``."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
