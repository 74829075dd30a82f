"""Where an encoder's model is: in the encoder directory, or on the hub at a revision."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

_KINDS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def _stays_inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must stay inside the release or the repository")
    return path


InsidePath = Annotated[str, AfterValidator(_stays_inside)]


class HubModel(BaseModel):
    """``path``: a folder of the repository; None is the whole of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub_id: str
    revision: str
    path: InsidePath | None = None


def model_directory(encoder: Path, model: HubModel | None) -> Path:
    """A local transformers model directory, fetched first if the hub has it. Raises OSError."""
    if model is None:
        return encoder
    from huggingface_hub import snapshot_download

    inside = f"{model.path}/" if model.path else ""
    wanted = [inside + kind for kind in _KINDS]
    root = snapshot_download(model.hub_id, revision=model.revision, allow_patterns=wanted)
    return Path(root) / inside
