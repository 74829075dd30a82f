"""Published pickles into directories of safetensors that ``load_scorer`` reads; once per scorer.

::

    C=training.evaluate.scorers.convert
    python -m $C hpsv2 xswu/HPSv2@REV:HPS_v2.1_compressed.pt \\
        laion/CLIP-ViT-H-14-laion2B-s32B-b79K@REV scorers/hpsv2
    python -m $C aesthetic sac+logos+ava1-l14-linearMSE.pth openai/clip-vit-large-patch14@REV \\
        scorers/aesthetic
    python -m $C imagereward THUDM/ImageReward@REV:ImageReward.pt \\
        google-bert/bert-base-uncased@REV scorers/imagereward

The first argument is the published checkpoint, the second what it was made from: the same
architecture's config, tokenizer and image processor (of BERT, the tokenizer alone).
"""

from __future__ import annotations

import re
from pathlib import Path

import typer
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from training.evaluate.scorers.aesthetic import AestheticModel
from training.evaluate.scorers.head import head_weights
from training.evaluate.scorers.image_reward import ImageRewardModel
from training.evaluate.scorers.source import checkpoint, directory, load_pretrained

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

# BLIP-large as ImageReward uses it: 224 px, BERT-base with twelve heads, timm's norms of 1e-6.
IMAGE_REWARD = BlipConfig(
    text_config={"num_attention_heads": 12},
    vision_config={
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
    },
)  # fmt: skip


@app.command()
def hpsv2(published: str, like: str, out: Path) -> None:
    """open_clip's weights in transformers' names, with config and processors of ``like``."""
    origin = directory(like)
    model = CLIPModel(CLIPConfig.from_pretrained(origin))
    _fill(model, clip_weights(checkpoint(published)))
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(origin).save_pretrained(out)
    CLIPImageProcessorPil.from_pretrained(origin).save_pretrained(out)


@app.command()
def aesthetic(published: str, like: str, out: Path) -> None:
    """The linear head on the image tower of ``like``, the CLIP it was fitted on."""
    origin = directory(like)
    tower = load_pretrained(CLIPVisionModelWithProjection, origin)
    model = AestheticModel(tower.config)
    model.tower = tower
    _fill(model.head, head_weights(checkpoint(published), ""))
    model.save_pretrained(out)
    CLIPImageProcessorPil.from_pretrained(origin).save_pretrained(out)


@app.command()
def imagereward(published: str, like: str, out: Path) -> None:
    """BLIP's weights in transformers' names, with the tokenizer of ``like``."""
    convert_image_reward(published, like, out, IMAGE_REWARD)


def convert_image_reward(published: str, like: str, out: Path, config: BlipConfig) -> None:
    model = ImageRewardModel(config)
    weights = checkpoint(published)
    _fill(model.head, head_weights(weights, "mlp."))
    _fill(model.vision_model, vision_weights(weights))
    _fill(model.text_model, text_weights(weights))
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(directory(like)).save_pretrained(out)
    side = config.vision_config.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(out)


_CLIP_NAMES = (
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
_VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
)


def clip_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's CLIP in the names of transformers' CLIPModel.

    Its attention keeps query, key and value in one matrix, and its projections multiply from the
    right.
    """
    weights: dict[str, Tensor] = {}
    for name, value in published.items():
        name = _renamed(name, _CLIP_NAMES)
        if name.endswith("_projection.weight"):
            weights[name] = value.T.contiguous()
        elif found := re.fullmatch(r"(.*\.self_attn)\.in_proj_(weight|bias)", name):
            for part, third in zip("qkv", value.chunk(3), strict=True):
                weights[f"{found[1]}.{part}_proj.{found[2]}"] = third.clone()
        else:
            weights[name] = value
    return weights


def vision_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """ImageReward's ViT in the names of transformers' BlipVisionModel."""
    seen = _below(published, "blip.visual_encoder.")
    return {_renamed(name, _VISION_NAMES): value for name, value in seen.items()}


def text_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """ImageReward's BERT: transformers' BlipTextModel was made from it and kept its names."""
    return _below(published, "blip.text_encoder.")


def _below(published: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in published.items() if k.startswith(prefix)}


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Every weight of ``model``, and no other; counters of positions are no weights."""
    weights = {k: v for k, v in weights.items() if not k.endswith("position_ids")}
    expected = model.state_dict().keys()
    if odd := sorted(weights.keys() ^ expected):
        fault = "lacks" if odd[0] in expected else "has an unknown"
        raise ValueError(f"checkpoint: {fault} {odd[0]} ({len(odd)} names differ)")
    model.load_state_dict(weights)


if __name__ == "__main__":
    app()
