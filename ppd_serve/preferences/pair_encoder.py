"""What every encoder does alike: chunks of four pairs, each read once, and pictures looked at once.

Pairs are cut into chunks in arrival order; a full chunk never changes, so a new pair costs one
reading. A person's chunks are averaged by their number of pairs. What a chunk's reading is, and
what the mean becomes, is each encoder's own (``encoder.py``, ``clip_encoder.py``).
"""

from __future__ import annotations

import hashlib
import io
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ppd_serve.preferences.pairs import Pair
from ppd_serve.preferences.prompt import Choice

Array = NDArray[np.float32]
ChunkReading = tuple[Array, str | None]  # the chunk's state [...], and what was written about it

CHUNK = 4
SEEN_BYTES = 64 * 2**20  # of pictures' states that are remembered
_MOST_STRETCHED = 100  # some image processors refuse what is 200 times as long as wide


@dataclass(frozen=True)
class Reading:
    """What the encoder makes of a person: float32 ``[rows, dim]`` and the profile it wrote."""

    embedding: Array
    profile: str | None


class PairEncoder(ABC):
    """Reads pairs. Thread-safe: one reading at a time (a fast tokenizer cannot be shared).

    ``space`` names what the embeddings, ``[rows, dim]``, are comparable with.
    """

    rows: int
    dim: int

    def __init__(self, space: str, cache_chunks: int = 4096) -> None:
        self.space = space
        self.chunks_read = 0  # the others were remembered
        self._cache: OrderedDict[str, ChunkReading] = OrderedDict()
        self._cache_chunks = cache_chunks
        self._seen: OrderedDict[bytes, Array] = OrderedDict()
        self._lock = threading.Lock()

    @abstractmethod
    def read_all(self, chunks: Sequence[Sequence[Choice]]) -> list[ChunkReading]:
        """One reading of every chunk, in one forward of the model."""

    @abstractmethod
    def embedding(self, state: Array) -> Array:
        """A person's mean state -> ``[rows, dim]``."""

    @abstractmethod
    def see(self, picture: Image.Image) -> Array:
        """One picture as the image tower sees it, ``[hidden]``; of equal length for all."""

    def read(self, choices: Sequence[Choice]) -> ChunkReading:
        """One chunk by itself."""
        return self.read_all([choices])[0]

    def embed(self, pairs: Sequence[Pair]) -> Reading:
        """The preference embedding of ``pairs`` (arrival order, at least one)."""
        return self.embed_all([pairs], at_once=1)[0]

    def embed_all(self, people: Sequence[Sequence[Pair]], *, at_once: int = 8) -> list[Reading]:
        """Of many people, ``at_once`` chunks in a forward: quicker, and equal up to rounding."""
        if not all(people):
            raise ValueError("an embedding needs at least one pair")
        found = []
        chunked = [[p[i : i + CHUNK] for i in range(0, len(p), CHUNK)] for p in people]
        remembered = self._readings([chunk for chunks in chunked for chunk in chunks], at_once)
        for chunks in chunked:
            readings = [remembered[_content_key(chunk)] for chunk in chunks]
            weights = np.array([len(chunk) for chunk in chunks], np.float32)
            state = np.average([r[0] for r in readings], axis=0, weights=weights)
            found.append(Reading(self.embedding(state), readings[-1][1]))
        return found

    def look(self, picture: bytes) -> Array:
        """The image tower's states of an encoded picture, ``[hidden]``."""
        key = hashlib.sha256(picture).digest()
        with self._lock:
            states = self._seen.pop(key, None)
            if states is None:
                states = self.see(open_picture(picture))
            self._seen[key] = states  # the newest
            while len(self._seen) * states.nbytes > SEEN_BYTES:  # of one model all are equally long
                self._seen.popitem(last=False)
            return states

    def _readings(self, chunks: Sequence[Sequence[Pair]], at_once: int) -> dict[str, ChunkReading]:
        """By content; the cache may be smaller than what is asked for at once."""
        keyed = {_content_key(chunk): chunk for chunk in chunks}
        found: dict[str, ChunkReading] = {}
        with self._lock:
            for key in keyed.keys() & self._cache.keys():
                found[key] = self._cache[key]
                self._cache.move_to_end(key)
            missing = [key for key in keyed if key not in found]
        for start in range(0, len(missing), at_once):
            keys = missing[start : start + at_once]
            with self._lock:
                readings = self.read_all([_opened(keyed[key]) for key in keys])
                self.chunks_read += len(keys)
                for key, reading in zip(keys, readings, strict=True):
                    found[key] = self._cache[key] = reading
                while len(self._cache) > self._cache_chunks:
                    self._cache.popitem(last=False)
        return found


def open_picture(data: bytes) -> Image.Image:
    """The picture as people see it: a camera held upright stores it sideways, EXIF says so.

    A line is widened until processors take it for a picture.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    with suppress(Exception):  # Pillow raises nearly anything on EXIF that is none
        image = ImageOps.exif_transpose(image)
    image = image.convert("RGB")
    least = -(-max(image.size) // _MOST_STRETCHED)
    if min(image.size) < least:
        image = image.resize((max(image.width, least), max(image.height, least)))
    return image


def _opened(chunk: Sequence[Pair]) -> list[Choice]:
    return [(p.prompt, open_picture(p.preferred), open_picture(p.rejected)) for p in chunk]


def _content_key(chunk: Sequence[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in chunk:
        for part in (pair.prompt.encode(), pair.preferred, pair.rejected):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()
