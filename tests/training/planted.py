"""A toy backbone and choices with a planted taste: half the people like what is bright, the rest
what is dark, and brightness is one latent channel."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from ppd_serve.diffusion.stable_diffusion import StableDiffusion
from tests.tiny_release import tiny_pipeline
from training.data.choice_set import ChoiceSet

PROMPTS = ("a red house", "a cat on a hill", "the sea at night", "a tree")
USERS, READINGS, DIM = 40, 3, 4
PICTURES, PAIRS = 200, 400


def planted_backbone(dtype: torch.dtype = torch.float64, seed: int = 0) -> StableDiffusion:
    """Stable Diffusion's classes with a UNet small enough for hundreds of steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = tiny_pipeline()
        pipeline.unet = UNet2DConditionModel(
            sample_size=4, in_channels=2, out_channels=2, layers_per_block=1,
            block_out_channels=(16, 16), attention_head_dim=2, norm_num_groups=4,
            cross_attention_dim=pipeline.text_encoder.config.hidden_size,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
    return StableDiffusion(pipeline.to(dtype))


def planted_choices(
    backbone: StableDiffusion, *, seed: int = 0, people: int = USERS, pairs: int = PAIRS
) -> ChoiceSet:
    """Every reading says, with some noise, which half its user is in. Most people like it bright,
    so that there is something to learn without users too."""
    rng = np.random.default_rng(seed)
    latents = 0.3 * rng.standard_normal((PICTURES, 2, 4, 4), np.float32)
    bright = rng.choice([-1.0, 1.0], PICTURES)
    latents[:, 0] += bright[:, None, None]
    side = np.where(np.arange(people) % 8 == 0, -1.0, 1.0)
    user = rng.integers(people, size=pairs)
    a = rng.choice(np.flatnonzero(bright > 0), pairs)
    b = rng.choice(np.flatnonzero(bright < 0), pairs)
    likes_bright = side[user] > 0
    readings = 0.1 * rng.standard_normal((people * READINGS, 1, DIM), np.float32)
    readings[:, 0, 0] += np.repeat(side, READINGS)
    text = [backbone.encode(p)["states"] for p in (*PROMPTS, "")]

    def unit(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return ChoiceSet(
        user=user,
        prompt=rng.integers(len(PROMPTS), size=pairs),
        preferred=np.where(likes_bright, a, b),
        rejected=np.where(likes_bright, b, a),
        read_in=np.full(pairs, -1),
        latents=latents,
        text={"states": torch.cat(text).float().numpy()},
        readings=readings,
        reading_user=np.repeat(np.arange(people), READINGS),
        reading_pairs=rng.integers(1, 5, people * READINGS),
        prompt_features=unit(rng.standard_normal((len(PROMPTS), 6))),
        picture_features=unit(rng.standard_normal((PICTURES, 6))),
    )
