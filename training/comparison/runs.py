"""One run of a comparison: train by the command's own job, draw a panel, keep what the judges say.

Both are kept in the run's directory, so that a comparison that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release import Release, load_release
from training.contact_sheet import Row, grid, stack
from training.data.fingerprint import FROZEN
from training.evaluate.content import ContentJudge
from training.evaluate.studio import Array, Outcome, Panel, draw, judged, requests
from training.run import Job, train
from training.stage import OtherRun

SCALE = 1.0  # the branch as it was trained; a release chooses its own on dev users
_SHOWN = 12  # pictures kept to be looked at
_ROWS = 8  # of a contact sheet


class Interrupted(Exception):
    """A run was stopped and saved; the same comparison goes on from there."""


def begin(out: Path, what: str, release: Release, **panel: Any) -> None:
    """Keep in ``out`` what it is drawn with and for whom, or raise OtherRun if it was begun for
    anything else."""
    kept, manifest = out / "about.json", release.manifest
    parts = repr((sorted(manifest.checksums.items()), manifest.defaults))
    about = {
        "what": what, "release": f"{release.name} {release.version}",
        "parts": hashlib.sha256(parts.encode()).hexdigest()[:12], "world": FROZEN, **panel,
    }  # fmt: skip
    if kept.exists():
        there = json.loads(kept.read_text())
        if other := [name for name in about | there if about.get(name) != there.get(name)]:
            raise OtherRun(f"{out}: begun with another {' and '.join(other)}; take another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(about, indent=1) + "\n")


def trained(job: Job) -> Path:
    """The run's user branch, trained unless it is there already.

    Raises Interrupted, or OtherRun if what is there was trained otherwise or from another release.
    """
    path, told = job.out / "ip_adapter.safetensors", job.out / "report.json"
    if not told.exists():
        if not train(job):
            raise Interrupted(job.out.name)
        return path
    there, release = json.loads(told.read_text()), load_release(job.release)
    wanted = {
        "recipe": job.recipe.model_dump(mode="json"),
        "release": f"{release.name} {release.version}",
    }
    if other := [name for name, value in wanted.items() if there[name] != value]:
        raise OtherRun(f"{job.out}: trained with another {' and '.join(other)}")
    return path


def outcome(
    name: str,
    directory: Path,
    release: Release,
    panel: Panel,
    judge: ContentJudge,
    *,
    adapter: Path | None = None,
    users: Sequence[Sequence[tuple[Array, float]]] | None = None,
    shown: int = _SHOWN,
) -> Outcome:
    """The panel as the judges see it. Kept; of its pictures only the first ``shown``."""
    kept = directory / f"{name}.npz"
    if not kept.exists():
        backbone = release.load_backbone()
        branch = UserAdapter.load(adapter, backbone.denoiser) if adapter else None
        engine = Engine(
            backbone,
            branch,
            max_rows=16,
            embedding_rows=(release.manifest.embedding_shape or (1,))[0],
        ).start()
        wanted = requests(panel, release.defaults, users, preference_scale=SCALE)
        try:
            found = judged(panel, draw(engine, wanted, f"{directory.name} {name}"), judge)
        finally:
            engine.stop()
        directory.mkdir(parents=True, exist_ok=True)
        draft = directory / f"draft-{name}.npz"
        np.savez(draft, images=found.images[:shown], scores=found.scores, reward=found.reward,
                 content=found.content)  # fmt: skip
        draft.rename(kept)
    stored = np.load(kept)
    return Outcome(*(stored[key] for key in ("images", "scores", "reward", "content")))


def write_sheet(out: Path, drawn: Mapping[str, Outcome], labels: Sequence[str]) -> None:
    """``out/sheet.png``: the first pictures of each, one column beside another."""
    rows = [
        Row(label, [Image.fromarray(found.images[k]) for found in drawn.values()])
        for k, label in enumerate(labels[:_ROWS])
    ]
    stack([grid(list(drawn), rows, side=128)]).save(out / "sheet.png")
