"""Twins of the VLMs and of the CLIP tower: as their repositories lay out files, pixels to tokens.

Processor settings are in ``preprocessor_config.json``, beside tokenizer and chat template, as the
hub has them; nothing is written that needs torchvision to be read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from ppd_serve.preferences.encoder import Encoder, EncoderConfig
from ppd_serve.preferences.prompt import FewShotPrompt
from ppd_serve.preferences.transform import fit_transform
from tests.tiny_encoder import random_choice

WIDTH, LAYERS, CLIP_DIM = 32, 2, 16
PROMPT = FewShotPrompt(
    caption="{number}. {caption}", preferred="liked", rejected="disliked", task="Who is this?"
)
_PEOPLE, _DIRECTIONS = 12, 8
_SPREAD = 0.2  # of random weights: enough that different pictures make different states

TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PICTURES_FIRST = (  # as LLaVA's own templates do
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>"
    "{% endfor %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}\n"
    "{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llava_onevision(path: Path) -> None:
    """A tile is 28 px and 4 tokens; a picture alone is cut into up to 2x2 tiles."""
    tokenizer = byte_tokens("<image>", "<video>")
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid, tie_word_embeddings=False,
    )  # fmt: skip
    _save(path, LlavaOnevisionForConditionalGeneration(config), tokenizer, PICTURES_FIRST, {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "size": {"height": 28, "width": 28}, "image_grid_pinpoints": grid,
    })  # fmt: skip
    _write(path / "processor_config.json", {
        "processor_class": "LlavaOnevisionProcessor", "image_token": "<image>",
        "num_image_tokens": 4, "vision_feature_select_strategy": "full", "video_token": "<video>",
    })  # fmt: skip


def qwen2_5_vl(path: Path) -> None:
    """A token is 28x28 px."""
    tokenizer, ids = _qwen_tokens()
    config = Qwen2_5_VLConfig(
        text_config={
            "model_type": "qwen2_5_vl_text", **_text(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3],
                                "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": WIDTH, "patch_size": 14, "fullatt_block_indexes": [1],
        },
        **ids,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    _save(path, model, tokenizer, _qwen_turns(), _qwen_pictures("Qwen2_5_VLProcessor", 14))


def qwen3_vl(path: Path) -> None:
    """A token is 32x32 px."""
    tokenizer, ids = _qwen_tokens()
    config = Qwen3VLConfig(
        text_config={
            "model_type": "qwen3_vl_text", **_text(tokenizer), "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3],
                                "mrope_interleaved": True, "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": WIDTH, "patch_size": 16, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **ids,
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config)
    _save(path, model, tokenizer, _qwen_turns(), _qwen_pictures("Qwen3VLProcessor", 16))


def smolvlm(path: Path) -> None:
    """A tile is 32 px and 4 tokens; a picture is 2x2 tiles at most, and one of the whole."""
    config = SmolVLMConfig(**_tiles(tokenizer := _tile_tokens()))
    model = SmolVLMForConditionalGeneration(config)
    _save(path, model, tokenizer, TURNS.replace("IMAGE", "<image>"), _tiled("SmolVLM"))
    _write(
        path / "processor_config.json", {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    )


def idefics3(path: Path) -> None:
    """Tiles as SmolVLM's."""
    config = Idefics3Config(**_tiles(tokenizer := _tile_tokens()))
    model = Idefics3ForConditionalGeneration(config)
    _save(path, model, tokenizer, TURNS.replace("IMAGE", "<image>"), _tiled("Idefics3"))
    _write(
        path / "processor_config.json", {"processor_class": "Idefics3Processor", "image_seq_len": 4}
    )


VLMS: dict[str, Callable[[Path], None]] = {
    make.__name__: make for make in (llava_onevision, qwen2_5_vl, qwen3_vl, smolvlm, idefics3)
}


def make_vlm(name: str, path: Path, seed: int = 0, **config: object) -> Path:
    """A twin with an ``encoder.json`` of ``config``, and no transform yet."""
    path.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        VLMS[name](path)
    asked = EncoderConfig(prompt=PROMPT, max_profile_tokens=4).model_copy(update=config)
    (path / "encoder.json").write_text(asked.model_dump_json())
    return path


def make_fitted_vlm(name: str, path: Path, seed: int = 0) -> Path:
    """A twin whose transform was fitted on its own states of random choices."""
    make_vlm(name, path, seed, layers="all")
    reader, rng = Encoder.load(path, unfitted=True), np.random.default_rng(seed)
    chunks = [[random_choice(rng)] for _ in range(_PEOPLE * 2)]
    states = np.stack([state for state, _ in reader.read_all(chunks)])
    fit_transform(states.reshape(_PEOPLE, 2, LAYERS, WIDTH), _DIRECTIONS).save(
        path / "transform.safetensors"
    )
    return path


def make_clip(path: Path, seed: int = 0) -> Path:
    """The ``image_encoder`` folder of the public IP-Adapters, with an empty ``encoder.json``."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14, projection_dim=CLIP_DIM,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _spread(CLIPVisionModelWithProjection(config)).save_pretrained(path)
    (path / "encoder.json").write_text("{}")
    return path


def byte_tokens(*special: str) -> PreTrainedTokenizerFast:
    """Byte-level, without merges, with Qwen's turns and ``special`` tokens."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *special], model_max_length=8192,
    )  # fmt: skip


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 64,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 8192, "tie_word_embeddings": False, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def _qwen_tokens() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    around, inside = ("vision_start", "vision_end"), {"image": "image_pad", "video": "video_pad"}
    tokenizer = byte_tokens(*(f"<|{name}|>" for name in (*around, *inside.values())))
    named = {name: name for name in around} | inside
    return tokenizer, {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in named.items()
    }


def _qwen_turns() -> str:
    return TURNS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def _qwen_pictures(processor: str, patch: int) -> dict[str, object]:
    token = (2 * patch) ** 2
    return {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor,
        "patch_size": patch, "temporal_patch_size": 2, "merge_size": 2,
        "min_pixels": 4 * token, "max_pixels": 64 * token,
    }  # fmt: skip


def _tile_tokens() -> PreTrainedTokenizerFast:
    tiles = (f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2))
    return byte_tokens("<image>", "<fake_token_around_image>", "<global-img>",
                       "<end_of_utterance>", *tiles)  # fmt: skip


def _tiles(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"), "scale_factor": 2,
        "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False,
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        "text_config": {"model_type": "llama", **_text(tokenizer)},
    }  # fmt: skip


def _tiled(kind: str) -> dict[str, object]:
    return {
        "image_processor_type": f"{kind}ImageProcessor", "processor_class": f"{kind}Processor",
        "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32},
        "do_image_splitting": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip


def _save(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    chat_template: str,
    pictures: dict[str, object],
) -> None:
    _spread(model).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").write_text(chat_template)
    _write(path / "preprocessor_config.json", pictures)


@torch.no_grad()
def _spread(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=_SPREAD)
    return model.eval()


def _write(path: Path, settings: dict[str, object]) -> None:
    path.write_text(json.dumps(settings, indent=1) + "\n")
