"""A whole encoder directory, small and untrained, in the very formats of a trained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from ppd_serve.preferences.encoder import Encoder, EncoderConfig
from ppd_serve.preferences.prompt import Choice
from ppd_serve.preferences.transform import fit_transform
from training.data.world import SIDE
from training.vlm import IMAGE, PATCH, STUDIO_PROMPT, new_processor

ROWS, DIM, WIDTH = 2, 12, 32
PEOPLE, READINGS = 16, 2  # what the transform is fitted on


def make_tiny_encoder(path: str | Path, seed: int = 0) -> Path:
    """Write a random Idefics3 with its processor, prompt and a transform fitted on its own states.

    Different pairs get clearly different embeddings ``[2, 12]``; the same seed, the same files.
    """
    path = Path(path)
    processor = new_processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny_vlm(processor.tokenizer)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    config = EncoderConfig(
        prompt=STUDIO_PROMPT.model_copy(update={"caption": "{caption}"}),
        position="before_profile",
        layers=tuple(range(-ROWS, 0)),
        max_profile_tokens=4,
    )
    (path / "encoder.json").write_text(config.model_dump_json(indent=1) + "\n")
    skip = config.model_copy(update={"profile": "skip"})
    reader = Encoder(model, processor, skip, None, space="")
    rng = np.random.default_rng(seed)
    states = [
        [reader.read([random_choice(rng)])[0] for _ in range(READINGS)] for _ in range(PEOPLE)
    ]
    fit_transform(np.array(states), DIM).save(path / "transform.safetensors")
    return path


def random_choice(rng: np.random.Generator) -> Choice:
    """A caption and two pictures of coarse colour blocks."""
    blocks = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
    preferred, rejected = (Image.fromarray(b).resize((SIDE, SIDE)) for b in blocks)
    return "a house by the sea", preferred, rejected


def tiny_vlm(tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=4,
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
            "initializer_range": 0.2,
        },
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": WIDTH,
            "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.2,
        },
        initializer_range=0.2,
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config).eval()
