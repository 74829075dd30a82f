"""The studio's VLM: a small Idefics3 that reads pairs and writes a profile. ``vlm_lessons`` trains
it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from ppd_serve.preferences.encoder import EncoderConfig
from ppd_serve.preferences.prompt import FewShotPrompt
from training.autoencoder import to_input
from training.data.users import Tastes
from training.data.world import CAPTIONS, SIDE, Caption
from training.tokenizer import train_tokenizer

IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
END = "<end_of_utterance>"
IMAGE_TOKENS = 4
PATCH = 16

# Captions tell nothing of a taste here, and the model has only ever seen the world's, each six
# tokens long: any other wording moved the pictures from where it looks for them. So whatever the
# caption was, it reads one of the world's.
STUDIO_PROMPT = FewShotPrompt(
    caption="a small house by the lake", preferred="liked", rejected="disliked", task="profile"
)
ENCODER_CONFIG = EncoderConfig(
    prompt=STUDIO_PROMPT, position="before_profile", max_profile_tokens=48
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# How a profile speaks of much and little of each axis (order of AXES).
WORDS = (
    ("cool light", "warm light"),
    ("dark pictures", "bright pictures"),
    ("muted colours", "vivid colours"),
    ("soft edges", "bold outlines"),
    ("smooth surfaces", "hatched surfaces"),
    ("clear air", "confetti"),
    ("even light", "dark corners"),
    ("full pictures", "wide frames"),
)


def profile_of(tastes: Tastes, index: int) -> str:
    """The profile a training user would be given: at most three things, strongest first."""
    weight, curvature = tastes.weight[index], tastes.curvature[index]
    strength = np.abs(weight) + curvature
    lines = []
    for axis in np.argsort(-strength)[:3]:
        if strength[axis] < 0.2:
            continue
        little, much = WORDS[axis]
        if curvature[axis] > 0:
            level = tastes.level[index, axis]
            side = "a little" if abs(level) < 0.35 else ("rather" if level > 0 else "hardly any")
            lines.append(f"{side} {much}")
        else:
            lines.append(much if weight[axis] > 0 else little)
    return "likes " + ", ".join(lines) + "."


def new_processor() -> Idefics3Processor:
    """One image of 128 px is one tile of 8x8 patches, shuffled into 4 tokens."""
    corpus = [str(c) for c in CAPTIONS] * 4
    corpus += [f"likes {b}, {a}. a little {b} rather {b} hardly any {b}" for a, b in WORDS] * 8
    corpus += ["liked disliked profile user assistant"] * 8
    tokenizer = train_tokenizer(
        corpus,
        special=["<|pad|>", "<|user|>", "<|assistant|>", IMAGE, AROUND, GLOBAL, END],
        vocabulary=640,
        max_length=1024,
    )
    tokenizer.eos_token = END
    tokenizer.padding_side = "left"
    images = Idefics3ImageProcessorPil(
        do_resize=True,
        size={"longest_edge": SIDE},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Idefics3Processor(
        images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE
    )


def new_vlm(
    tokenizer: PreTrainedTokenizerFast, width: int = 160
) -> Idefics3ForConditionalGeneration:
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=4,
        vision_config={
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": width,
            "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 4, "initializer_range": 0.06, "max_position_embeddings": 1024,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config)


def image_features(model: Any, pixels_B3HW: Tensor) -> Tensor:
    """Vision tower and connector: ``[B, 3, 128, 128]`` in [-1, 1] -> ``[B, 4, width]``."""
    return torch.stack(list(model.model.get_image_features(pixels_B3HW[:, None]).pooler_output))


@torch.no_grad()
def cache_features(model: Any, images: NDArray[np.uint8], batch: int = 100) -> Tensor:
    """``image_features`` of a whole pool, ``[N, 4, width]``, on the CPU."""
    parts = (to_input(images[i : i + batch]) for i in range(0, len(images), batch))
    return torch.cat([image_features(model, x.to(model.device)).cpu() for x in parts])


class Reader:
    """Runs the language part on cached picture features: the same tokens as the processor makes."""

    def __init__(self, model: Any, processor: Idefics3Processor, features: Tensor) -> None:
        self.model, self.processor, self.features = model, processor, features.to(model.device)
        self.image_text = AROUND + GLOBAL + IMAGE * IMAGE_TOKENS + AROUND

    def prompt(self, captions: list[Caption]) -> str:
        choices: Any = [(str(c), None, None) for c in captions]
        text = self.processor.apply_chat_template(
            STUDIO_PROMPT.conversation(choices), add_generation_prompt=True
        )
        return text.replace(IMAGE, self.image_text)

    def states(
        self,
        captions: NDArray[np.int64],
        preferred: NDArray[np.int64],
        rejected: NDArray[np.int64],
        profiles: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, n]`` caption and picture indices -> states where the profile begins ``[B, width]``
        and, with profiles, their mean cross-entropy."""
        texts = [self.prompt([CAPTIONS[c] for c in row]) for row in captions]
        tokenizer = self.processor.tokenizer
        prompt = tokenizer(texts, padding=True, return_tensors="pt")
        ids, mask = prompt.input_ids, prompt.attention_mask
        ends = ids.shape[1]
        if profiles is not None:
            tokenizer.padding_side = "right"
            written = tokenizer(
                [" " + p + END for p in profiles], padding=True, return_tensors="pt"
            )
            tokenizer.padding_side = "left"
            ids = torch.cat([ids, written.input_ids], 1)
            mask = torch.cat([mask, written.attention_mask], 1)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        embedded = self.model.model.text_model.embed_tokens(ids)
        pictures = np.stack([preferred, rejected], -1).reshape(-1)
        where = (ids == self.model.config.image_token_id)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(where, self.features[pictures].to(embedded.dtype))
        position = (mask.cumsum(1) - 1).clamp_min(0)
        hidden = self.model.model.text_model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=position, use_cache=False
        ).last_hidden_state
        state = hidden[:, ends - 1]
        if profiles is None:
            return state, None
        logits = self.model.lm_head(hidden[:, ends - 1 : -1])
        label = ids[:, ends:].masked_fill(mask[:, ends:] == 0, -100)
        return state, F.cross_entropy(
            logits.flatten(0, 1).float(), label.flatten(), ignore_index=-100
        )
