"""Whether the parts of a release are whole: each model that they name, with its weights.

A checksum says that what was there is there still. That something never was, or was left out before
the release was written anew, is found here; nothing is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

from ppd_serve.diffusion.backbone import loaded_parts
from ppd_serve.errors import ReleaseError

CONFIG = "config.json"  # of models; tokenizers and schedulers have other names for theirs
WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")


def refuse_incomplete_backbone(path: Path, said: str) -> None:
    """``said``: what the release calls it. ReleaseError naming what is missing."""
    for name in loaded_parts(path):
        if not (path / name).is_dir():
            raise ReleaseError(f"{said}/{name} is missing")
        if (path / name / CONFIG).exists():
            _refuse_without_weights(path / name, f"{said}/{name}")


def refuse_incomplete_encoder(path: Path, said: str) -> None:
    """Of an encoder whose model is in its own directory. ReleaseError naming what is missing."""
    if not (path / CONFIG).exists():
        raise ReleaseError(f"{said}/{CONFIG} is missing")
    _refuse_without_weights(path, said)


def _refuse_without_weights(model: Path, said: str) -> None:
    """As diffusers and transformers look for them: one file, or a list of several."""
    if any((model / weights).exists() for weights in WEIGHTS):
        return
    for listed in (model / f"{weights}.index.json" for weights in WEIGHTS):
        if listed.exists():
            for file in sorted({*json.loads(listed.read_bytes())["weight_map"].values()}):
                if not (model / file).exists():
                    raise ReleaseError(f"{said}/{file} is missing")
            return
    raise ReleaseError(f"{said} holds no weights ({' or '.join(WEIGHTS)})")
