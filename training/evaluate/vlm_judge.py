"""A VLM in the user's place: which of two pictures would this person like, given their choices?

Models favour a position, so every question is asked in both orders (PPD's protocol, arXiv
2501.06655): an answer counts only if it names the same picture twice. What changes with the order
is counted apart, as it says nothing about pictures. The answer is read from the probabilities of
the two answer tokens, not from what the model would write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.chat import Chat
from ppd_serve.preferences.encoder import MAX_CAPTION, Quantisation, load_vlm
from ppd_serve.preferences.processors import UNREADABLE, load_processor
from ppd_serve.preferences.prompt import Choice, FewShotPrompt
from training.evaluate.scorers.source import directory
from training.evaluate.statistics import Rate, wilson

Ask = Callable[[Image, Image], float]  # log-odds that the first picture is the better one


class Question(NamedTuple):
    """What a person chose before, and two new pictures of one caption."""

    choices: Sequence[Choice]
    caption: str
    ours: Image
    theirs: Image


@dataclass(frozen=True)
class Verdict:
    """Questions answered alike in both orders, for us or against, and the others."""

    wins: int
    losses: int
    inconsistent: int

    @property
    def rate(self) -> Rate:
        """Win rate over the consistent answers, one question per user."""
        return wilson(self.wins, self.wins + self.losses)


class JudgePrompt(BaseModel):
    """Wording. ``{caption}`` is the new pictures'; ``answers`` are one token each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    few_shot: FewShotPrompt = FewShotPrompt(
        task=(
            "These were choices of one person. Two new pictures, A and B, were made of one "
            "caption: {caption}. Which of them would the same person prefer, A or B? Answer with "
            "the letter alone."
        )
    )
    first: str = "Picture A:"
    second: str = "Picture B:"
    answers: tuple[str, str] = ("A", "B")

    def conversation(self, choices: Sequence[Choice], caption: str) -> list[dict[str, Any]]:
        """Chat messages in transformers' form: the choices, the two pictures, the question."""
        (message,) = self.few_shot.conversation(choices)
        *shown, task = message["content"]
        content = [
            *shown,
            {"type": "text", "text": self.first},
            {"type": "image"},
            {"type": "text", "text": self.second},
            {"type": "image"},
            task | {"text": task["text"].format(caption=caption)},
        ]
        return [message | {"content": content}]


class VlmJudge:
    """Any ``AutoModelForImageTextToText`` with its processor, asked for one letter."""

    def __init__(self, model: Any, processor: Any, prompt: JudgePrompt | None = None) -> None:
        self.model = model
        self.processor = processor
        self.prompt = prompt or JudgePrompt()
        self._chat = Chat(processor)
        self._first, self._second = (self._tokens(answer) for answer in self.prompt.answers)
        if self._first & self._second:
            raise ValueError(f"answers: {self.prompt.answers} are one and the same token")

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        quantisation: Quantisation | None = None,
        prompt: JudgePrompt | None = None,
    ) -> VlmJudge:
        """A directory or ``owner/name@revision``; ValueError unless it has safetensors."""
        path = directory(source)
        try:
            model = load_vlm(path, device=device, dtype=dtype, quantisation=quantisation)
            processor = load_processor(path)
            return cls(model, processor, prompt)
        except (*UNREADABLE, ReleaseError) as error:
            raise ValueError(f"source: {path.name} holds no VLM: {error}") from error

    def verdict(self, questions: Iterable[Question]) -> Verdict:
        return verdict(self.answer(question) for question in questions)

    def answer(self, question: Question) -> bool | None:
        """Does this person prefer ours? None where the order decides."""
        choices, caption, ours, theirs = question
        return in_both_orders(
            lambda first, second: self.log_odds(choices, caption, first, second), ours, theirs
        )

    @torch.inference_mode()
    def log_odds(
        self, choices: Sequence[Choice], caption: str, first: Image, second: Image
    ) -> float:
        """``log P(first answer) − log P(second answer)``, the pictures shown in this order."""
        choices = [(self._harmless(c), preferred, rejected) for c, preferred, rejected in choices]
        conversation = self.prompt.conversation(choices, self._harmless(caption))
        shown = [*FewShotPrompt.images(choices), first, second]
        output = self.model.generate(
            **self._chat.inputs([conversation], [shown], self.model),
            do_sample=False,
            max_new_tokens=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits = output.logits[0][0].float()
        ours, theirs = (logits[sorted(t)].logsumexp(0) for t in (self._first, self._second))
        return float(ours - theirs)

    def _tokens(self, answer: str) -> set[int]:
        """The tokens an answer may be: templates differ in whether a space comes before it."""
        encoded = (
            self.processor.tokenizer.encode(written, add_special_tokens=False)
            for written in (answer, f" {answer}")
        )
        if not (whole := {ids[0] for ids in encoded if len(ids) == 1}):
            raise ValueError(f"answers: {answer!r} is more than one token of this model")
        return whole

    def _harmless(self, caption: str) -> str:
        """People write captions: none may speak the model's control language."""
        for token in self.processor.tokenizer.get_added_vocab():
            caption = caption.replace(token, " ")
        return caption[:MAX_CAPTION]


def in_both_orders(ask: Ask, ours: Image, theirs: Image) -> bool | None:
    """True or False if both orders agree on ours or theirs; None otherwise, and on a tie."""
    shown_first, shown_second = ask(ours, theirs), -ask(theirs, ours)
    if shown_first > 0 and shown_second > 0:
        return True
    return False if shown_first < 0 and shown_second < 0 else None


def verdict(answers: Iterable[bool | None]) -> Verdict:
    told = list(answers)
    return Verdict(told.count(True), told.count(False), told.count(None))
