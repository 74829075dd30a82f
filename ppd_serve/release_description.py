"""What ``ppd release describe`` tells of a release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from ppd_serve.errors import ReleaseError
from ppd_serve.manifest import Source
from ppd_serve.release import Release, first_line
from ppd_serve.release_diff import part_of
from ppd_serve.release_sizes import Size, backbone_sizes, encoder_size, tensors_size

GB = 1e9
FAILURES = (  # of configs and weights that are torn, or of classes that are not known
    OSError, ValueError, KeyError, IndexError, TypeError, ImportError, AttributeError,
    SafetensorError,
)  # fmt: skip


def description(release: Release) -> dict[str, Any]:
    """Plain values. ``models`` is None for a part that is on the hub and cannot be asked now;
    parameters and memory (of the weights) are computed from the configs."""
    manifest = release.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "parts": {name: _part(release, name, part) for name, part in manifest.parts.items()},
        "embedding": {"space": manifest.embedding_space, "shape": manifest.embedding_shape},
        "defaults": asdict(manifest.defaults),
        "metrics": manifest.metrics,
        "training": manifest.training,
    }


def _part(release: Release, name: str, part: Source) -> dict[str, Any]:
    inside = [
        file for file in release.manifest.checksums if part_of(file, release.manifest) == name
    ]
    told: dict[str, Any] = {"place": str(part), "models": _models(release, name, part)}
    if not part.hub_id:
        told["files"] = len(inside)
        told["bytes"] = sum(_size(release.path, file) for file in inside)
    return told


def _size(directory: Path, file: str) -> int:
    try:
        return (directory / file).stat().st_size
    except FileNotFoundError:
        raise ReleaseError(f"{file} is missing") from None


def _models(release: Release, name: str, part: Source) -> list[dict[str, Any]] | None:
    try:
        return [_model(size, name) for size in _sizes(name, release.configs(name))]
    except ReleaseError:
        if part.hub_id:
            return None
        raise


def _sizes(name: str, path: Path) -> list[Size]:
    try:
        if name == "backbone":
            return backbone_sizes(path)
        return [encoder_size(path) if name == "encoder" else tensors_size(name, path)]
    except FAILURES as error:
        raise ReleaseError(f"{name}: its size cannot be computed: {first_line(error)}") from error


def _model(size: Size, part: str) -> dict[str, Any]:
    memory = {dtype: size.memory(dtype) for dtype in ("float32", "bfloat16")}
    if part == "encoder":
        memory["4bit"] = size.memory("bfloat16", four_bit=True)
    return {"name": size.name, "parameters": size.parameters, "memory": memory}


def render(told: Mapping[str, Any], console: Console) -> None:
    """For people."""
    parts = Table("part", "place", "files", "on disk", title=f"{told['name']} {told['version']}")
    for name, part in told["parts"].items():
        here = (str(part["files"]), _gb(part["bytes"])) if "files" in part else ("", "hub")
        parts.add_row(name, part["place"], *here)
    models = Table(
        "model", "parameters", "float32", "bfloat16", "4-bit",
        title="Memory of the weights (computed from the configs)",
    )  # fmt: skip
    for name, part in told["parts"].items():
        if part["models"] is None:
            models.add_row(f"{name}: its configs cannot be fetched now")
        for model in part["models"] or []:
            own = name if model["name"] == name else f"{name} · {model['name']}"
            memory = (_gb(model["memory"].get(kind)) for kind in ("float32", "bfloat16", "4bit"))
            models.add_row(own, f"{model['parameters'] / 1e6:,.1f} M", *memory)
    rest = Table(show_header=False, title="Defaults, embeddings, metrics")
    for name in ("defaults", "embedding", "metrics"):
        for key, value in told[name].items():
            rest.add_row(f"{name}.{key}", str(value))
    for table in (parts, models, rest):
        console.print(table)


def _gb(count: int | None) -> str:
    return "" if count is None else f"{count / GB:.3f} GB"
