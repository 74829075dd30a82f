"""A deployment that has trained nothing: a public IP-Adapter, biases and all, and its tower."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.preferences.embedding_space import embedding_space
from ppd_serve.release import Release, Source, write_release
from tests.twins.encoders import CLIP_DIM, make_clip
from tests.twins.sd15 import make_sd15


def make_day_one(path: Path) -> Release:
    made = make_sd15(path, make_encoder=None)
    clip = make_clip(path / "image_encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = UserAdapter.for_unet(made.load_backbone().denoiser, CLIP_DIM)
        for branch in adapter.branches:
            torch.nn.init.normal_(branch.to_v_ip.weight, std=0.5)
    assert made.adapter_path is not None
    adapter.save(made.adapter_path)
    add_biases(made.adapter_path)
    changes = {
        "encoder": Source(path="image_encoder"),
        "embedding_space": embedding_space(clip, dtype="float32", quantisation=None),
        "embedding_shape": (1, CLIP_DIM),
    }
    return write_release(path, made.manifest.model_copy(update=changes))


def add_biases(file: Path) -> None:
    """To an adapter of ours, which has none."""
    state = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for key in ("image_proj.proj.bias", "image_proj.norm.bias"):
        state[key] = torch.randn(state[key].shape, generator=generator)
    save_file(state, file)
