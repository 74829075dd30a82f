"""The scorers' networks with their authors' names and layouts, tiny, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.tiny_clip import CONTEXT, HEADS, LAYERS, OUT, PATCH, SIDE, WIDTH, shaken

TEXT, VISION, PLACES = 16, 24, 40  # ImageReward's widths; the tokens it has places for


class OpenClip(nn.Module):
    """CLIP with open_clip's parameters, their names and their layout."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()

        def tower() -> nn.Module:
            block = nn.Module()
            block.resblocks = nn.ModuleList()
            for _ in range(LAYERS):
                layer = nn.Module()
                layer.ln_1, layer.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
                layer.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
                layer.mlp = nn.Module()
                layer.mlp.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
                layer.mlp.c_proj = nn.Linear(4 * WIDTH, WIDTH)
                block.resblocks.append(layer)
            return block

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape))

        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.visual.class_embedding = empty(WIDTH)
        self.visual.positional_embedding = empty((SIDE // PATCH) ** 2 + 1, WIDTH)
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.visual.transformer = tower()
        self.visual.proj = empty(WIDTH, OUT)
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.positional_embedding = empty(CONTEXT, WIDTH)
        self.transformer = tower()
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = empty(WIDTH, OUT)
        self.logit_scale = empty()

    @staticmethod
    def _through(tower: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in tower.resblocks:
            y = layer.ln_1(x)
            x = x + layer.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
            x = x + layer.mlp.c_proj(F.gelu(layer.mlp.c_fc(layer.ln_2(x))))
        return x

    def image(self, x: Tensor) -> Tensor:
        x = self.visual.conv1(x).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], 1) + self.visual.positional_embedding
        x = self._through(self.visual.transformer, self.visual.ln_pre(x), None)
        return self.visual.ln_post(x[:, 0]) @ self.visual.proj

    def text(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        future = torch.full((length, length), -torch.inf).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        x = self.ln_final(self._through(self.transformer, x, future))
        return x[:, -1] @ self.text_projection


def published_head(width: int, seed: int) -> nn.Sequential:
    """As its authors wrote it: dropouts between, so the numbers of the layers have gaps."""
    layers = [
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    ]  # fmt: skip
    head = shaken(nn.Sequential(*layers), seed)
    assert isinstance(head, nn.Sequential)
    return head


class Blip(nn.Module):
    """The picture half with timm's parameters and names, as BLIP has it."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, VISION))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + 1, VISION))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, VISION, PATCH, PATCH)
        self.blocks = nn.ModuleList()
        for _ in range(LAYERS):
            block = nn.Module()
            block.norm1, block.norm2 = (nn.LayerNorm(VISION, eps=1e-6) for _ in range(2))
            block.attn, block.mlp = nn.Module(), nn.Module()
            block.attn.qkv, block.attn.proj = (
                nn.Linear(VISION, 3 * VISION), nn.Linear(VISION, VISION),
            )  # fmt: skip
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(VISION, 48), nn.Linear(48, VISION)
            self.blocks.append(block)
        self.norm = nn.LayerNorm(VISION, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
            x = x + block.attn.proj(attend(q, k, v))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        return self.norm(x)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int = 2) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weight = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weight @ v).transpose(1, 2).flatten(2)


def bert_weights(vocabulary: int) -> dict[str, Tensor]:
    """The text half in the published names, written down one by one."""
    generator = torch.Generator().manual_seed(11)
    weights: dict[str, Tensor] = {"embeddings.position_ids": torch.arange(PLACES)[None]}

    def draw(name: str, *shape: int) -> None:
        near = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        weights[name] = near + 0.2 * torch.randn(shape, generator=generator)

    def linear(name: str, inside: int, outside: int) -> None:
        draw(f"{name}.weight", outside, inside)
        draw(f"{name}.bias", outside)

    def norm(name: str) -> None:
        draw(f"{name}.LayerNorm.weight", TEXT)
        draw(f"{name}.LayerNorm.bias", TEXT)

    draw("embeddings.word_embeddings.weight", vocabulary, TEXT)
    draw("embeddings.position_embeddings.weight", PLACES, TEXT)
    norm("embeddings")
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        for attention, width in (("attention", TEXT), ("crossattention", VISION)):
            linear(f"{at}.{attention}.self.query", TEXT, TEXT)
            linear(f"{at}.{attention}.self.key", width, TEXT)
            linear(f"{at}.{attention}.self.value", width, TEXT)
            linear(f"{at}.{attention}.output.dense", TEXT, TEXT)
            norm(f"{at}.{attention}.output")
        linear(f"{at}.intermediate.dense", TEXT, 32)
        linear(f"{at}.output.dense", 32, TEXT)
        norm(f"{at}.output")
    return weights


def read(weights: dict[str, Tensor], ids: Tensor, seen: Tensor) -> Tensor:
    """BERT with cross-attention, post-norm, every token sees every other: ``[1, T, TEXT]``."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        scale, shift = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, (TEXT,), scale, shift, eps=1e-12)

    places = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm("embeddings", weights["embeddings.word_embeddings.weight"][ids] + places)
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        for name, source in (("attention", None), ("crossattention", seen)):
            other = x if source is None else source
            q = linear(f"{at}.{name}.self.query", x)
            k, v = (linear(f"{at}.{name}.self.{part}", other) for part in ("key", "value"))
            x = norm(
                f"{at}.{name}.output", x + linear(f"{at}.{name}.output.dense", attend(q, k, v))
            )
        inner = F.gelu(linear(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output", x + linear(f"{at}.output.dense", inner))
    return x
