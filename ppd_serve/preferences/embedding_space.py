"""The name of what an embedding can be compared with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ppd_serve.preferences.pair_encoder import CHUNK
from ppd_serve.preferences.quantisation import Quantisation

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
    digest = hashlib.sha256()
    for directory in [path] if weights in (None, path) else [path, weights]:
        assert directory is not None
        for file in sorted(p for p in directory.iterdir() if p.suffix in _READ):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    settings = {"dtype": dtype, "quantisation": quantisation, "chunk": CHUNK}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:16]
