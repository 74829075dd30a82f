"""Which kind of encoder a directory is: the ``config.json`` of its model says so."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError
from transformers import AutoConfig

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.clip_encoder import ClipEncoder
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.model_files import HubModel, model_directory
from ppd_serve.preferences.pair_encoder import PairEncoder
from ppd_serve.preferences.quantisation import Quantisation

CLIP = {"clip", "clip_vision_model"}  # model types


def load_encoder(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quantisation: Quantisation | None = None,
) -> PairEncoder:
    """A CLIP tower, or else a VLM. Raises ReleaseError naming what is missing or unsafe."""
    kind = ClipEncoder if _model_type(Path(path)) in CLIP else Encoder
    return kind.load(path, device=device, dtype=dtype, quantisation=quantisation)


def _model_type(path: Path) -> str:
    try:
        settings = json.loads((path / "encoder.json").read_bytes())
        named = settings.get("model") if isinstance(settings, dict) else None
        model = HubModel.model_validate(named) if named else None
        found: str = AutoConfig.from_pretrained(model_directory(path, model)).model_type
    except FileNotFoundError:
        raise ReleaseError("encoder: encoder.json is missing") from None
    except ValidationError as error:
        raise ReleaseError(f"encoder.json: model: {error.errors()[0]['msg']}") from None
    except (OSError, ValueError) as error:
        raise ReleaseError(f"encoder: {error}") from error
    return found
