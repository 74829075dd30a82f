"""A release's encoder directory while a release is built: which model of the hub it is for, and
what its embeddings are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from ppd_serve.errors import ReleaseError
from ppd_serve.manifest import invalid
from ppd_serve.preferences.clip_encoder import ClipConfig
from ppd_serve.preferences.embedding_space import embedding_space, is_space_of
from ppd_serve.preferences.encoder import EncoderConfig
from ppd_serve.preferences.load import CLIP
from ppd_serve.preferences.model_files import model_directory
from ppd_serve.preferences.quantisation import Quantisation
from ppd_serve.release import Release, encoder_model, first_line

TRANSFORM = "transform.safetensors"
NONE: dict[str, Any] = {"embedding_space": None, "embedding_shape": None}


@contextmanager
def told(encoder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """``encoder.json`` with these settings, unless what happens inside fails: then as it was.
    Raises ReleaseError for one that cannot be read."""
    file = encoder / "encoder.json"
    before = file.read_bytes() if file.exists() else None
    made = [place for place in (encoder.parent, encoder) if not place.exists()]
    if settings:
        known = _settings(before) if before is not None else {}
        encoder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**known, **settings}, indent=1) + "\n")
    try:
        yield
    except BaseException:
        if settings:
            file.write_bytes(before) if before is not None else file.unlink()
            for place in reversed(made):
                place.rmdir()
        raise


def _settings(text: bytes) -> dict[str, Any]:
    try:
        known = json.loads(text)
    except ValueError as error:
        raise ReleaseError(f"encoder.json: {first_line(error)}") from None
    if not isinstance(known, dict):
        raise ReleaseError("encoder.json: must be an object")
    return known


def embedding_of(
    release: Release, dtype: str | None, quantisation: Quantisation | None
) -> dict[str, Any]:
    """Space and shape, as the manifest has them; ``NONE`` without an encoder, and for a VLM whose
    transform is still to be fitted. Raises ReleaseError.

    Without ``dtype`` and ``quantisation`` the space stays, if it is this encoder's; where there is
    none yet, it is float32's."""
    path = release.encoder_path
    if path is None:
        return NONE
    named = encoder_model(path)
    try:
        weights = model_directory(path, named)
        config = AutoConfig.from_pretrained(weights)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{release.manifest.encoder}: {first_line(error)}") from error
    clip = config.model_type in CLIP
    try:
        (ClipConfig if clip else EncoderConfig).model_validate_json(
            (path / "encoder.json").read_bytes()
        )
    except ValidationError as error:
        raise invalid(error, f"{release.manifest.encoder}/encoder.json") from None
    if clip and quantisation is not None:
        raise ReleaseError(f"{release.manifest.encoder}: a CLIP tower is not quantised")
    if clip:
        shape = 1, config.projection_dim
    elif (path / TRANSFORM).exists():
        try:
            with safe_open(path / TRANSFORM, "numpy") as tensors:
                rows, _, dim = tensors.get_slice("matrix").get_shape()
        except (OSError, SafetensorError, ValueError):
            where = f"{release.manifest.encoder}/{TRANSFORM}"
            raise ReleaseError(f"{where} is no encoder's transform") from None
        shape = rows, dim
    else:
        return NONE
    space = release.manifest.embedding_space
    if dtype or quantisation or not space:
        space = embedding_space(
            path, dtype=dtype or "float32", quantisation=quantisation, weights=weights
        )
    elif not is_space_of(space, path, weights):
        raise ReleaseError("the encoder has changed: say --dtype (and --quantisation) once more")
    return {"embedding_space": space, "embedding_shape": shape}
