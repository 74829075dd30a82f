"""How a model's own chat template writes a conversation of text and pictures.

Pictures must stand where the conversation has them, between the words that say which was preferred.
Some templates (LLaVA's) gather a message's pictures in front of its text; there the picture's
placeholder is written into the text itself, which is all that those templates would write anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from PIL.Image import Image

from ppd_serve.errors import ReleaseError

Message = dict[str, Any]


class Chat:
    """``processor``'s template. Raises ReleaseError for one that loses the order either way."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._inline = False
        try:
            self._inline = not self._keeps_order()
            if self._inline and not self._keeps_order():
                raise ReleaseError("encoder: the chat template does not keep pictures in place")
        except (ValueError, TemplateError) as error:
            raise ReleaseError(f"encoder: no chat template that can be used: {error}") from error

    def text(self, conversation: Sequence[Message]) -> str:
        """The conversation up to where the model's answer begins."""
        messages = [self._inlined(m) if self._inline else m for m in conversation]
        found: str = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        return found

    def inputs(
        self, conversations: Sequence[Sequence[Message]], images: Sequence[Sequence[Image]], of: Any
    ) -> dict[str, torch.Tensor]:
        """What the model ``of`` takes of conversations and each one's pictures, on its device.

        Padded on the left: every conversation ends where the answer begins.
        """
        texts = [self.text(conversation) for conversation in conversations]
        first_token = self._processor.tokenizer.bos_token
        found = self._processor(
            text=texts,
            images=[list(shown) for shown in images],
            padding=len(texts) > 1,
            padding_side="left",
            # A template that writes the first token itself must not get another.
            add_special_tokens=not (first_token and texts[0].startswith(first_token)),
            return_tensors="pt",
        ).to(of.device)
        return {k: v.to(of.dtype) if v.is_floating_point() else v for k, v in found.items()}

    def _inlined(self, message: Message) -> Message:
        token = self._processor.image_token
        parts = [token if p["type"] == "image" else p["text"] for p in message["content"]]
        return {**message, "content": [{"type": "text", "text": "\n".join(parts)}]}

    def _keeps_order(self) -> bool:
        image = self._processor.image_token
        wanted = ["part one", image, "part two", image, "part three"]
        content = [
            {"type": "image"} if part == image else {"type": "text", "text": part}
            for part in wanted
        ]
        text, place = self.text([{"role": "user", "content": content}]), 0
        for part in wanted:
            place = text.find(part, place) + 1
            if not place:
                return False
        return text.count(image) == 2
