"""What a checkpoint was trained with: the recipe, the base and the choices.

A run goes on from its checkpoint only with the same ones, because its report names them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppd_serve.release import Release
from training.data.choice_set import ChoiceSet
from training.recipes import Recipe

# How a step fits into memory; it may be another on the machine that goes on.
_FREE = {"micro_batch", "gradient_checkpointing"}
_ROWS = 64  # of an array of floats, which may be larger than memory


def lineage(recipe: Recipe, release: Release, choices: ChoiceSet) -> dict[str, Any]:
    """As JSON would give it back. The number of processes, the device and all places are left out:
    a run may go on elsewhere."""
    return {
        **recipe.model_dump(mode="json", exclude=_FREE),
        "release": f"{release.name} {release.version}, base {base_of(release)}",
        "data": f"{len(choices)} pairs of {choices.users} people, {_choices(choices)}",
    }


def base_of(release: Release) -> str:
    """Of two releases alike only if latents and text states of one are the other's."""
    source = release.manifest.backbone
    files = release.manifest.checksums.items()
    own = {} if source.hub_id else {k: v for k, v in files if k.startswith(f"{source.path}/")}
    about = json.dumps([source.model_dump(mode="json"), own], sort_keys=True)
    return hashlib.sha256(about.encode()).hexdigest()[:12]


def _choices(choices: ChoiceSet) -> str:
    """Who chose what, whole; of pictures, texts and readings a few rows from all over."""
    digest = hashlib.sha256()
    for name, array in _arrays(choices):
        rows: NDArray[Any] = array
        if array.dtype.kind == "f" and len(array) > _ROWS:
            rows = array[np.linspace(0, len(array) - 1, _ROWS).astype(np.int64)]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()[:12]


def _arrays(choices: ChoiceSet) -> Iterator[tuple[str, NDArray[Any]]]:
    for field in fields(choices):
        value = getattr(choices, field.name)
        if isinstance(value, np.ndarray):
            yield field.name, value
    yield from sorted(choices.text.items())
