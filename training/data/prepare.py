"""From choices to a choice set: latents, text states and readings, computed once and kept.

Pictures and prompts pass through the release's backbone as they stream by; people's chunks of four
pairs go through its VLM as a Ray Data job, on as many workers as there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.progress import track

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.preferences.pair_encoder import open_picture
from ppd_serve.preferences.quantisation import Quantisation
from ppd_serve.release import Release
from training.data.choice_set import ABOUT, ChoiceSet, NoChoices
from training.data.choices import Choice, Skipped
from training.data.chunks import Chunks, read
from training.data.closeness import unit
from training.data.live_feedback import Verdict
from training.data.readings import MOST_READ
from training.data.served import refuse_other_space
from training.data.weigh import pair_weights, score_range
from training.lineage import base_of

Array = NDArray[np.float32]
_AT_ONCE = 16


class Closeness(Protocol):
    """Features that say how near prompts and pictures are (``closeness.Clip``)."""

    def prompts(self, texts: Sequence[str]) -> Array: ...
    def pictures(self, pictures: Sequence[Image.Image]) -> Array: ...


def prepare(
    choices: Iterable[Choice],
    release: Release,
    out: Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quantisation: Quantisation | None = None,
    closeness: Closeness | None = None,
    workers: int = 1,
    most_read: int = MOST_READ,
    skipped: Skipped | None = None,
    verdicts: Iterable[Verdict] = (),
    weigh: bool = False,
    score_span: float | None = None,
) -> ChoiceSet:
    """Write the choice set to ``out`` and load it. NoChoices if there was not one choice.
    ``verdicts``: what people said of single pictures; only those whose choices are here count, for
    of others nothing is read. ``most_read``: of one person's choices, that the encoder reads; all
    are learnt from. ``dtype`` and ``quantisation``: the encoder's, as the release's server has
    them; ReleaseError if they make another embedding space. ``weigh``: by the choices' ``scores``,
    measured on ``score_span`` (None: on their own range).

    Without ``closeness``, nearness (RPO) is measured in the backbone's own text states and latents.
    """
    refuse_other_space(release, dtype, quantisation)
    out.mkdir(parents=True, exist_ok=True)
    (out / ABOUT).unlink(missing_ok=True)  # until it is written again, no set is here
    backbone = release.load_backbone(device)
    prepared = _Streamed(backbone, release.defaults.sizes[0], out, closeness, most_read)
    for choice in track(choices, description="pictures"):
        prepared.add(choice)
    for verdict in verdicts:
        if verdict.user in prepared.users:
            prepared.judge(verdict)
    prepared.finish()
    if not prepared.user:
        reasons = f"; {skipped.report()}" if skipped else ""
        raise NoChoices(f"not one choice to learn from{reasons}")
    weight = None
    if weigh:
        score_span = score_span or score_range(prepared.scores)
        weight = pair_weights(prepared.scores, score_span)
    how = {"device": device, "dtype": dtype, "quantisation": quantisation}
    readings = read(prepared.chunks, len(prepared.user), release, how, workers)
    prepared.chunks.remove()
    prompts = list(prepared.prompts)
    text = _text(backbone, [*prompts, None], out)
    found = ChoiceSet(
        user=np.array(prepared.user), prompt=np.array(prepared.prompt),
        preferred=np.array(prepared.preferred), rejected=np.array(prepared.rejected),
        read_in=readings.read_in, read_for=readings.read_for, latents=prepared.latents(),
        text=text, readings=readings.embedding, reading_user=readings.user,
        reading_pairs=readings.pairs,
        prompt_features=closeness.prompts(prompts) if closeness else None,
        picture_features=unit(np.concatenate(prepared.features)),
        weight=weight,
        judged=np.array(prepared.judged) if prepared.judged else None,
        about={
            "release": f"{release.name} {release.version}",
            "embedding_space": release.embedding_space, "base": base_of(release),
            "people": len(prepared.users), "pairs": len(prepared.user),
            "pictures": len(prepared.pictures), "readings": len(readings.user),
            "verdicts": len(prepared.judged),
            "score_span": score_span,
            "skipped": skipped.report() if skipped else "",
        },
    )  # fmt: skip
    found.save(out)
    return ChoiceSet.load(out)


class _Streamed:
    """Indices and latents of the choices so far; chunks of them wait on disk for the encoder."""

    def __init__(
        self,
        backbone: Backbone,
        size: tuple[int, int],
        out: Path,
        closeness: Closeness | None,
        most_read: int,
    ) -> None:
        self.backbone, self.size, self.out, self.closeness = backbone, size, out, closeness
        self.users: dict[str, int] = {}
        self.prompts: dict[str, int] = {}
        self.pictures: dict[str, int] = {}
        self.user: list[int] = []
        self.prompt: list[int] = []
        self.preferred: list[int] = []
        self.rejected: list[int] = []
        self.judged: list[tuple[int, int, int, bool]] = []
        self.scores: list[tuple[float, float]] = []
        self.features: list[Array] = []
        self.shape = (0, *backbone.latent_shape(*size))
        self._raw = (out / "latents.raw").open("wb")
        self._waiting: list[Image.Image] = []
        self.chunks = Chunks(out, most_read)

    def add(self, choice: Choice) -> None:
        user = self.users.setdefault(choice.user, len(self.users))
        self.chunks.add(user, len(self.user), choice)
        self.user.append(user)
        self.prompt.append(self.prompts.setdefault(choice.prompt, len(self.prompts)))
        self.preferred.append(self._picture(choice.preferred_id, choice.preferred))
        self.rejected.append(self._picture(choice.rejected_id, choice.rejected))
        if choice.scores is not None:
            self.scores.append(choice.scores)

    def judge(self, verdict: Verdict) -> None:
        user = self.users.setdefault(verdict.user, len(self.users))
        prompt = self.prompts.setdefault(verdict.prompt, len(self.prompts))
        picture = self._picture(verdict.picture_id, verdict.picture)
        self.judged.append((user, prompt, picture, verdict.liked))

    def finish(self) -> None:
        self._encode()
        self._raw.close()
        self.chunks.finish()

    def latents(self) -> Array:
        return _mapped(self.out / "latents.raw", (len(self.pictures), *self.shape[1:]))

    def _picture(self, name: str, data: bytes) -> int:
        if name not in self.pictures:
            self.pictures[name] = len(self.pictures)
            fitted = ImageOps.fit(open_picture(data), self.size, Image.Resampling.LANCZOS)
            self._waiting.append(fitted)
            if len(self._waiting) == _AT_ONCE:
                self._encode()
        return self.pictures[name]

    @torch.no_grad()
    def _encode(self) -> None:
        if not self._waiting:
            return
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in self._waiting]))
        latents = self.backbone.to_latents(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        found = np.ascontiguousarray(latents.float().cpu().numpy())
        self._raw.write(found.tobytes())
        if self.closeness:
            self.features.append(self.closeness.pictures(self._waiting))
        else:
            pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(found), 4)
            self.features.append(pooled.flatten(1).numpy())
        self._waiting = []


def _text(backbone: Backbone, prompts: list[str | None], out: Path) -> dict[str, Array]:
    """Float32 ``[prompts, ...]``, on disk as they are made: of SDXL, hundreds of prompts fill a GPU
    and tens of thousands the memory."""
    raw: dict[str, BinaryIO] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    with ExitStack() as files:
        for prompt in track(prompts, description="prompts"):
            for key, state in backbone.encode(prompt).items():
                if key not in raw:
                    raw[key] = files.enter_context((out / f"text-{key}.raw").open("wb"))
                shapes[key] = len(prompts), *state.shape[1:]
                raw[key].write(state.float().cpu().numpy().tobytes())
    return {key: _mapped(out / f"text-{key}.raw", shape) for key, shape in shapes.items()}


def _mapped(raw: Path, shape: tuple[int, ...]) -> Array:
    """The file's numbers; it is gone as soon as nobody looks at them."""
    found = np.memmap(raw, np.float32, "r", shape=shape)
    raw.unlink()
    return found
