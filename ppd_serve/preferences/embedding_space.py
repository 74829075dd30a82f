"""The name of what an embedding can be compared with."""

from __future__ import annotations

import hashlib
import json
from itertools import product
from pathlib import Path
from typing import get_args

from ppd_serve.preferences.pair_encoder import CHUNK
from ppd_serve.preferences.quantisation import Quantisation

DTYPES = ("float32", "bfloat16", "float16")
_READ = {".safetensors", ".json", ".jinja", ".txt", ".model"}


def embedding_space(
    path: Path,
    *,
    dtype: str,
    quantisation: Quantisation | None,
    weights: Path | None = None,
) -> str:
    """A hash over all that an embedding depends on: weights, prompt, transform, precision.

    ``weights``: where the model is, if not in the encoder directory ``path`` itself.
    """
    return _named(_files(path, weights), dtype, quantisation)


def is_space_of(space: str, path: Path, weights: Path | None = None) -> bool:
    """Whether some way to run an encoder makes it embed in this space."""
    files = _files(path, weights)
    ways = product(DTYPES, (None, *get_args(Quantisation)))
    return any(_named(files, *way) == space for way in ways)


def _files(path: Path, weights: Path | None) -> hashlib._Hash:
    digest = hashlib.sha256()
    for directory in [path] if weights in (None, path) else [path, weights]:
        assert directory is not None
        for file in sorted(p for p in directory.iterdir() if p.suffix in _READ):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest


def _named(files: hashlib._Hash, dtype: str, quantisation: Quantisation | None) -> str:
    digest = files.copy()
    settings = {"dtype": dtype, "quantisation": quantisation, "chunk": CHUNK}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:16]
