"""``python -m training``: rows, prepare, train, evaluate, choices, judge-..., bootstrap, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ppd_serve.errors import ReleaseError
from training.blame import blame
from training.data.readings import MOST_READ, READ_AT_ONCE
from training.encoder_options import EncoderBits, EncoderDtype
from training.fit_commands import fits, one_source
from training.judge_commands import judges
from training.studio_commands import DEFAULT_RELEASE, TO_BE_CONTINUED, WORK, studio

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(studio)
app.add_typer(judges)
app.add_typer(fits)


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    rows: Annotated[
        str | None,
        typer.Option(help="Parquet file or directory, or hub id, with Pick-a-Pic v2's columns."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    database: Annotated[str | None, typer.Option(help="A server's database URL instead.")] = None,
    blobs: Annotated[str | None, typer.Option(help="And where it keeps its pictures.")] = None,
    project: Annotated[str, typer.Option(help="Of a database: its keys' project.")] = "default",
    release: Path = DEFAULT_RELEASE,
    clip: Annotated[
        str | None, typer.Option(help="CLIPModel whose space says what is near (RPO).")
    ] = None,
    relabel_by: Annotated[
        str | None, typer.Option(help="Let a scorer choose instead: NAME=PLACE.")
    ] = None,
    weigh_by: Annotated[
        str | None,
        typer.Option(help="Let a scorer say how much each pair counts (SmPO): NAME=PLACE."),
    ] = None,
    most_pairs: Annotated[
        int | None, typer.Option(min=READ_AT_ONCE, help="Of one person; all, if not given.")
    ] = None,
    most_read: Annotated[
        int, typer.Option(min=READ_AT_ONCE, help="Of one person's, that the VLM reads.")
    ] = MOST_READ,
    device: str = "cpu",
    dtype: EncoderDtype = "float32",
    quantisation: EncoderBits = None,
    workers: Annotated[int, typer.Option(help="Processes that read with the VLM.")] = 1,
) -> None:
    """Compute once what training needs of a file of choices, or of a server's choices and likes:
    latents, text states, readings."""
    from training.data.choice_set import NoChoices
    from training.data.choices import NoRows
    from training.data.sources import prepare_splits

    one_source(rows, database, blobs)
    source = "--rows" if rows else "--database"
    with blame(source, NoChoices, NoRows), blame("--release", ReleaseError):
        for line in prepare_splits(
            out, release, rows=rows, revision=revision, database=database, blobs=blobs,
            project=project, clip=clip, relabel_by=relabel_by, weigh_by=weigh_by,
            most_pairs=most_pairs, most_read=most_read, device=device, dtype=dtype,
            quantisation=quantisation, workers=workers,
        ):  # fmt: skip
            typer.echo(line)


@app.command()
def train(
    objective: Annotated[Literal["sft", "dpo", "kto", "rpo"], typer.Option()],
    conditioning: Annotated[Literal["none", "user"], typer.Option(help="PPD is dpo with user.")],
    out: Annotated[Path, typer.Option(help="Checkpoints, logs, report; resumed from.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="The constants, see training/recipes.py; studio-ppd for `studio`."),
    ] = None,
    data: Annotated[str, typer.Option(help="What `prepare` wrote, or: studio")] = "studio",
    release: Annotated[Path, typer.Option(help="Whose base and encoder.")] = DEFAULT_RELEASE,
    work: Path = WORK,
    steps: int | None = None,
    batch: int | None = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Of these, in one forward; changes memory alone.")
    ] = None,
    seed: int | None = None,
    bf16: bool | None = None,
    weights: Annotated[
        Literal["adapter", "lora", "full"] | None,
        typer.Option(help="What is trained; with users, lora and full beside the user branch."),
    ] = None,
    utility: Annotated[
        Literal["kahneman_tversky", "loss_averse", "risk_seeking"] | None,
        typer.Option(help="Of kto."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other constant of the recipe: NAME=VALUE.", metavar="TEXT"),
    ] = None,
    device: str = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="Run as a Ray Train job of so many processes.")
    ] = None,
) -> None:
    """Fine-tune on choices, with users or without. Call it again to go on after an interruption.

    Under ``torchrun`` or ``accelerate launch`` the same command is one of several processes.
    """
    from pydantic import ValidationError

    from training.data.choice_set import NoChoices, is_prepared
    from training.recipes import recipe as named
    from training.run import STUDIO, Job, train_on_ray
    from training.run import train as run
    from training.stage import OtherRun

    if data != STUDIO and not is_prepared(Path(data) / "train"):
        raise typer.BadParameter(f"{data}: `prepare` has written nothing here", param_hint="--data")

    chosen = dict(_named_value(one) for one in change or ())
    chosen |= {
        "steps": steps, "batch": batch, "micro_batch": micro_batch, "seed": seed, "bf16": bf16,
        "weights": weights, "utility": utility,
    }  # fmt: skip
    chosen = {name: value for name, value in chosen.items() if value is not None}
    try:
        how = named(recipe or _own_recipe(release), objective, conditioning, **chosen)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "recipe"
        raise typer.BadParameter(f"{where}: {first['msg']}") from None
    except KeyError as unknown:
        raise typer.BadParameter(str(unknown.args[0]), param_hint="--recipe") from None
    job = Job(recipe=how, data=data, release=release, out=out, work=work, device=device)
    with blame("--out", OtherRun), blame("--data", NoChoices), blame("--release", ReleaseError):
        finished = train_on_ray(job, workers) if workers else run(job)
    if not finished:
        typer.echo("interrupted and saved: call again")
        raise typer.Exit(TO_BE_CONTINUED)
    if (out / "report.json").exists():
        typer.echo((out / "report.json").read_text())


@app.command()
def evaluate(
    release: Path = DEFAULT_RELEASE,
    out: Path = Path("runs/report"),
    work: Path = WORK,
    split: Annotated[Literal["dev", "test", "confirm"], typer.Option()] = "test",
    users: int = 1000,
    side_users: Annotated[int, typer.Option(help="For controls, scales, other counts.")] = 300,
    adherence_pictures: Annotated[
        int, typer.Option(help="Of base and taste each, for what taste costs in content.")
    ] = 0,
    interpolation_pairs: Annotated[
        int, typer.Option(help="Pairs of users to draw between, 80 pictures each.")
    ] = 20,
    against: Annotated[
        Path | None, typer.Option(help="Another release, to draw for the same people.")
    ] = None,
) -> None:
    """Judge a release on new users and held-out captions; JSON, Markdown and a contact sheet."""
    from training.evaluate.report import markdown, write_report
    from training.evaluate.run import evaluate as judge

    with blame("--release or --against", ReleaseError):
        report, outcomes, panel = judge(
            release, split=split, users=users, side_users=side_users, work=work,
            adherence_pictures=adherence_pictures, interpolation_pairs=interpolation_pairs,
            against=against,
        )  # fmt: skip
    write_report(report, outcomes, panel, out)
    typer.echo(markdown(report))


@app.command()
def tune(
    release: Path = DEFAULT_RELEASE,
    work: Path = WORK,
    users: int = 200,
    scale: Annotated[list[float] | None, typer.Option(help="One to try; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also keep the figures, as JSON.")] = None,
) -> None:
    """Try preference scales on dev users; a release's default is chosen by this table."""
    from training.evaluate.report import scales_table
    from training.evaluate.run import SCALES, sweep_scales

    found = sweep_scales(release, users=users, work=work, scales=tuple(scale or SCALES))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    typer.echo(scales_table(found))


@app.command()
def choices(
    release: Path = DEFAULT_RELEASE,
    work: Path = WORK,
    split: Annotated[Literal["dev", "test", "confirm"], typer.Option()] = "dev",
    users: int = 500,
    out: Annotated[Path, typer.Option(help="Directory for choices.json and choices.md.")] = Path(
        "runs/choices"
    ),
) -> None:
    """Ask new users twenty more questions: what the VLM, a choice model and Bayes' rule foresee."""
    from ppd_serve.release import load_release
    from training.budget import Budget
    from training.data.pool import load_pool
    from training.evaluate.choices import choices_markdown, measure_choices, write_choices
    from training.evaluate.run import POOL_SIZE

    encoder = load_release(release).load_vlm()
    seen = load_pool(work / "pool", "train", Budget().pool)
    held_out = load_pool(work / "pool", "dev" if split == "dev" else "test", POOL_SIZE)
    report = measure_choices(encoder, seen, held_out, split, users)
    write_choices(report, out)
    typer.echo(choices_markdown(report))


def _own_recipe(release: Path) -> str:
    """Constants belong to a model: those of the studio's would not do for SDXL."""
    from ppd_serve.release import load_release

    with blame("--release", ReleaseError):
        name = load_release(release).name
    if name != "studio":
        raise typer.BadParameter(
            f"constants of {name} are not known here: name a recipe of its kind of model, such as "
            "pickapic-sdxl-ppd",
            param_hint="--recipe",
        )
    return "studio-ppd"


def _named_value(said: str) -> tuple[str, Any]:
    """``betas=[0.9,0.99]``: a JSON value, or else a word."""
    name, equals, value = said.partition("=")
    if not equals:
        raise typer.BadParameter(f"{said}: not NAME=VALUE", param_hint="--set")
    if name in ("objective", "conditioning"):
        raise typer.BadParameter(f"{name}: has an option of its own", param_hint="--set")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    app()
