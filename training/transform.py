"""Fits the between-user transform of a release's VLM on people's choices, and ships it with it.

Of everybody, several readings of other choices each: what differs between people is kept, what
differs between two readings of one person is not (``ppd_serve.preferences.transform``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.embedding_space import embedding_space
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.model_files import model_directory
from ppd_serve.preferences.pair_encoder import Array
from ppd_serve.preferences.pairs import Pair
from ppd_serve.preferences.transform import BetweenUserTransform, fit_transform
from ppd_serve.release import Release, load_release, write_release
from training.data.choice_set import NoChoices
from training.data.choices import Choice
from training.data.readings import READ_AT_ONCE
from training.evaluate.identification import identification

FILE = "transform.safetensors"
_AT_ONCE = 8


def encoder_to_fit(release: Release, **how: Any) -> Encoder:
    """The release's VLM without a transform. ``how``: device, dtype, quantisation.

    ReleaseError where a new transform would leave behind what was trained on the embeddings of
    another, or has no place to be put.
    """
    named = release.manifest
    if named.adapter is not None or named.questions is not None:
        raise ReleaseError(
            f"release {release.name} has an adapter or questions, made for the embeddings that it "
            "has: fit the transform of a release without them"
        )
    if named.encoder is None or named.encoder.hub_id:
        raise ReleaseError(
            f"release {release.name} has no encoder directory of its own: one with an encoder.json "
            'that names a "model" of the hub will do'
        )
    assert release.encoder_path is not None
    encoder = Encoder.load(release.encoder_path, unfitted=True, **how)
    if encoder.config.position == "before_profile":  # what is written after it changes nothing
        encoder.config = encoder.config.model_copy(update={"profile": "skip"})
    return encoder


def states_of_people(encoder: Encoder, choices: Iterable[Choice], readings: int) -> Array:
    """``[people, readings, rows, hidden]``: of everybody who chose often enough, the first
    ``readings`` times four choices. NoChoices if nobody did."""
    states: dict[str, list[Array]] = defaultdict(list)
    for users, chunks in _batches(choices, readings):
        for user, read in zip(users, encoder.embed_all(chunks, at_once=_AT_ONCE), strict=True):
            states[user].append(read.embedding)
    enough = [np.stack(own) for own in states.values() if len(own) == readings]
    if not enough:
        raise NoChoices(f"nobody made {readings * READ_AT_ONCE} choices")
    return np.stack(enough)


def ship(directory: Path, encoder: Encoder, transform: BetweenUserTransform, **how: Any) -> Release:
    """Put it into a release directory, and the name and shape of its embeddings with it. ``how``:
    dtype and quantisation, which the server's settings must have too."""
    release = load_release(directory)
    assert release.encoder_path is not None
    path = release.encoder_path
    transform.save(path / FILE)
    rows, _, dim = transform.matrix.shape
    weights = model_directory(path, encoder.config.model)
    named = {
        "embedding_space": embedding_space(path, weights=weights, **how),
        "embedding_shape": (rows, dim),
    }
    return write_release(directory, release.manifest.model_copy(update=named))


def fit(states: Array, directions: int) -> BetweenUserTransform:
    """ValueError for more directions than so many people, or so wide states, can have."""
    people, readings, _, hidden = states.shape
    if directions > (most := min(people - 1, hidden)):
        raise ValueError(f"{people} people tell at most {most} directions apart, not {directions}")
    if readings < 2:
        raise ValueError("one reading of everybody does not say what readings differ by")
    return fit_transform(states, directions)


def told_apart(
    encoder: Encoder, transform: BetweenUserTransform, choices: Iterable[Choice], readings: int
) -> str:
    """A line on people it was not fitted on: how often one reading finds the others of theirs."""
    try:
        found = identification(transform(states_of_people(encoder, choices, readings)))
    except ValueError:
        return "too few held-out people to say how well it tells people apart"
    best = found.top[1]
    return (
        f"{found.users} held-out people: found again by another reading, first of all, "
        f"{100 * best.value:.0f} % (by luck {100 * found.chance[1]:.1f} %)"
    )


def _batches(
    choices: Iterable[Choice], readings: int
) -> Iterator[tuple[Sequence[str], Sequence[Sequence[Pair]]]]:
    """Fours of one person's choices as they become full, several at once."""
    waiting: dict[str, list[Pair]] = defaultdict(list)
    taken: dict[str, int] = defaultdict(int)
    full: list[tuple[str, list[Pair]]] = []
    for choice in track(choices, description="reading choices"):
        if taken[choice.user] == readings:
            continue
        waiting[choice.user].append(choice.pair)
        if len(waiting[choice.user]) == READ_AT_ONCE:
            taken[choice.user] += 1
            full.append((choice.user, waiting.pop(choice.user)))
        if len(full) == _AT_ONCE:
            yield [user for user, _ in full], [pairs for _, pairs in full]
            full = []
    if full:
        yield [user for user, _ in full], [pairs for _, pairs in full]
