"""The few-shot conversation that shows a VLM a person's choices and asks who this person is.

The structure is PPD's (arXiv 2501.06655, stage 1): for each pair its caption, the preferred and the
rejected picture, each labelled; then the task. The wording is ours and part of the embedding space:
it is stored with the release, because a VLM reads best what it was trained or tried with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict

Choice = tuple[str, Image, Image]  # caption, preferred, rejected

DEFAULT_TASK = (
    "These are choices of one person. For every pair, describe both pictures in style, visual "
    "quality and aesthetics, and explain what about them may have decided the choice. Content that "
    "both share says nothing. Then finish with a user profile: two or three sentences on what this "
    "person looks for in pictures and what they avoid."
)


class FewShotPrompt(BaseModel):
    """Wording around a person's pairs. ``{caption}`` and ``{number}`` are filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: str = "Pair {number}. Caption: {caption}"
    preferred: str = "Preferred picture:"
    rejected: str = "Rejected picture:"
    task: str = DEFAULT_TASK

    def conversation(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """Chat messages in transformers' form; every image part stands where ``images`` has it."""
        content: list[dict[str, Any]] = []
        for number, (caption, _, _) in enumerate(choices, start=1):
            content += [
                {"type": "text", "text": self.caption.format(number=number, caption=caption)},
                {"type": "text", "text": self.preferred},
                {"type": "image"},
                {"type": "text", "text": self.rejected},
                {"type": "image"},
            ]
        content.append({"type": "text", "text": self.task})
        return [{"role": "user", "content": content}]

    @staticmethod
    def images(choices: Sequence[Choice]) -> list[Image]:
        """The pictures in the order of the conversation."""
        return [image for _, preferred, rejected in choices for image in (preferred, rejected)]
