"""``release.json``: what a release says of itself. Reading it loads no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ppd_serve.diffusion.request import Defaults
from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.model_files import InsidePath

MANIFEST = "release.json"
PARTS = ("backbone", "adapter", "encoder", "questions")


class Source(BaseModel):
    """Where a part is: ``path`` inside the release or, with ``hub_id``, inside that repository.

    A hub part without a path is the whole repository.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: InsidePath | None = None
    hub_id: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if not (self.path or self.hub_id) or bool(self.hub_id) != bool(self.revision):
            raise ValueError("needs a path, or a hub_id with a revision")
        return self

    def __str__(self) -> str:
        """As ``ppd release build`` takes it."""
        if not self.hub_id:
            return str(self.path)
        return f"hf://{self.hub_id}@{self.revision}" + (f"/{self.path}" if self.path else "")


class Manifest(BaseModel):
    """``release.json``. ``embedding_shape`` is ``(rows, dim)``, ``checksums`` SHA-256 by path.
    ``questions``: what the server needs to ask people questions of its own making."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    backbone: Source
    adapter: Source | None = None
    encoder: Source | None = None
    questions: Source | None = None
    embedding_space: str | None = None
    embedding_shape: tuple[int, int] | None = None
    defaults: Defaults
    example_prompts: list[str] = Field(default_factory=list)
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    checksums: dict[str, str] = Field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Source]:
        """Those it has, by name."""
        named = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in named.items() if part is not None}


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """``release.json`` of a directory. ReleaseError if there is none or it is not valid."""
    path = Path(path)
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except OSError:
        raise ReleaseError(f"{path.name} holds no {MANIFEST}") from None
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError, file: str = MANIFEST) -> ReleaseError:
    """The first of what is wrong with a file, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return ReleaseError(f"{file}: {where}: {first['msg']}")


def is_commit(revision: str | None) -> bool:
    """Not a branch or a tag, which may name something else tomorrow."""
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None
