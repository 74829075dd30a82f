"""What ``ppd release build`` makes: a ``release.json`` over parts that are there or on the hub.

A part on the hub is written ``hf://owner/name@revision/path`` and pinned to the commit that its
revision names today. Nothing is written before all of it has been checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ppd_serve.errors import ReleaseError
from ppd_serve.manifest import MANIFEST, PARTS, Manifest, Source, invalid, is_commit, read_manifest
from ppd_serve.preferences.model_files import HubModel
from ppd_serve.preferences.quantisation import Quantisation
from ppd_serve.release import Release, first_line, seal
from ppd_serve.release_encoder import embedding_of, told

USUAL = {
    "backbone": "backbone",
    "adapter": "adapter/ip_adapter.safetensors",
    "encoder": "encoder",
    "questions": "questions.safetensors",
}
HUB = re.compile(r"hf://(?P<hub_id>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<path>.+))?")


def build(
    directory: Path,
    *,
    places: Mapping[str, str],
    defaults: Mapping[str, Any],
    encoder_model: str | None = None,
    picture_pixels: int | None = None,
    dtype: str | None = None,
    quantisation: Quantisation | None = None,
    **said: Any,
) -> Release:
    """Write ``release.json`` to ``directory``. Raises ReleaseError, and then changes nothing.

    ``places``: of parts that are not in their ``USUAL`` place; ``defaults``: fields of
    ``Defaults``; ``said``: other fields of ``Manifest``. What all of them leave out stays as an
    earlier ``release.json`` here has it. ``encoder_model`` and ``picture_pixels``: for
    ``encoder/encoder.json``, which model of the hub reads and how much it sees of a picture.
    ``dtype`` and ``quantisation``: how the encoder will be run, which its embedding space depends
    on; without both, as before, or in float32 if there was no embedding space yet.
    """
    settings: dict[str, Any] = {}
    if encoder_model is not None:
        named = source(encoder_model)
        if not named.hub_id:
            raise ReleaseError(f"{encoder_model}: must be like hf://owner/name@revision/path")
        settings["model"] = HubModel(**named.model_dump()).model_dump(exclude_none=True)
    if picture_pixels is not None:
        settings["picture_pixels"] = picture_pixels
    with told(directory / USUAL["encoder"], settings):
        return _build(directory, places, defaults, dtype, quantisation, said)


def _build(
    directory: Path,
    places: Mapping[str, str],
    defaults: Mapping[str, Any],
    dtype: str | None,
    quantisation: Quantisation | None,
    said: Mapping[str, Any],
) -> Release:
    before: dict[str, Any] = {}
    if (directory / MANIFEST).exists():
        before = read_manifest(directory).model_dump(exclude_none=True)
    parts = {name: part for name in PARTS if (part := _part(name, places, before, directory))}
    if "backbone" not in parts:
        raise ReleaseError(f"no backbone: {directory / USUAL['backbone']} is missing")
    merged = {"defaults": before.get("defaults", {}) | defaults}
    try:
        manifest = Manifest.model_validate({**before, **said, **parts, **merged})
    except ValidationError as error:
        raise invalid(error) from None
    space = embedding_of(Release(directory, manifest), dtype, quantisation)
    made = seal(directory, manifest.model_copy(update=space))
    made.check()
    return made.write()


def _part(
    name: str, places: Mapping[str, str], before: Mapping[str, Any], directory: Path
) -> Source | dict[str, Any] | None:
    if place := places.get(name):
        return source(place)
    if name in before:
        known: dict[str, Any] = before[name]
        return known
    return Source(path=USUAL[name]) if (directory / USUAL[name]).exists() else None


def source(place: str) -> Source:
    """A path inside the release, or ``hf://owner/name@revision/path``, which is pinned here."""
    where: dict[str, str | None] = {"path": place}
    if place.startswith("hf://"):
        found = HUB.fullmatch(place)
        if found is None:
            raise ReleaseError(f"{place}: must be like hf://owner/name@revision/path")
        where = {**found.groupdict(), "revision": found["revision"] or "main"}
    try:
        named = Source.model_validate(where)
    except ValidationError as error:
        raise ReleaseError(f"{place}: {error.errors()[0]['msg']}") from None
    if not (named.hub_id and named.revision):
        return named
    return named.model_copy(update={"revision": commit(named.hub_id, named.revision)})


def commit(hub_id: str, revision: str) -> str:
    """What the hub says this branch or tag is today; a commit is itself. Raises ReleaseError."""
    if is_commit(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        sha = HfApi().model_info(hub_id, revision=revision).sha
    except Exception as error:  # the hub's client has a dozen kinds of its own
        why = first_line(error)
        raise ReleaseError(f"the hub does not tell the commit of {hub_id}@{revision}: {why}") from (
            error
        )
    if not is_commit(sha):
        raise ReleaseError(f"the hub does not tell the commit of {hub_id}@{revision}")
    return str(sha)
