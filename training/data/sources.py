"""Where choices come from, by the words of the command line: a file, the hub, a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from ppd_serve.preferences.quantisation import Quantisation
from ppd_serve.release import load_release
from ppd_serve.storage.values import DEFAULT_PROJECT
from training.data.choice_set import NoChoices
from training.data.choices import Choice, Skipped
from training.data.chunks import ray_here
from training.data.enough import enough
from training.data.live import live_choices
from training.data.live_feedback import Verdict, live_feedback
from training.data.pickapic import PickAPic
from training.data.prepare import prepare
from training.data.readings import READ_AT_ONCE, Split
from training.data.relabel import Scorer, relabel, scored


def choices_of(
    rows: str | None,
    revision: str | None,
    database: str | None,
    blobs: str | None,
    *,
    project: str = DEFAULT_PROJECT,
    scorer: Scorer | None = None,
    weigher: Scorer | None = None,
    least_pairs: int = READ_AT_ONCE,
    most_pairs: int | None = None,
) -> Callable[[Skipped, Split], Iterator[Choice]]:
    """The choices of a split's people, from a file or the hub (``rows``), or else from a server's
    ``project``; a ``scorer`` chooses in their place, a ``weigher`` leaves its ``scores``. Of one
    person ``most_pairs`` at most, and none where less than ``least_pairs`` are left. NoRows for a
    file that is not there or lacks a column."""
    if rows is not None:
        PickAPic(rows, revision).check()

    def told(skipped: Skipped, users: Split) -> Iterator[Choice]:
        if rows is not None:
            return PickAPic(rows, revision).choices(
                skipped, users=users, least_pairs=least_pairs, most_pairs=most_pairs
            )
        assert database is not None and blobs is not None
        return live_choices(
            database, blobs, skipped, project=project, users=users, most_pairs=most_pairs
        )

    def choices(skipped: Skipped, users: Split) -> Iterator[Choice]:
        found = told(skipped, users)
        if scorer is not None:
            found = relabel(found, scorer, skipped)
        if weigher is not None and weigher is not scorer:  # whose scores are there already
            found = scored(found, weigher, skipped)
        return enough(found, least_pairs, skipped)

    return choices


def prepare_splits(
    out: Path,
    release: Path,
    *,
    rows: str | None,
    revision: str | None,
    database: str | None,
    blobs: str | None,
    project: str,
    clip: str | None,
    relabel_by: str | None,
    weigh_by: str | None,
    most_pairs: int | None,
    most_read: int,
    device: str,
    dtype: str,
    quantisation: Quantisation | None,
    workers: int,
) -> Iterator[str]:
    """Write ``out/train``, ``out/dev`` and ``out/test``, no person in two of them; yields a line
    about each."""
    closeness = None
    if clip:
        from training.data.closeness import Clip

        closeness = Clip(clip, device=device)
    scorer = _scorer(relabel_by, device) if relabel_by else None
    weigher = scorer
    if weigh_by != relabel_by:
        weigher = _scorer(weigh_by, device) if weigh_by else None
    source = choices_of(
        rows, revision, database, blobs, project=project, scorer=scorer, weigher=weigher,
        most_pairs=most_pairs,
    )  # fmt: skip
    span: float | None = None
    with ray_here(workers):
        for split in get_args(Split):
            skipped = Skipped()
            judged = Skipped()
            verdicts: Iterator[Verdict] = iter(())
            if database is not None and blobs is not None and scorer is None:
                verdicts = live_feedback(database, blobs, judged, project=project, users=split)
            try:
                found = prepare(
                    source(skipped, split), load_release(release), out / split, device=device,
                    dtype=dtype, quantisation=quantisation, closeness=closeness,
                    workers=workers, most_read=most_read, skipped=skipped, verdicts=verdicts,
                    weigh=weigher is not None, score_span=span,
                )  # fmt: skip
                span = found.about["score_span"]  # of train, so that all splits weigh alike
            except NoChoices as nothing:
                if split == "train":
                    raise
                yield f"{split}: {nothing}"
                continue
            told = f"{split}: {found.users} people, {len(found)} pairs; {skipped.report()}"
            if judged.kept or judged.reasons:
                used = found.about["verdicts"]
                others = judged.kept - used + judged.reasons.total()
                told += f"; {used:,} likes and dislikes, {others:,} skipped"
            yield told


def _scorer(by: str, device: str) -> Scorer:
    """The scorer in words: NAME=PLACE."""
    from training.evaluate.scorers import load_scorer

    name, _, place = by.partition("=")
    return load_scorer(name, place, device=device)
