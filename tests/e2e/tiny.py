"""A tiny release that can be served: random backbone, adapter and VLM, of the real classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from ppd_serve.preferences.encoder import EncoderConfig, embedding_space
from ppd_serve.preferences.transform import BetweenUserTransform
from ppd_serve.release import Release, Source, write_release
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS, byte_tokenizer, make_tiny_release

SIDE, PATCH, WIDTH = 64, 16, 32
SPECIAL = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>{% endfor %}"
)


def make_servable_release(path: Path, seed: int = 0) -> Release:
    """``make_tiny_release`` and an encoder whose embeddings tell different pairs apart."""
    release = make_tiny_release(path, seed)
    encoder = path / "encoder"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_vlm(encoder)
    config = EncoderConfig(
        position="before_profile", layers=tuple(range(-EMBEDDING_ROWS, 0)), profile="skip"
    )
    (encoder / "encoder.json").write_text(config.model_dump_json())
    matrix = np.random.default_rng(seed).normal(size=(EMBEDDING_ROWS, WIDTH, EMBEDDING_DIM))
    mean = np.zeros((EMBEDDING_ROWS, WIDTH), np.float32)
    BetweenUserTransform(mean, matrix.astype(np.float32)).save(encoder / "transform.safetensors")
    return write_release(
        path,
        release.manifest.model_copy(
            update={
                "encoder": Source(path="encoder"),
                "embedding_space": embedding_space(encoder, dtype="float32", quantisation=None),
            }
        ),
    )


def _write_vlm(path: Path) -> None:
    tokenizer = byte_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.padding_side = "left"
    tokens_per_image = (SIDE // PATCH // 4) ** 2
    images = Idefics3ImageProcessorPil(
        do_resize=True,
        size={"longest_edge": SIDE},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=False,
    )
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=tokens_per_image, chat_template=CHAT
    )
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=4,
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": WIDTH,
            "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<end_of_utterance>"),
        },
    )  # fmt: skip
    Idefics3ForConditionalGeneration(config).save_pretrained(path)
    processor.save_pretrained(path)
