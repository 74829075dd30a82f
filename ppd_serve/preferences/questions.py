"""Which question to ask somebody next: two pictures of one prompt, drawn apart in the direction of
taste that is least known and that pictures can show.

The choice model believes a person's taste to be N(m, S) among picture features. ``response`` says
how those features move with the embedding that a picture is drawn with. So the answer to "drawn
with u, or with −u?" is foreseen for any u, and the u whose answer tells most bits is asked
(Houlsby et al. 2011, arXiv 1112.5745). A pair is worth as much whoever drew its pictures: what
people upload counts by its features, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.choice_model import Array, ChoiceModel, Taste

_DRAWN_DIRECTIONS = 2048
_SAME_COSINE = 0.5  # directions nearer to each other ask much the same


@dataclass(frozen=True)
class Question:
    """Draw one picture with ``left``, one with ``right`` (float32 ``[rows, dim]``), of one prompt
    and seed, at the preference ``scale`` (None: the release's); the answer is expected to tell
    ``bits``."""

    left: Array
    right: Array
    bits: float
    scale: float | None = None


@dataclass(frozen=True)
class Questioner:
    """``response`` ``[rows, dim, d]``: how far each of the d features of a picture moves per unit
    of embedding, for embeddings of the usual length, √(rows·dim), at the preference ``scale`` that
    questions are drawn with. (Pictures that differ more are easier to choose from, so it may be
    larger than the release's own.)"""

    choices: ChoiceModel
    response: Array
    scale: float | None = None

    def difference(self, preferred: Array, rejected: Array) -> Array:
        """φ(preferred) − φ(rejected) of pictures' states, ``[..., hidden]`` -> ``[..., d]``."""
        return self.choices.features(preferred) - self.choices.features(rejected)

    def next(self, differences: Array | list[Array], skip: int = 0) -> Question:
        """The question for somebody who has made choices, φ(preferred) − φ(rejected): ``[n, d]``.
        The best ``skip`` questions, each clearly another one, have taught nothing: the next best.

        Directions are looked for where the belief, seen through the response, is wide: its main
        axes, and differences of tastes drawn from it. The same choices make the same question.
        """
        differences = np.reshape(differences, (-1, len(self.choices.mean)))
        taste = self.choices.fit(differences) if len(differences) else self.choices.prior
        response = self.response.reshape(-1, self.response.shape[-1])  # [rows·dim, d]
        directions = _directions(taste, response)
        bits = taste.information(2 * directions @ response)
        best = _best(directions, bits, skip)
        left = directions[best].reshape(self.response.shape[:2]).astype(np.float32)
        return Question(left, -left, float(bits[best]), self.scale)

    def save(self, path: Path) -> None:
        tensors = {
            name: getattr(self.choices, name) for name in ("projection", "mean", "covariance")
        }
        tensors["response"] = self.response
        if self.scale is not None:
            tensors["scale"] = np.array(self.scale)
        save_file({n: np.ascontiguousarray(t, np.float64) for n, t in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Questioner:
        """Raises ReleaseError if the file holds none."""
        try:
            tensors = load_file(path)
            response, scale = tensors["response"], tensors.get("scale")
        except (OSError, SafetensorError, KeyError) as error:
            raise ReleaseError(f"questions: {error!r}") from error
        return cls(ChoiceModel.load(path), response, None if scale is None else scale.item())


def _best(directions: Array, bits: Array, skip: int) -> int:
    """Which of ``directions`` ``[k, rows·dim]`` tells most and is like none of the ``skip`` found
    in the same way before it; when there is no other, those take turns."""
    found: list[int] = []
    left = np.argsort(-bits, kind="stable")
    while len(left) and len(found) <= skip:
        best, left = left[0], left[1:]
        found.append(int(best))
        cosines = directions @ directions[best] / directions.shape[1]
        left = left[np.abs(cosines[left]) <= _SAME_COSINE]
    return found[skip % len(found)]


def _directions(taste: Taste, response: Array) -> Array:
    """Embeddings ``[k, rows·dim]`` of the usual length."""
    value, axis = np.linalg.eigh(taste.covariance)
    root = axis * np.sqrt(value.clip(0))
    drawn = np.random.default_rng(0).standard_normal((_DRAWN_DIRECTIONS, len(value)))
    wanted = np.concatenate([np.eye(len(value)), drawn]) @ root.T @ response.T
    length = np.linalg.norm(wanted, axis=1, keepdims=True)
    return np.sqrt(len(response)) * wanted / np.maximum(length, 1e-12)
