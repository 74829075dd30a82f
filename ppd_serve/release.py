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
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from ppd_serve.diffusion.backbone import Backbone, empty_denoiser, load_backbone, refuse_pickles
from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import InvalidInput, ReleaseError
from ppd_serve.manifest import MANIFEST, Manifest, Source, invalid, is_commit, read_manifest
from ppd_serve.preferences.model_files import HubModel
from ppd_serve.release_parts import refuse_incomplete_backbone, refuse_incomplete_encoder

if TYPE_CHECKING:
    from ppd_serve.preferences.encoder import Encoder
    from ppd_serve.preferences.pair_encoder import PairEncoder
    from ppd_serve.preferences.questions import Questioner

__all__ = ["MANIFEST", "Manifest", "Release", "Source", "load_release", "seal", "write_release"]


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

        with _fetching(source):
            fetched = DiffusionPipeline.download(
                source.hub_id, revision=source.revision, use_safetensors=True, safety_checker=None
            )
        return Path(fetched)

    @property
    def adapter_path(self) -> Path | None:
        """An IP-Adapter file, or None for a release without personal taste."""
        return self._locate(self.manifest.adapter) if self.manifest.adapter else None

    @property
    def encoder_path(self) -> Path | None:
        return self._locate(self.manifest.encoder) if self.manifest.encoder else None

    def configs(self, name: str) -> Path:
        """Where a part's configs are: of one on the hub nothing else is fetched but small files,
        and all of a file of weights."""
        source = self.manifest.parts[name]
        if name in ("adapter", "questions"):
            return self._locate(source)
        path = self._configs(source)
        model = encoder_model(path) if name == "encoder" else None
        return self._configs(Source(**model.model_dump())) if model else path

    def _configs(self, source: Source) -> Path:
        if not source.hub_id:
            return self._locate(source)
        return self._fetch(source, [f"{source.path or ''}*.json"])

    def load_backbone(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        compile: bool = False,
        attention_backend: str | None = None,
        packed: bool = False,
    ) -> Backbone:
        """The backbone, able to do what ``defaults`` promise. ReleaseError if it is not."""
        backbone = load_backbone(
            self.backbone_path, device, dtype,
            compile=compile, attention_backend=attention_backend, packed=packed,
        )  # fmt: skip
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

    def load_encoder(self, **how: Any) -> PairEncoder:
        """``how`` is ``preferences.load.load_encoder``'s: device, dtype, quantisation."""
        from ppd_serve.preferences.load import load_encoder

        if self.encoder_path is None:
            raise ReleaseError(f"release {self.name} has no encoder")
        return load_encoder(self.encoder_path, **how)

    def load_vlm(self, **how: Any) -> Encoder:
        """The encoder of a release whose encoder is a VLM. ReleaseError for another kind."""
        from ppd_serve.preferences.encoder import Encoder

        encoder = self.load_encoder(**how)
        if not isinstance(encoder, Encoder):
            raise ReleaseError(f"the encoder of release {self.name} is no VLM")
        return encoder

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
        files = _local_files(self.path)
        for name, part in self.manifest.parts.items():
            if part.hub_id and not is_commit(part.revision):
                raise ReleaseError(f"{name}: {part} is pinned to no commit; build does that")
            if not part.hub_id and not self._locate(part).exists():
                raise ReleaseError(f"{part.path} is missing")
            if not part.hub_id and _hidden(Path(part.path or "")):
                raise ReleaseError(f"{part.path} is hidden, and hidden directories go unchecked")
            model = None if part.hub_id or name != "encoder" else encoder_model(self._locate(part))
            if model and not is_commit(model.revision):
                raise ReleaseError(f"{part}/encoder.json: its model is pinned to no commit")
        for name, checksum in self.manifest.checksums.items():
            if not (self.path / name).is_file():
                raise ReleaseError(f"{name} is missing")
            if _sha256(self.path / name) != checksum:
                raise ReleaseError(f"{name} has changed since the release was written")
        unlisted = files - self.manifest.checksums.keys()
        if weights := sorted(name for name in unlisted if name.endswith(".safetensors")):
            raise ReleaseError(f"{weights[0]} has no checksum")
        self._check_parts()
        try:
            self._check_adapter()
        except ReleaseError as error:
            raise ReleaseError(f"{self.manifest.adapter}: {error}") from None

    def _check_parts(self) -> None:
        """Of those in this directory, what they are made of."""
        backbone, encoder = self.manifest.backbone, self.manifest.encoder
        if not backbone.hub_id:
            refuse_incomplete_backbone(self.backbone_path, str(backbone))
        if encoder and not encoder.hub_id and encoder_model(self._locate(encoder)) is None:
            refuse_incomplete_encoder(self._locate(encoder), str(encoder))

    def _check_adapter(self) -> None:
        """Shapes only: of the denoiser no weights are read."""
        if self.adapter_path is None:
            return
        adapter = UserAdapter.load(self.adapter_path, empty_denoiser(self.backbone_path))
        shape = self.manifest.embedding_shape
        if shape is not None and adapter.embedding_dim != shape[1]:
            raise ReleaseError(f"the adapter reads {adapter.embedding_dim} numbers, not {shape[1]}")

    def write(self) -> Release:
        """Write ``release.json``. Atomic: a reader sees the old manifest or the new one."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{MANIFEST}.new"
        draft.write_text(self.manifest.model_dump_json(indent=2, exclude_none=True) + "\n")
        os.replace(draft, self.path / MANIFEST)
        return self

    def _locate(self, source: Source) -> Path:
        inside = source.path or ""
        if not source.hub_id:
            return self.path / inside
        kinds = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
        wanted = [inside] if inside.endswith(".safetensors") else [f"{inside}{k}" for k in kinds]
        return self._fetch(source, wanted)

    def _fetch(self, source: Source, wanted: list[str]) -> Path:
        """A part on the hub: of its repository the files like ``wanted``."""
        from huggingface_hub import snapshot_download

        with _fetching(source):
            root = snapshot_download(
                str(source.hub_id), revision=source.revision, allow_patterns=wanted
            )
        return Path(root) / (source.path or "")


def load_release(path: str | os.PathLike[str]) -> Release:
    """Read ``release.json`` of a directory. ReleaseError if there is none or it is not valid."""
    return Release(Path(path), read_manifest(path))


def seal(path: str | os.PathLike[str], manifest: Manifest) -> Release:
    """With a checksum of every file in ``path``. Writes nothing."""
    path = Path(path)
    checksums = {name: _sha256(path / name) for name in sorted(_local_files(path))}
    return Release(path, manifest.model_copy(update={"checksums": checksums}))


def write_release(path: str | os.PathLike[str], manifest: Manifest) -> Release:
    """Write ``release.json`` over the parts already in ``path``, with a checksum of every file."""
    return seal(path, manifest).write()


def encoder_model(path: Path) -> HubModel | None:
    """The model of the hub that an encoder directory is for; None if it is in there itself."""
    try:
        named = json.loads((path / "encoder.json").read_bytes()).get("model")
        return HubModel.model_validate(named) if named else None
    except OSError:
        raise ReleaseError("encoder: encoder.json is missing") from None
    except ValidationError as error:
        raise invalid(error, "encoder.json: model") from None
    except (ValueError, AttributeError) as error:
        raise ReleaseError(f"encoder.json: {first_line(error)}") from None


@contextmanager
def _fetching(source: Source) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's client has a dozen kinds of its own
        raise ReleaseError(f"{source} cannot be fetched: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _local_files(path: Path) -> set[str]:
    """Without hidden directories, which are notes of whoever fetched the files. ReleaseError for a
    link to a directory: nobody would look behind it."""
    found = set()
    for file in path.rglob("*"):
        inside = file.relative_to(path)
        if _hidden(inside.parent):
            continue
        if file.is_symlink() and file.is_dir():
            raise ReleaseError(f"{inside} is a link to a directory; only what is inside is checked")
        if file.is_file() and file.name not in (MANIFEST, f".{MANIFEST}.new"):
            found.add(inside.as_posix())
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
