"""A VLM that reads a person's pairs and answers with a preference embedding and a profile.

Any ``AutoModelForImageTextToText`` with its processor. A chunk's reading is a set of hidden states
around the profile the model writes; their mean passes through the fitted between-user transform
(``transform.py``).

An encoder directory is a transformers model directory plus ``encoder.json`` (how to read) and
``transform.safetensors``. Or it is these two files alone, and ``encoder.json`` says which ``model``
of the hub they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import AutoConfig, AutoModelForImageTextToText

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.chat import Chat
from ppd_serve.preferences.embedding_space import embedding_space
from ppd_serve.preferences.model_files import HubModel, model_directory
from ppd_serve.preferences.pair_encoder import CHUNK, Array, ChunkReading, PairEncoder, Reading
from ppd_serve.preferences.picture_states import picture_states
from ppd_serve.preferences.processors import UNREADABLE, limit_pixels, load_processor
from ppd_serve.preferences.prompt import Choice, FewShotPrompt
from ppd_serve.preferences.quantisation import Quantisation, bitsandbytes_config
from ppd_serve.preferences.transform import BetweenUserTransform

__all__ = [
    "CHUNK", "MAX_CAPTION", "Encoder", "EncoderConfig", "Quantisation", "Reading",
    "embedding_space", "load_vlm",
]  # fmt: skip

# About what a backbone's text encoder reads of a prompt (77 tokens); the pictures matter more.
MAX_CAPTION = 300


class EncoderConfig(BaseModel):
    """``encoder.json``: how the VLM is asked and which hidden states are the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: HubModel | None = None  # None: in the encoder directory itself
    prompt: FewShotPrompt = FewShotPrompt()
    # Where the states are taken: as the model sets out to write, or after it has written.
    position: Literal["before_profile", "after_profile"] = "after_profile"
    # Which layers, as indices into transformers' hidden_states; each makes one embedding row.
    # All of them leave out 0: the last word's own embedding, the same for everybody.
    layers: tuple[int, ...] | Literal["all"] = (-1,)
    profile: Literal["write", "skip"] = "write"
    max_profile_tokens: int = 512
    # At most so many pixels of each of a pair's two pictures; None: what the processor would show.
    picture_pixels: int | None = Field(None, ge=1)


class Encoder(PairEncoder):
    """``transform`` None gives the states as they are: what a transform is fitted on."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: EncoderConfig,
        transform: BetweenUserTransform | None,
        *,
        space: str,
        cache_chunks: int = 4096,
    ) -> None:
        super().__init__(space, cache_chunks)
        self.model = model
        self.processor = processor
        self.config = config
        self._transform = transform
        self.layers = _layers(model, config)
        text = model.config.get_text_config()
        self.rows, self.dim = len(self.layers), text.hidden_size
        if transform is not None:
            rows, _, self.dim = transform.matrix.shape
            if rows != self.rows:
                raise ReleaseError(f"encoder: {self.rows} layers, a transform for {rows}")
        if config.picture_pixels is not None:
            limit_pixels(model, processor, config.picture_pixels)
        self._chat = Chat(processor)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        quantisation: Quantisation | None = None,
        unfitted: bool = False,
    ) -> Encoder:
        """Load an encoder directory. Raises ReleaseError naming what is missing or unsafe.

        ``unfitted``: without its transform, which need not be there.
        """
        path = Path(path)
        for needed in ["encoder.json"] + ["transform.safetensors"] * (not unfitted):
            if not (path / needed).exists():
                raise ReleaseError(f"encoder: {needed} is missing")
        try:
            config = EncoderConfig.model_validate_json((path / "encoder.json").read_bytes())
        except ValidationError as error:
            raise ReleaseError(f"encoder.json: {error.errors()[0]['msg']}") from None
        transform = None
        if not unfitted:
            transform = BetweenUserTransform.load(path / "transform.safetensors")
        try:
            weights = model_directory(path, config.model)
            model = load_vlm(weights, device=device, dtype=dtype, quantisation=quantisation)
        except (OSError, ValueError) as error:
            raise ReleaseError(f"encoder: {error}") from error
        try:
            processor = load_processor(weights)
        except UNREADABLE as error:
            raise ReleaseError(f"encoder: no processor: {error}") from error
        space = embedding_space(path, dtype=dtype, quantisation=quantisation, weights=weights)
        return cls(model, processor, config, transform, space=space)

    @property
    def transform(self) -> BetweenUserTransform:
        if self._transform is None:
            raise ReleaseError("encoder: no transform is fitted yet")
        return self._transform

    def embedding(self, state: Array) -> Array:
        return state if self._transform is None else self._transform(state)

    def see(self, picture: Image.Image) -> Array:
        return picture_states(self.model, self.processor, picture)

    @torch.inference_mode()
    def read_all(self, chunks: Sequence[Sequence[Choice]]) -> list[ChunkReading]:
        """Of every chunk, hidden states ``[rows, hidden]`` (float32) and the profile.

        Raises ReleaseError for more tokens than the model has positions.
        """
        chunks = [[(self._harmless(text), w, x) for text, w, x in chunk] for chunk in chunks]
        writes = self.config.profile == "write" or self.config.position == "after_profile"
        more = self.config.max_profile_tokens if writes else 1
        inputs = self._fitting(chunks, more)
        start = inputs["input_ids"].shape[1]
        output = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=more,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        readings = []
        for i, written in enumerate(output.sequences[:, start:]):
            written = written[: self._length(written)]
            # hidden_states: one entry per forward, each a tuple of layers [B, tokens, hidden]. The
            # first forward ends where the profile begins; the n-th predicts the n-th token.
            before = self.config.position == "before_profile"
            forward = output.hidden_states[0 if before else len(written) - 1]
            state = torch.stack([forward[layer][i, -1] for layer in self.layers])
            profile = None
            if self.config.profile == "write":
                profile = self.processor.decode(written, skip_special_tokens=True).strip()
            readings.append((state.float().cpu().numpy(), profile))
        return readings

    def _inputs(self, chunks: Sequence[Sequence[Choice]]) -> dict[str, torch.Tensor]:
        prompt = self.config.prompt
        return self._chat.inputs(
            [prompt.conversation(choices) for choices in chunks],
            [prompt.images(choices) for choices in chunks],
            self.model,
        )

    def _fitting(self, chunks: Sequence[Sequence[Choice]], more: int) -> dict[str, torch.Tensor]:
        """Inputs that leave ``more`` positions to write in; beyond its positions a model reads on
        without a word, and badly, or crashes the GPU. A chunk that is too long by its captions is
        read without them: the pictures matter more."""
        inputs = self._inputs(chunks)
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is None or inputs["input_ids"].shape[1] + more <= most:
            return inputs
        long = (inputs["attention_mask"].sum(1) + more > most).tolist()
        bare = [[("", w, x) for _, w, x in chunk] for chunk in chunks]
        inputs = self._inputs(
            [b if cut else chunk for chunk, b, cut in zip(chunks, bare, long, strict=True)]
        )
        if (tokens := inputs["input_ids"].shape[1] + more) > most:
            raise ReleaseError(
                f"encoder: {CHUNK} pairs and a profile are {tokens} tokens, of which the model "
                f"reads {most}: let it see fewer picture_pixels, write fewer max_profile_tokens, "
                "or take a model that reads more"
            )
        return inputs

    def _length(self, written: torch.Tensor) -> int:
        """Of one text in a batch, which goes on until the longest is done: to its own end."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        for count, token in enumerate(written.tolist(), start=1):
            if token in ends:
                return count
        return len(written)

    def _harmless(self, caption: str) -> str:
        """A caption is what people wrote: it must not speak the model's control language.

        A stray ``<image>`` would fail the reading, and an end of turn would cut it short.
        """
        for token in self.processor.tokenizer.get_added_vocab():
            caption = caption.replace(token, " ")
        return caption[:MAX_CAPTION]


def load_vlm(
    path: str | Path, *, device: str, dtype: str, quantisation: Quantisation | None = None
) -> Any:
    """The VLM itself, safetensors only, on ``device`` in ``dtype``; fewer bits by bitsandbytes."""
    config = None
    if quantisation:
        with torch.device("meta"):
            empty = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path))
        config = bitsandbytes_config(quantisation, empty, dtype)
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        quantization_config=config,
        device_map={"": device} if config else None,
    )
    return (model if config else model.to(device)).eval()


def _layers(model: Any, config: EncoderConfig) -> tuple[int, ...]:
    if config.layers == "all":
        return tuple(range(1, model.config.get_text_config().num_hidden_layers + 1))
    return config.layers
