"""How two releases differ, and what that means for whoever changes from the one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppd_serve.manifest import Manifest

MEANING = {
    "name": "another release",
    "version": "",
    "backbone": "all pictures change, the same seed's too",
    "adapter": "pictures with a taste change, those without stay",
    "encoder": "people are read by another encoder",
    "questions": "other questions are asked from now on; answers that were given stay",
    "embedding_space": "embeddings cannot be compared: everybody's must be made again",
    "embedding_shape": "embeddings have another form: everybody's must be made again",
    "defaults": "applies to calls that do not say it themselves",
    "metrics": "measured otherwise",
    "training": "made otherwise",
    "example_prompts": "what apps are shown",
}


@dataclass(frozen=True)
class Difference:
    """``what`` is a field of ``release.json`` or a file of the release; None: it is not there."""

    what: str
    before: Any
    after: Any
    means: str


def differences(before: Manifest, after: Manifest) -> list[Difference]:
    """First fields, then files; nothing for equal releases."""
    fields = _changes(_fields(before), _fields(after))
    files = _changes(before.checksums, after.checksums)

    def means(file: str) -> str:
        return MEANING.get(part_of(file, after) or part_of(file, before), "")

    return [
        *(Difference(what, was, now, MEANING[what.partition(".")[0]]) for what, was, now in fields),
        *(Difference(file, was, now, means(file)) for file, was, now in sorted(files)),
    ]


def part_of(file: str, manifest: Manifest) -> str:
    """Which part of a release a file belongs to; empty if to none."""
    local = ((name, part.path) for name, part in manifest.parts.items() if not part.hub_id)
    inside = (name for name, path in local if Path(file).is_relative_to(path or ""))
    return next(inside, "")


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    both = ((what, before.get(what), after.get(what)) for what in {**before, **after})
    return [(what, was, now) for what, was, now in both if was != now]


def _fields(manifest: Manifest) -> dict[str, Any]:
    """Flat, as ``defaults.steps``, in the order of ``MEANING``."""
    told: dict[str, Any] = {}
    for name in MEANING:
        value = manifest.parts.get(name, getattr(manifest, name))
        if name == "defaults":
            value = asdict(value)
        if isinstance(value, dict):
            told |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            told[name] = str(value) if name in manifest.parts else value
    return told
