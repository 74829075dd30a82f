"""A VLM that reads a person's pairs and answers with a preference embedding and a profile.

Any ``AutoModelForImageTextToText`` with its ``AutoProcessor``. Pairs are cut into chunks of four
in arrival order; a full chunk never changes, so a new pair costs one reading. A chunk's reading is
a set of hidden states around the profile the model writes; readings are averaged by their number
of pairs and pass through the fitted between-user transform (``transform.py``).

An encoder directory is a transformers model directory plus ``encoder.json`` (how to read) and
``transform.safetensors``.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
)

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.pairs import Pair
from ppd_serve.preferences.picture_states import picture_states
from ppd_serve.preferences.prompt import Choice, FewShotPrompt
from ppd_serve.preferences.transform import BetweenUserTransform

Array = NDArray[np.float32]
Quantisation = Literal["4bit"]

CHUNK = 4
SEEN_BYTES = 64 * 2**20  # of pictures' states that are remembered
# About what a backbone's text encoder reads of a prompt (77 tokens); the pictures matter more.
MAX_CAPTION = 300


class EncoderConfig(BaseModel):
    """``encoder.json``: how the VLM is asked and which hidden states are the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: FewShotPrompt = FewShotPrompt()
    # Where the states are taken: as the model sets out to write, or after it has written.
    position: Literal["before_profile", "after_profile"] = "after_profile"
    # Which layers, as indices into transformers' hidden_states; each makes one embedding row.
    layers: tuple[int, ...] = (-1,)
    profile: Literal["write", "skip"] = "write"
    max_profile_tokens: int = 512


@dataclass(frozen=True)
class Reading:
    """What the encoder makes of a person: float32 ``[rows, dim]`` and the profile it wrote."""

    embedding: Array
    profile: str | None


class Encoder:
    """Reads pairs. Thread-safe: one reading at a time (a fast tokenizer cannot be shared)."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: EncoderConfig,
        transform: BetweenUserTransform,
        *,
        space: str,
        cache_chunks: int = 4096,
    ) -> None:
        self.model = model
        self.processor = processor
        self.config = config
        self.transform = transform
        self.space = space
        self.rows, _, self.dim = transform.matrix.shape
        self._cache: OrderedDict[str, tuple[Array, str | None]] = OrderedDict()
        self._cache_chunks = cache_chunks
        self._seen: OrderedDict[bytes, Array] = OrderedDict()
        self.chunks_read = 0  # the others were remembered
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        quantisation: Quantisation | None = None,
    ) -> Encoder:
        """Load an encoder directory. Raises ReleaseError naming what is missing or unsafe."""
        path = Path(path)
        for needed in ("encoder.json", "transform.safetensors"):
            if not (path / needed).exists():
                raise ReleaseError(f"encoder: {needed} is missing")
        try:
            config = EncoderConfig.model_validate_json((path / "encoder.json").read_bytes())
        except ValidationError as error:
            raise ReleaseError(f"encoder.json: {error.errors()[0]['msg']}") from None
        transform = BetweenUserTransform.load(path / "transform.safetensors")
        if len(transform.matrix) != len(config.layers):
            raise ReleaseError(
                f"encoder: {len(config.layers)} layers, a transform for {len(transform.matrix)}"
            )
        try:
            model = load_vlm(path, device=device, dtype=dtype, quantisation=quantisation)
        except (OSError, ValueError) as error:
            raise ReleaseError(f"encoder: {error}") from error
        try:
            processor = AutoProcessor.from_pretrained(path)
        except (OSError, ValueError, ImportError, AttributeError) as error:
            raise ReleaseError(
                f"encoder: no processor (one that also reads video needs torchvision): {error}"
            ) from error
        space = embedding_space(path, dtype=dtype, quantisation=quantisation)
        return cls(model, processor, config, transform, space=space)

    def embed(self, pairs: Sequence[Pair]) -> Reading:
        """The preference embedding of ``pairs`` (arrival order, at least one)."""
        if not pairs:
            raise ValueError("an embedding needs at least one pair")
        chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
        readings = [self._read_cached(chunk) for chunk in chunks]
        weights = np.array([len(chunk) for chunk in chunks], np.float32)
        state = np.average([r[0] for r in readings], axis=0, weights=weights)
        return Reading(self.transform(state), readings[-1][1])

    def look(self, picture: bytes) -> Array:
        """The image tower's states of an encoded picture, ``[PARTS · width]``."""
        key = hashlib.sha256(picture).digest()
        with self._lock:
            states = self._seen.pop(key, None)
            if states is None:
                states = picture_states(self.model, self.processor, _open(picture))
            self._seen[key] = states  # the newest
            while len(self._seen) * states.nbytes > SEEN_BYTES:  # of one model all are equally long
                self._seen.popitem(last=False)
            return states

    def _read_cached(self, chunk: Sequence[Pair]) -> tuple[Array, str | None]:
        key = _content_key(chunk)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            reading = self.read([(p.prompt, _open(p.preferred), _open(p.rejected)) for p in chunk])
            self.chunks_read += 1
            self._cache[key] = reading
            while len(self._cache) > self._cache_chunks:
                self._cache.popitem(last=False)
            return reading

    @torch.inference_mode()
    def read(self, choices: Sequence[Choice]) -> tuple[Array, str | None]:
        """One reading: hidden states ``[rows, hidden]`` (float32) and the profile."""
        choices = [(self._harmless(caption), w, x) for caption, w, x in choices]
        text = self.processor.apply_chat_template(
            self.config.prompt.conversation(choices), add_generation_prompt=True
        )
        inputs = self.processor(
            text=text, images=self.config.prompt.images(choices), return_tensors="pt"
        ).to(self.model.device)
        inputs = {
            k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.items()
        }
        length = inputs["input_ids"].shape[1]
        writes = self.config.profile == "write" or self.config.position == "after_profile"
        output = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.config.max_profile_tokens if writes else 1,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        # hidden_states: one entry per forward, each a tuple of layers [1, tokens, hidden]. The
        # first forward ends where the profile begins; the last one predicts the final token.
        forward = output.hidden_states[0 if self.config.position == "before_profile" else -1]
        state = torch.stack([forward[layer][0, -1] for layer in self.config.layers])
        profile = None
        if self.config.profile == "write":
            written = output.sequences[0, length:]
            profile = self.processor.decode(written, skip_special_tokens=True).strip()
        return state.float().cpu().numpy(), profile

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
    """The VLM itself, safetensors only, on ``device`` in ``dtype``; 4-bit through bitsandbytes."""
    config = None
    if quantisation == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            llm_int8_skip_modules=_unfit_for_4bit(path),
        )
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        quantization_config=config,
        device_map={"": device} if config else None,
    )
    return (model if config else model.to(device)).eval()


def _unfit_for_4bit(path: str | Path) -> list[str]:
    """Layers that stay as they are: the head, and those whose width is no whole number of blocks.

    bitsandbytes scales blocks of 64 inputs; where rows end inside a block the weights' error is .25
    instead of .09, and its fast kernels on a CPU (AVX-512 BF16; 32 outputs at a time) fail.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path))
    head = model.get_output_embeddings()
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and (layer is head or layer.in_features % 64 or layer.out_features % 32)
    ]


def embedding_space(path: Path, *, dtype: str, quantisation: Quantisation | None) -> str:
    """A hash over all that an embedding depends on: weights, prompt, transform, precision."""
    digest = hashlib.sha256()
    names = sorted(
        p.name
        for p in path.iterdir()
        if p.suffix in {".safetensors", ".json", ".jinja", ".txt", ".model"}
    )
    for name in names:
        digest.update(name.encode())
        digest.update(hashlib.sha256((path / name).read_bytes()).digest())
    settings = {"dtype": dtype, "quantisation": quantisation, "chunk": CHUNK}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _content_key(chunk: Sequence[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in chunk:
        for part in (pair.prompt.encode(), pair.preferred, pair.rejected):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _open(data: bytes) -> Image.Image:
    """The picture as people see it: a camera held upright stores it sideways, EXIF says so."""
    image: Image.Image = Image.open(io.BytesIO(data))
    with suppress(Exception):  # Pillow raises nearly anything on EXIF that is none
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")
