"""A tiny CLIP as the hub has it, and CLIP's preprocessing written out once more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from training.evaluate.scorers.image_reward import LONGEST
from training.tokenizer import train_tokenizer

SIDE, PATCH, WIDTH, OUT, LAYERS, HEADS = 32, 16, 24, 16, 2, 3
CONTEXT = 24  # of the tiny CLIP
PROMPTS = ["a red house", "", "a small tree by the lake, with much more to be said of it " * 3]
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
SPREAD = np.array([0.26862954, 0.26130258, 0.27577711])


def pictures(count: int, size: tuple[int, int] = (48, 48), seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [Image.fromarray(b).resize(size, Image.Resampling.NEAREST) for b in blocks]


def tokenizer(frame: tuple[str, str] = ("<|start|>", "<|end|>")) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", *frame]  # CLIPModel reads an end of id 2 as a sign of old files
    return train_tokenizer(
        ["a red house", "a small tree by the lake"] * 4,
        special=special, vocabulary=320, max_length=LONGEST, frame=frame,
    )  # fmt: skip


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """Every weight random, norms and biases too, so that none can hide behind a one or a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            near = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            value.copy_(near + 0.2 * torch.randn(value.shape, generator=generator))
    return model.eval()


def pixels(images: list[Image.Image]) -> Tensor:
    """CLIP's picture: the shorter edge to SIDE, the middle cut out, standardised."""
    out = []
    for image in images:
        scale = SIDE / min(image.size)
        small = image.resize((int(image.width * scale), int(image.height * scale)), Image.BICUBIC)
        left, top = (small.width - SIDE) // 2, (small.height - SIDE) // 2
        small = small.crop((left, top, left + SIDE, top + SIDE))
        out.append((np.asarray(small) / 255.0 - MEAN) / SPREAD)
    return torch.tensor(np.stack(out), dtype=torch.float32).permute(0, 3, 1, 2)


def make_tiny_clip(path: Path) -> Path:
    """Weights, config, tokenizer and image processor in a directory."""
    words = tokenizer()
    shape = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "projection_dim": OUT, "hidden_act": "gelu",
    }  # fmt: skip
    config = CLIPConfig(
        text_config=shape | {
            "vocab_size": len(words), "max_position_embeddings": CONTEXT,
            "pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config=shape | {"image_size": SIDE, "patch_size": PATCH},
        projection_dim=OUT,
    )  # fmt: skip
    shaken(CLIPModel(config), 0).save_pretrained(path)
    words.save_pretrained(path)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(path)
    return path
