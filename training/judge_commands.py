"""``judge-...`` commands: what a release's pictures, questions and first day are worth."""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from ppd_serve.preferences.pair_encoder import open_picture
from training.blame import blame
from training.data.readings import READ_AT_ONCE
from training.encoder_options import EncoderBits, EncoderDtype
from training.studio_commands import DEFAULT_RELEASE, WORK

if TYPE_CHECKING:
    from training.evaluate.scorers.clip import ClipScorer

judges = typer.Typer()


@judges.command()
def judge_pictures(
    rows: Annotated[
        str, typer.Option(help="Parquet file or directory, or hub id, with Pick-a-Pic's columns.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of report, contact sheet and pictures.")],
    release: Annotated[Path, typer.Option(help="Whose pictures.")] = DEFAULT_RELEASE,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    split: Annotated[
        Literal["dev", "test"], typer.Option(help="People of whom training saw nothing.")
    ] = "dev",
    users: Annotated[int, typer.Option(min=2, help="As many, if there are.")] = 200,
    read: Annotated[
        int, typer.Option(min=1, help="First choices of everybody, all that is told of them.")
    ] = READ_AT_ONCE,
    prompts: Annotated[
        int, typer.Option(min=1, help="Of everybody's later choices, with none that was read.")
    ] = 1,
    scorer: Annotated[
        list[str] | None, typer.Option(help="NAME=PLACE, such as pickscore=DIRECTORY; repeatable.")
    ] = None,
    vlm: Annotated[
        str | None, typer.Option(help="A VLM to ask what each person would like: its place.")
    ] = None,
    vlm_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="That VLM's.")
    ] = "float32",
    vlm_quantisation: Annotated[
        Literal["4bit", "8bit"] | None, typer.Option(help="Likewise.")
    ] = None,
    device: str = "cpu",
    dtype: EncoderDtype = "float32",
    quantisation: EncoderBits = None,
    diffuser_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="The backbone's, as the server's settings have it."),
    ] = "float32",
) -> None:
    """Draw for people whose choices no training saw, with and without their taste, and let
    published scorers and a VLM judge."""
    from training.data.choices import NoRows
    from training.data.pickapic import PickAPic
    from training.evaluate.pictures import How, Judges, judge_release, named_scorers
    from training.evaluate.pictures_report import pictures_markdown, write_pictures_report
    from training.evaluate.scorers import load_scorer
    from training.evaluate.vlm_judge import VlmJudge

    if not scorer and vlm is None:
        raise typer.BadParameter("at least one judge is needed", param_hint="--scorer or --vlm")
    source = PickAPic(rows, revision)
    with blame("--scorer", ValueError):  # what costs least first, and all before a picture is drawn
        named = named_scorers(scorer or [])
    with blame("--rows", NoRows):
        source.check()
    with blame("--scorer", ValueError):
        scorers = {name: load_scorer(name, place, device) for name, place in named.items()}
    asked = None
    if vlm is not None:
        with blame("--vlm", ValueError):
            asked = VlmJudge.load(
                vlm, device=device, dtype=vlm_dtype, quantisation=vlm_quantisation
            )
    report = judge_release(
        release, source, Judges(scorers, asked), out / "pictures",
        split=split, users=users, read=read, prompts=prompts,
        how=How(device, dtype, quantisation, diffuser_dtype),
    )  # fmt: skip
    report["places"] = named | ({"vlm": vlm} if vlm is not None else {})
    write_pictures_report(report, out)
    typer.echo(pictures_markdown(report))


@judges.command()
def judge_style(
    style: Annotated[str, typer.Option(help="Pictures of the style: a pattern, such as 'ink/*'.")],
    pictures: Annotated[
        list[str], typer.Option(help="Pictures to compare with it: a pattern; repeatable.")
    ],
    clip: Annotated[str, typer.Option(help="CLIPModel whose image tower looks: its place.")],
    device: str = "cpu",
) -> None:
    """How near pictures come to a style: Fréchet's distance of CLIP's features (Diffusion-RPO)."""
    from training.evaluate.alignment import aligned
    from training.evaluate.scorers import load_scorer
    from training.evaluate.scorers.clip import ClipScorer

    with blame("--clip", ValueError):
        scorer = load_scorer("clip", clip, device)
    assert isinstance(scorer, ClipScorer)
    wanted = _seen(scorer, style, "--style", least=4)
    for pattern in pictures:
        found = aligned(_seen(scorer, pattern, "--pictures", least=2), wanted)
        typer.echo(
            f"{pattern}: {found.distance:.4f} ({found.low:.4f} to {found.high:.4f}); of the style "
            f"to itself {found.floor:.4f}; {found.count} pictures of each"
        )


def _seen(scorer: ClipScorer, pattern: str, option: str, least: int) -> NDArray[np.float32]:
    """Features of the pattern's pictures, ``[N, dim]``."""
    files = [Path(name) for name in sorted(glob(pattern))]
    if len(files) < least:
        raise typer.BadParameter(
            f"{pattern}: {len(files)} pictures, {least} are needed", param_hint=option
        )
    with blame(option, OSError):  # no picture, says Pillow
        return np.concatenate(
            [scorer.features([open_picture(file.read_bytes())]) for file in track(files)]
        )


@judges.command()
def judge_questions(
    release: Path = DEFAULT_RELEASE,
    work: Path = WORK,
    split: Annotated[Literal["dev", "test", "confirm"], typer.Option()] = "dev",
    users: int = 200,
    answers: Annotated[int, typer.Option(min=1, help="Of everybody.")] = 8,
    out: Annotated[Path, typer.Option(help="Report and what it is resumed from.")] = Path(
        "runs/questions"
    ),
) -> None:
    """Ask new users the release's own questions, or random ones: how soon it knows their taste."""
    from training.evaluate.asking import asking_markdown, compare_questions, write_asking

    report = compare_questions(release, out, work, split=split, users=users, answers=answers)
    write_asking(report, out)
    typer.echo(asking_markdown(report))


@judges.command()
def judge_day_one(
    release: Path = DEFAULT_RELEASE,
    work: Path = WORK,
    split: Annotated[Literal["dev", "test", "confirm"], typer.Option()] = "dev",
    users: int = 200,
    pictures: Annotated[int, typer.Option(help="Drawn to learn how pictures answer.")] = 320,
    out: Annotated[Path, typer.Option(help="Directory of the report.")] = Path("runs/day-one"),
) -> None:
    """Read new users' choices with an image tower alone, as before any training, or with the VLM:
    how much better the VLM knows their taste."""
    from training.evaluate.day_one import day_one_markdown, judge_day_one, write_day_one

    report = judge_day_one(release, split=split, users=users, work=work, pictures=pictures)
    write_day_one(report, out)
    typer.echo(day_one_markdown(report))
