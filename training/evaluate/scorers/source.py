"""Where a scorer's files are: a directory here, or ``owner/name@revision`` on the hub."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from torch import Tensor

_KINDS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def directory(source: str | Path) -> Path:
    """A model directory, fetched if ``source`` is ``owner/name@revision``; never a pickle.

    ValueError if there is no such directory and the hub has none to give.
    """
    if Path(source).is_dir():
        return Path(source)
    hub_id, revision = _on_the_hub(str(source))
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(_KINDS)))
    except OSError as error:  # huggingface_hub's own errors are OSErrors
        raise ValueError(f"source: {source} is neither here nor to be fetched: {error}") from error


def checkpoint(source: str | Path) -> dict[str, Tensor]:
    """The tensors of a published ``torch.save`` file: here, or ``owner/name@revision:file``.

    Read with ``weights_only``: a pickle that would do anything else is refused (ValueError).
    """
    path = Path(source)
    if not path.is_file():
        hub_id, place = _on_the_hub(str(source))
        revision, _, file = place.partition(":")
        if not file:
            raise ValueError(f"checkpoint: name the file, as in {source}:FILE")
        try:
            path = Path(hf_hub_download(hub_id, file, revision=revision))
        except OSError as error:
            raise ValueError(
                f"checkpoint: {source} is neither here nor to be fetched: {error}"
            ) from error
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"checkpoint: {path.name} is no file of plain weights: {error}") from error
    held = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()):
        raise ValueError(f"checkpoint: {path.name} holds no table of tensors")
    return dict(held)


def load_pretrained(kind: Any, path: Path, **how: Any) -> Any:
    """``kind.from_pretrained``, safetensors only; ValueError if weights are missing."""
    try:
        model, report = kind.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, **how
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"source: {path.name} holds no {kind.__name__}: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"source: {path.name} lacks {missing[0]} of {kind.__name__}")
    return model.eval()


def _on_the_hub(source: str) -> tuple[str, str]:
    hub_id, at, revision = source.partition("@")
    if hub_id.count("/") != 1 or not (at and revision):
        raise ValueError(f"source: {source} is not here; of the hub, say owner/name@revision")
    return hub_id, revision
