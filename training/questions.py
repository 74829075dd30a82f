"""Fits what a server needs to ask good questions (``ppd_serve.preferences.questions``), of people's
choices and of the release's own pictures. No axes with names, no hidden tastes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.picture import encode_picture
from ppd_serve.diffusion.request import User
from ppd_serve.manifest import Source
from ppd_serve.preferences.choice_model import Array, ChoiceModel
from ppd_serve.preferences.pair_encoder import PairEncoder
from ppd_serve.preferences.questions import Questioner
from ppd_serve.release import Release, load_release, write_release
from training.choice_prior import fit_choice_model
from training.data.choice_set import NoChoices
from training.data.choices import Choice

FILE = "questions.safetensors"
# The studio's people tell themselves apart by 8 features as well as by 16, dev people's held-out
# choices say; fewer are learned from fewer people.
DIRECTIONS = 8
_AT_ONCE = 32
_SEED = 900_000_000


def states_of_choices(
    encoder: PairEncoder, choices: Iterable[Choice], per_user: int
) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """The first ``per_user`` choices of everybody who made as many: states of their pictures
    ``[pictures, hidden]``; preferred and rejected as indices into them ``[users, per_user]``.

    Raises NoChoices if nobody made as many.
    """
    number: dict[str, int] = {}
    states: list[Array] = []

    def index_of(picture_id: str, picture: bytes) -> int:
        if picture_id not in number:
            number[picture_id] = len(states)
            states.append(encoder.look(picture))
        return number[picture_id]

    made: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for choice in track(choices, description="looking at pictures"):
        if len(made[choice.user]) < per_user:
            pair = (
                index_of(choice.preferred_id, choice.preferred),
                index_of(choice.rejected_id, choice.rejected),
            )
            made[choice.user].append(pair)
    enough = np.array([pairs for pairs in made.values() if len(pairs) == per_user], np.int64)
    if not len(enough):
        raise NoChoices(f"nobody made {per_user} choices")
    return np.stack(states), enough[..., 0], enough[..., 1]


def fit_questioner(
    release: Release,
    encoder: PairEncoder,
    states: Array,
    preferred: NDArray[np.int64],
    rejected: NDArray[np.int64],
    *,
    pictures: int,
    scale: float | None = None,
    device: str = "cpu",
) -> Questioner:
    """Of choices as ``states_of_choices`` returns them, and ``pictures`` drawn with a taste, at the
    preference ``scale`` (None: the release's) that questions shall be drawn with."""
    model = fit_choice_model(states, preferred, rejected, DIRECTIONS)
    response = measure_response(release, encoder, model, pictures, scale, device)
    return Questioner(model, response, scale)


def measure_response(
    release: Release,
    encoder: PairEncoder,
    model: ChoiceModel,
    pictures: int,
    scale: float | None,
    device: str,
) -> Array:
    """Least squares of what pictures drawn with random embeddings differ by from the base's, on
    the embeddings: ``[rows, dim, d]``. Prompts are the release's examples."""
    shape = release.manifest.embedding_shape or (1, 1)
    size = shape[0] * shape[1]
    if pictures < 2 * size:
        raise ValueError(f"{pictures} pictures cannot tell {size} directions apart")
    drawn = np.random.default_rng(_SEED).standard_normal((pictures, size))
    embeddings = np.sqrt(size) * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    prompts, backbone = release.manifest.example_prompts or [""], release.load_backbone(device)
    moved = []
    with Engine(
        backbone, release.load_adapter(backbone), embedding_rows=shape[0], max_rows=_AT_ONCE
    ) as engine:
        for start in track(range(0, pictures, _AT_ONCE // 2), description="measuring response"):
            wanted = [
                release.defaults.request(
                    prompts[k % len(prompts)], seed=_SEED + k, users=users, preference_scale=scale
                )
                for k in range(start, min(start + _AT_ONCE // 2, pictures))
                for users in ((User(embeddings[k].reshape(shape).astype(np.float32)),), ())
            ]
            seen = [
                encoder.look(encode_picture(ticket.result().pixels))
                for ticket in engine.submit_all(wanted)
            ]
            features = model.features(np.stack(seen))
            moved.append(features[::2] - features[1::2])
    response, *_ = np.linalg.lstsq(embeddings, np.concatenate(moved), rcond=None)
    return response.reshape(*shape, -1)


def ship(directory: Path, questioner: Questioner) -> Release:
    """Put it into a release directory: the part, and its line and checksum in ``release.json``."""
    questioner.save(directory / FILE)
    manifest = load_release(directory).manifest
    return write_release(directory, manifest.model_copy(update={"questions": Source(path=FILE)}))
