"""``python -m training judge-questions``: how soon a taste is known, by who makes the questions.

Four ways to come to one to eight answers of the same new people, whose choices are as noisy in
each. *asked*: the release makes each question of the answers so far, as its server does.
*opposite at random*: its pictures are as far apart, but in any direction. *drawn at random*: they
are drawn with the tastes of nobody in particular, two at a time.
*painted at random*: two pictures of the studio's world, as in all other reports; no server has such
pictures to show. After so many answers the VLM reads them, and a held-out caption is drawn with the
embedding and without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import User
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.pairs import Pair
from ppd_serve.preferences.questions import Questioner
from ppd_serve.release import Release, load_release
from training.data.fingerprint import FROZEN
from training.data.judge import scores
from training.data.pool import png
from training.data.world import CAPTIONS
from training.evaluate.content import load_judge
from training.evaluate.run import POOL_SIZE, one
from training.evaluate.statistics import bootstrap_mean, win_rate
from training.evaluate.studio import (
    Array,
    Panel,
    draw,
    judged,
    panel_of,
    reading_encoder,
    requests,
)

ASKED, OPPOSITE = "asked", "opposite at random"
DRAWN, PAINTED = "drawn at random", "painted at random"
WAYS = (ASKED, OPPOSITE, DRAWN, PAINTED)
_SEEDS = {"dev": 230_000, "test": 430_000, "confirm": 630_000}

# For every user one question: the embeddings to draw its two pictures with, each [N, rows, dim].
Questions = tuple[Array, Array]


class Interview:
    """The panel's people answer; ``pairs`` are theirs so far, in the order of the answers."""

    def __init__(
        self,
        release: Release,
        engine: Engine,
        encoder: Encoder,
        panel: Panel,
        seed: int,
        scale: float | None,
    ) -> None:
        self.release, self.engine, self.encoder, self.panel = release, engine, encoder, panel
        self.scale = scale  # of every picture that is shown
        self.pairs: list[list[Pair]] = [[] for _ in range(len(panel))]
        self.seed, self.choosing = seed, np.random.default_rng(seed)
        self.drawing = np.random.default_rng(seed + 1)
        self.agreed: list[float] = []  # of each round, the share who chose what they like better

    def answer(self, left: Array, right: Array) -> None:
        """Draw everybody's question, all of one prompt, and let them choose."""
        round_ = len(self.agreed)
        prompts = self.release.manifest.example_prompts
        prompt, people = prompts[round_ % len(prompts)], len(self.panel)
        images = draw(
            self.engine,
            [
                self.release.defaults.request(
                    prompt,
                    seed=self.seed + 1000 * round_ + user,
                    users=(User(embedding),),
                    preference_scale=self.scale,
                )
                for side in (left, right)
                for user, embedding in enumerate(side)
            ],
            f"question {round_ + 1}",
        )
        caption = CAPTIONS[[str(c) for c in CAPTIONS].index(prompt)]
        shown = scores(images, [caption] * len(images)).reshape(2, people, 1, -1)
        tastes = self.panel.tastes
        first = tastes.prefers_first(shown[0], shown[1], self.choosing)[:, 0]
        better = tastes.reward(shown[0])[:, 0] > tastes.reward(shown[1])[:, 0]
        self.agreed.append(float((first == better).mean()))
        for k, pairs in enumerate(self.pairs):
            pictures = png(images[k]), png(images[people + k])
            preferred, rejected = pictures if first[k] else pictures[::-1]
            pairs.append(Pair(prompt, preferred, rejected))

    def read(self) -> Array:
        """What the VLM makes of everybody's answers so far: ``[N, rows, dim]``."""
        return np.stack([self.encoder.embed(pairs).embedding for pairs in self.pairs])


def asked(interview: Interview, questioner: Questioner) -> tuple[Questions, float]:
    """The questions that tell each most, and how many bits they promise on average."""

    look = interview.encoder.look
    found = [
        questioner.next([questioner.difference(look(p.preferred), look(p.rejected)) for p in pairs])
        for pairs in interview.pairs
    ]
    questions = np.stack([q.left for q in found]), np.stack([q.right for q in found])
    return questions, float(np.mean([q.bits for q in found]))


def at_random(interview: Interview, shape: tuple[int, ...], *, opposite: bool) -> Questions:
    """Two tastes of nobody in particular: embeddings have unit variance over people."""
    drawn = interview.drawing.standard_normal((2, len(interview.panel), *shape)).astype(np.float32)
    return drawn[0], -drawn[0] if opposite else drawn[1]


class Study:
    """One panel, asked in every way; what was drawn for it is kept in ``out``."""

    def __init__(
        self, release: Release, engine: Engine, panel: Panel, out: Path, seed: int
    ) -> None:
        questioner = release.load_questioner()
        if questioner is None:
            raise ValueError(f"release {release.name} asks no questions: see fit-questions")
        self.release, self.engine, self.panel, self.out = release, engine, panel, out
        self.questioner, self.encoder = questioner, reading_encoder(release)
        self.judge, self.seed = load_judge(), seed
        manifest = release.manifest
        told = (manifest.checksums, manifest.defaults, FROZEN, seed, len(panel), len(panel.pool))
        # Another study, other files.
        self.key = hashlib.sha256(repr(told).encode()).hexdigest()[:12]

    def read_after_each(self, way: str, answers: int) -> dict[str, Array]:
        """Everybody's embedding after 1, 2, … answers: ``[answers, N, rows, dim]``."""
        if way == PAINTED:
            return {"embeddings": np.stack([self._painted(n + 1) for n in range(answers)])}
        interview = Interview(
            self.release, self.engine, self.encoder, self.panel, self.seed, self.questioner.scale
        )
        read, bits = [], []
        for _ in range(answers):
            if way == ASKED:
                questions, promised = asked(interview, self.questioner)
                bits.append(promised)
            else:
                shape = self.questioner.response.shape[:2]
                questions = at_random(interview, shape, opposite=way == OPPOSITE)
            interview.answer(*questions)
            read.append(interview.read())
        return {
            "embeddings": np.stack(read),
            "agreed": np.array(interview.agreed),
            "bits": np.array(bits),
        }

    def _painted(self, pairs: int) -> Array:
        every = range(len(self.panel))
        return np.stack([self.encoder.embed(self.panel.pairs(u, pairs)).embedding for u in every])

    def rewards(self, name: str, embeddings: Array | None) -> Array:
        """What people feel about a held-out caption drawn with their embeddings: ``[N]``."""

        def make() -> dict[str, Array]:
            known = None if embeddings is None else one(embeddings)
            images = draw(self.engine, requests(self.panel, self.release.defaults, known), name)
            return {"reward": judged(self.panel, images, self.judge).reward}

        return self.kept(name, make)["reward"]

    def kept(self, name: str, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        path = self.out / self.key / f"{name}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"draft-{path.name}")
            np.savez(draft, **make())  # type: ignore[arg-type]
            draft.rename(path)
        return dict(np.load(path))


def compare_questions(
    directory: Path,
    out: Path,
    work: Path,
    *,
    split: str,
    users: int,
    answers: int,
    pool_size: int = POOL_SIZE,
) -> dict[str, Any]:
    """Figures of every way after 1, 2, … ``answers`` answers."""
    release, panel = load_release(directory), panel_of(work, split, users, pool_size)
    rows, _ = release.manifest.embedding_shape or (1, 1)
    backbone = release.load_backbone()
    adapter = release.load_adapter(backbone)
    report: dict[str, Any] = {
        "release": f"{release.name} {release.version}", "world": FROZEN, "split": split,
        "users": users, "ways": {},
    }  # fmt: skip
    rewards: dict[str, list[Array]] = {}
    with Engine(backbone, adapter, max_rows=16, embedding_rows=rows) as engine:
        study = Study(release, engine, panel, out, _SEEDS[split])
        base = study.rewards("base", None)
        for way in WAYS:
            name = f"{way}, {answers} answers"
            told = study.kept(name, partial(study.read_after_each, way, answers))
            rewards[way] = [
                study.rewards(f"{way}, {n}", read) for n, read in enumerate(told["embeddings"], 1)
            ]
            report["ways"][way] = {
                "answers": [_figures(reward, base) for reward in rewards[way]],
                "agreed": told["agreed"].tolist() if "agreed" in told else None,
                "bits": told["bits"].tolist() if "bits" in told else None,
            }
    report["asked_minus"] = {
        way: [
            {"asked": few, "other": many}
            | _interval((rewards[ASKED][few - 1] - rewards[way][many - 1]) / base.std())
            for few, many in _compared(answers)
        ]
        for way in WAYS[1:]
    }
    return report


def _compared(answers: int) -> list[tuple[int, int]]:
    """Asked against as many others, and against twice as many."""
    equal = [(n, n) for n in range(1, answers + 1)]
    return equal + [(n, 2 * n) for n in range(1, answers // 2 + 1)]


def _figures(reward: Array, base: Array) -> dict[str, Any]:
    gain = (reward - base) / base.std()
    return {"win_rate": asdict(win_rate(reward, base)), "gain": _interval(gain)}


def _interval(values: Array) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), bootstrap_mean(values), strict=True))


def asking_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    ways = report["ways"]
    lines = [
        "# Asked or random questions",
        "",
        f"Release {report['release']}, world `{report['world']}`, {report['users']} "
        f"{report['split']} users, one held-out caption of each drawn after every answer. How "
        "often the picture is liked better than the base's (95 %), and by how much in the base's "
        "spreads.",
        "",
        f"| answers | {' | '.join(ways)} |",
        f"|---|{'---|' * len(ways)}",
    ]
    for n in range(len(ways[ASKED]["answers"])):
        cells = []
        for way in ways.values():
            rate, gain = way["answers"][n]["win_rate"], way["answers"][n]["gain"]
            cells.append(
                f"{100 * rate['value']:.1f} % ({100 * rate['low']:.1f}–{100 * rate['high']:.1f}), "
                f"{gain['value']:+.2f}"
            )
        lines.append(f"| {n + 1} | {' | '.join(cells)} |")
    lines += ["", "| asked, less as many or more others: gain | " + " | ".join(
        report["asked_minus"]) + " |", "|---|" + "---|" * len(report["asked_minus"])]  # fmt: skip
    for rows in zip(*report["asked_minus"].values(), strict=True):
        cells = [f"{r['value']:+.2f} ({r['low']:+.2f} to {r['high']:+.2f})" for r in rows]
        lines.append(f"| {rows[0]['asked']} asked − {rows[0]['other']} | {' | '.join(cells)} |")
    bits = ", ".join(f"{b:.2f}" for b in ways[ASKED]["bits"])
    lines += ["", f"Bits that the asked questions promised, first to last: {bits}."]
    return "\n".join(lines) + "\n"


def write_asking(report: dict[str, Any], out: Path) -> None:
    """``report.json`` and ``report.md`` in the directory ``out``."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(asking_markdown(report))
