"""``python -m training``, what concerns the studio itself: its world and simulated people, how the
default is made, and every method beside the others on it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from training.blame import blame

studio = typer.Typer()

WORK = Path("runs/studio")
DEFAULT_RELEASE = Path("ppd_serve/assets/studio")
TO_BE_CONTINUED = 75  # EX_TEMPFAIL of sysexits.h


@studio.command()
def demo(out: Path = Path("demo.png")) -> None:
    """Start the server, make four choices, draw with and without the taste."""
    from training.demo import run

    raise typer.Exit(run(out))


@studio.command()
def world(out: Path = Path("world.png")) -> None:
    """Draw the studio's world: each style axis, from little to much, on a few captions."""
    import numpy as np
    from PIL import Image

    from training.contact_sheet import Row, grid, stack
    from training.data.world import AXES, CAPTIONS, render

    usual = np.array([0, 0.1, 0.2, -0.3, -0.7, -0.7, -0.6, -0.7])
    shown = [CAPTIONS[k] for k in (3, 70, 28)]
    rows = []
    for axis, name in enumerate(AXES):
        styles = [np.where(np.arange(len(AXES)) == axis, v, usual) for v in (-1.0, 1.0)]
        pictures = [render(c, style, 5) for c in shown for style in styles]
        rows.append(Row(name, [Image.fromarray(p) for p in pictures]))
    columns = [f"{size} {c.subject}" for c in shown for size in ("little:", "much:")]
    stack([grid(columns, rows, side=128)]).save(out)


@studio.command()
def rows(
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    work: Path = WORK,
    people: int = 200,
    pairs: int = 8,
    shared: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="How much of every taste is everybody's; on Pick-a-Pic about 0.4."
        ),
    ] = 0.0,
) -> None:
    """Choices of simulated people as a file with Pick-a-Pic v2's columns: an example of yours."""
    import numpy as np

    from training.data.pool import PairSampler, load_pool
    from training.data.rows import studio_rows, write_rows
    from training.data.shared_taste import with_shared_taste
    from training.data.users import people as sample

    pool = load_pool(work / "pool", "train", 2_000)
    tastes = with_shared_taste(sample("train", people), shared)
    drawn = PairSampler(pool).draw(tastes, pairs, np.random.default_rng(0))
    typer.echo(f"{write_rows(out, studio_rows(pool, *drawn))} rows in {out}")


@studio.command()
def bootstrap(
    out: Annotated[Path, typer.Option(help="Release directory to write.")],
    work: Annotated[Path, typer.Option(help="Pools, checkpoints and logs; resumed from.")] = WORK,
    budget: Annotated[str, typer.Option(help="tiny, cpu or cuda")] = "cpu",
    start: Annotated[
        Path | None, typer.Option("--from", help="A release to train on from.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    bf16: Annotated[
        bool, typer.Option(help="bf16 autocast for base and adapter; always with cuda.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so long, to be called again.")
    ] = None,
    carry: Annotated[
        Path | None,
        typer.Option(help="Begin with what was packed here; pack here what has to travel."),
    ] = None,
    version: Annotated[str, typer.Option(help="What the release calls itself.")] = "1",
    seed: int = 0,
    threads: int | None = None,
) -> None:
    """Rebuild the embedded default from nothing, or raise one that there is.

    With ``--minutes``, exit code 75 says that there is more to do: call it again.
    """
    from training.bootstrap import Bootstrap
    from training.budget import BUDGETS
    from training.carry import pack, unpack
    from training.workbench import OutOfTime

    if budget not in BUDGETS:
        raise typer.BadParameter(f"must be one of {', '.join(BUDGETS)}", param_hint="--budget")
    if carry and carry.exists():
        unpack(carry, work)
    run = Bootstrap(
        work, BUDGETS[budget], seed=seed, threads=threads, start=start, device=device,
        bf16=bf16 or device == "cuda", minutes=minutes,
    )  # fmt: skip
    unfinished = None
    try:
        typer.echo(run.report(run.release(out, version=version)))
    except OutOfTime as stopped:
        unfinished = stopped
    if carry:
        typer.echo(f"{pack(work, carry) / 2**20:.0f} MiB to carry in {carry}")
    if unfinished:
        typer.echo(f"stopped and saved in {unfinished}: call again")
        raise typer.Exit(TO_BE_CONTINUED)


@studio.command()
def compare(
    out: Annotated[Path, typer.Option(help="Runs, pictures' scores and figures; resumed from.")],
    what: Annotated[Literal["methods", "synthetic-users", "style"], typer.Option()] = "methods",
    release: Path = DEFAULT_RELEASE,
    work: Path = WORK,
    split: Annotated[Literal["dev", "test", "confirm"], typer.Option()] = "test",
    users: Annotated[int, typer.Option(help="New people; or pictures of each.")] = 200,
    seeds: Annotated[int, typer.Option(help="Training seeds of every method.")] = 3,
    steps: int = 300,
    bf16: Annotated[bool, typer.Option(help="bf16 autocast in training.")] = False,
) -> None:
    """Train every method on one budget and judge them beside each other."""
    import json

    from training.comparison import methods, style, synthetic_users
    from training.comparison.runs import Interrupted
    from training.stage import OtherRun

    run, page = {
        "methods": (
            partial(methods.compare_methods, users=users, seeds=seeds), methods.methods_markdown
        ),
        "synthetic-users": (
            partial(synthetic_users.compare_synthetic_users, pictures=users),
            synthetic_users.synthetic_markdown,
        ),
        "style": (partial(style.compare_style, pictures=users), style.style_markdown),
    }[what]  # fmt: skip
    try:
        with blame("--out", OtherRun):
            report = run(release, out, work, split=split, steps=steps, bf16=bf16)
    except Interrupted:
        typer.echo("interrupted and saved: call again")
        raise typer.Exit(TO_BE_CONTINUED) from None
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(page(report))
    typer.echo(page(report))
