"""What reading a person's choices costs a VLM in the shape of a 7B one, whole and in 4 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_parts.measure import finished, forget_peak, peak_gb, times
from benchmarks.gpu_parts.models import Size, build_vlm
from benchmarks.report import Figure, seconds, spread
from ppd_serve.preferences.encoder import load_vlm

Table = dict[str, Figure | float]
PICTURES = 8  # four pairs
PROFILE = 128  # tokens
SIDE = {"full": 36, "toy": 4}  # patches of a picture's side: 504 pixels
WORDS = {"full": 400, "toy": 20}  # around the pictures


def reading(size: Size, device: str, users: Sequence[int], repeats: int) -> dict[str, Table]:
    tables = {}
    with tempfile.TemporaryDirectory() as place:
        build_vlm(size, device, torch.bfloat16).save_pretrained(place)
        for name, quantisation in (("bfloat16", None), ("4-bit", "4bit")):
            model: Any = None
            forget_peak(device)

            def load(how: Any = quantisation) -> None:
                nonlocal model
                model = load_vlm(place, device=device, dtype="bfloat16", quantisation=how)
                finished(device)

            table: Table = {"s to load": seconds(load)}
            if (gb := peak_gb(device)) is not None:
                table["weights, GB"] = torch.cuda.memory_allocated() / 1e9
            for count in users:
                table |= _read(model, inputs(model, size, count, device), repeats, device)
            if (gb := peak_gb(device)) is not None:
                table["most memory, GB"] = gb
            tables[f"reading four pairs, {name}"] = table
    return tables


def _read(model: Any, told: dict[str, Tensor], repeats: int, device: str) -> Table:
    """As our encoder does: hidden states with every token, greedily."""
    count, length = told["input_ids"].shape

    def written(tokens: int) -> Figure:
        def run() -> None:
            model.generate(
                **told, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens,
                output_hidden_states=True, return_dict_in_generate=True,
            )  # fmt: skip

        return spread([each / count for each in times(run, device, repeats)])

    return {
        f"{count} at once: tokens of a user": float(length),
        f"{count} at once: s a user, states alone": written(1),
        f"{count} at once: s a user, and a profile of {PROFILE} tokens": written(PROFILE),
    }


def inputs(model: Any, size: Size, users: int, device: str) -> dict[str, Tensor]:
    """What Qwen's processor would make of ``PICTURES`` square pictures among words, ``users``
    times: ``input_ids`` [users, tokens], ``pixel_values`` [users · pictures · patches, width]."""
    config, side = model.config, SIDE[size]
    vision = config.vision_config
    seen = (side // vision.spatial_merge_size) ** 2
    picture = [config.vision_start_token_id, *[config.image_token_id] * seen,
               config.vision_end_token_id]  # fmt: skip
    ids = [5] * WORDS[size] + picture * PICTURES
    tokens = torch.tensor([ids] * users, device=device)
    patches = users * PICTURES * side**2
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == config.image_token_id).int(),
        "pixel_values": torch.randn(patches, width, device=device, dtype=torch.bfloat16),
        "image_grid_thw": torch.tensor([[1, side, side]] * users * PICTURES, device=device),
    }
