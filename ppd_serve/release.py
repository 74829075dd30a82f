"""A release: one servable whole, described by its ``release.json``.

::

    release.json                 name, version, parts, defaults, provenance, metrics, checksums
    backbone/                    as a diffusers pipeline saves itself
    adapter/ip_adapter.safetensors
    encoder/                     the VLM, its few-shot prompt and fitted transform
    questions.safetensors        which question to ask next (optional)

A part is a path inside the directory, or a path of a hub repository at a revision. Weights are
safetensors only.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ppd_serve.diffusion.backbone import Backbone, empty_denoiser, load_backbone, refuse_pickles
from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import InvalidInput, ReleaseError
from ppd_serve.manifest import MANIFEST, Manifest, Source, read_manifest

if TYPE_CHECKING:
    from ppd_serve.preferences.encoder import Encoder
    from ppd_serve.preferences.questions import Questioner

__all__ = ["MANIFEST", "Manifest", "Release", "Source", "load_release", "write_release"]


@dataclass(frozen=True)
class Release:
    """A release directory. Nothing is loaded before it is asked for."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def defaults(self) -> Defaults:
        return self.manifest.defaults

    @property
    def embedding_space(self) -> str | None:
        return self.manifest.embedding_space

    @property
    def backbone_path(self) -> Path:
        """A directory that stock diffusers loads; fetched first if the hub has it."""
        source = self.manifest.backbone
        if not source.hub_id:
            return self._locate(source)
        from diffusers import DiffusionPipeline  # it knows which files a pipeline needs

        return Path(
            DiffusionPipeline.download(
                source.hub_id, revision=source.revision, use_safetensors=True, safety_checker=None
            )
        )

    @property
    def adapter_path(self) -> Path | None:
        """An IP-Adapter file, or None for a release without personal taste."""
        return self._locate(self.manifest.adapter) if self.manifest.adapter else None

    @property
    def encoder_path(self) -> Path | None:
        return self._locate(self.manifest.encoder) if self.manifest.encoder else None

    def load_backbone(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        compile: bool = False,
        attention_backend: str | None = None,
    ) -> Backbone:
        """The backbone, able to do what ``defaults`` promise. ReleaseError if it is not."""
        backbone = load_backbone(
            self.backbone_path, device, dtype, compile=compile, attention_backend=attention_backend
        )
        try:
            backbone.schedule(self.defaults.sampler, self.defaults.steps)
            for width, height in self.defaults.sizes:
                backbone.latent_shape(width, height)
        except InvalidInput as error:
            raise ReleaseError(f"{MANIFEST}: defaults: {error}") from None
        return backbone

    def load_adapter(self, backbone: Backbone) -> UserAdapter | None:
        """The adapter, installed on this backbone's denoiser."""
        if self.adapter_path is None:
            return None
        return UserAdapter.load(self.adapter_path, backbone.denoiser).requires_grad_(False)

    def load_encoder(self, **how: Any) -> Encoder:
        """``how`` is ``Encoder.load``'s: device, dtype, quantisation."""
        from ppd_serve.preferences.encoder import Encoder

        if self.encoder_path is None:
            raise ReleaseError(f"release {self.name} has no encoder")
        return Encoder.load(self.encoder_path, **how)

    def load_questioner(self) -> Questioner | None:
        """None for a release that asks no questions."""
        from ppd_serve.preferences.questions import Questioner

        source = self.manifest.questions
        return Questioner.load(self._locate(source)) if source else None

    def check(self) -> None:
        """Raise ReleaseError, naming the part, if this release cannot be served as published.

        Reads every local file once (checksums) and loads no weights but the adapter's.
        """
        refuse_pickles(self.path)
        named = self.manifest
        parts = (named.backbone, named.adapter, named.encoder, named.questions)
        for part in parts:
            if part is not None and not part.hub_id and not self._locate(part).exists():
                raise ReleaseError(f"{part.path} is missing")
        for name, checksum in self.manifest.checksums.items():
            if not (self.path / name).is_file():
                raise ReleaseError(f"{name} is missing")
            if _sha256(self.path / name) != checksum:
                raise ReleaseError(f"{name} has changed since the release was written")
        unlisted = _local_files(self.path) - self.manifest.checksums.keys()
        if weights := sorted(name for name in unlisted if name.endswith(".safetensors")):
            raise ReleaseError(f"{weights[0]} has no checksum")
        self._check_adapter()

    def _check_adapter(self) -> None:
        """Shapes only: of the denoiser no weights are read."""
        if self.adapter_path is None:
            return
        adapter = UserAdapter.load(self.adapter_path, empty_denoiser(self.backbone_path))
        shape = self.manifest.embedding_shape
        if shape is not None and adapter.embedding_dim != shape[1]:
            raise ReleaseError(f"the adapter reads {adapter.embedding_dim} numbers, not {shape[1]}")

    def _locate(self, source: Source) -> Path:
        inside = source.path or ""
        if not source.hub_id:
            return self.path / inside
        from huggingface_hub import snapshot_download

        kinds = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
        wanted = [inside] if inside.endswith(".safetensors") else [f"{inside}{k}" for k in kinds]
        root = snapshot_download(source.hub_id, revision=source.revision, allow_patterns=wanted)
        return Path(root) / inside


def load_release(path: str | os.PathLike[str]) -> Release:
    """Read ``release.json`` of a directory. ReleaseError if there is none or it is not valid."""
    return Release(Path(path), read_manifest(path))


def write_release(path: str | os.PathLike[str], manifest: Manifest) -> Release:
    """Write ``release.json`` over the parts already in ``path``, with a checksum of every file.

    Atomic: a reader sees the old manifest or the new one.
    """
    path = Path(path)
    checksums = {name: _sha256(path / name) for name in sorted(_local_files(path))}
    manifest = manifest.model_copy(update={"checksums": checksums})
    draft = path / f".{MANIFEST}.new"
    draft.write_text(manifest.model_dump_json(indent=2, exclude_none=True) + "\n")
    os.replace(draft, path / MANIFEST)
    return Release(path, manifest)


def _local_files(path: Path) -> set[str]:
    files = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return {file.as_posix() for file in files if file.name not in (MANIFEST, f".{MANIFEST}.new")}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
