"""``fit-...`` commands: what a release's encoder needs that is fitted on people's choices, not
trained: its embedding, and the questions it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from training.blame import blame
from training.data.readings import READ_AT_ONCE
from training.encoder_options import EncoderBits, EncoderDtype

fits = typer.Typer()


@fits.command()
def fit_questions(
    rows: Annotated[
        str, typer.Option(help="Parquet file or directory, or hub id, with Pick-a-Pic's columns.")
    ],
    release: Annotated[Path, typer.Option(help="A release directory; the part is put into it.")],
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    per_user: Annotated[int, typer.Option(min=2, help="Choices that are used of everybody.")] = 8,
    pictures: Annotated[int, typer.Option(help="Drawn to learn how pictures answer.")] = 320,
    scale: Annotated[
        float | None, typer.Option(help="Preference scale of the questions' pictures.")
    ] = None,
    device: str = "cpu",
    dtype: EncoderDtype = "float32",
    quantisation: EncoderBits = None,
) -> None:
    """Let a release ask questions of its own: fit whose answers would tell most, from choices."""
    from ppd_serve.release import load_release
    from training.data.choice_set import NoChoices
    from training.data.choices import NoRows, Skipped
    from training.data.pickapic import PickAPic
    from training.data.served import refuse_other_space
    from training.questions import fit_questioner, ship, states_of_choices

    found, skipped = load_release(release), Skipped()
    refuse_other_space(found, dtype, quantisation)
    source = PickAPic(rows, revision)
    with blame("--rows", NoRows):
        source.check()
    encoder = found.load_encoder(device=device, dtype=dtype, quantisation=quantisation)
    choices = source.choices(skipped, users="train", least_pairs=per_user)
    with blame("--per-user", NoChoices):
        seen = states_of_choices(encoder, choices, per_user)
    questioner = fit_questioner(
        found, encoder, *seen, pictures=pictures, scale=scale, device=device
    )
    ship(release, questioner)
    typer.echo(f"{len(seen[1])} people's choices; {skipped.report()}")


@fits.command()
def fit_transform(
    release: Annotated[Path, typer.Option(help="A release directory; the part is put into it.")],
    rows: Annotated[
        str | None,
        typer.Option(help="Parquet file or directory, or hub id, with Pick-a-Pic's columns."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    database: Annotated[str | None, typer.Option(help="A server's database URL instead.")] = None,
    blobs: Annotated[str | None, typer.Option(help="And where it keeps its pictures.")] = None,
    project: Annotated[str, typer.Option(help="Of a database: its keys' project.")] = "default",
    directions: Annotated[int, typer.Option(min=1, help="Numbers in an embedding's row.")] = 16,
    readings: Annotated[int, typer.Option(min=2, help="Of everybody, four choices each.")] = 2,
    device: str = "cpu",
    dtype: EncoderDtype = "float32",
    quantisation: EncoderBits = None,
) -> None:
    """Fit what makes a VLM's states an embedding, on people's choices; before anything is trained.

    The release has an encoder directory and neither adapter nor questions yet.
    """
    one_source(rows, database, blobs)
    from ppd_serve.release import load_release
    from training.data.choice_set import NoChoices
    from training.data.choices import NoRows, Skipped
    from training.data.sources import choices_of
    from training.transform import encoder_to_fit, fit, ship, states_of_people, told_apart

    how: dict[str, Any] = {"dtype": dtype, "quantisation": quantisation}
    with blame("--rows", NoRows):
        source = choices_of(
            rows, revision, database, blobs, project=project, least_pairs=readings * READ_AT_ONCE
        )
    encoder = encoder_to_fit(load_release(release), device=device, **how)
    skipped = Skipped()
    with blame("--readings", NoChoices):
        seen = states_of_people(encoder, source(skipped, "train"), readings)
    transform = fit(seen, directions)
    ship(release, encoder, transform, **how)
    typer.echo(f"{len(seen)} people's choices; {skipped.report()}")
    typer.echo(told_apart(encoder, transform, source(Skipped(), "dev"), readings))


def one_source(rows: str | None, database: str | None, blobs: str | None) -> None:
    """Choices come from one place, and a server has two parts."""
    if (rows is None) == (database is None) or (database is None) != (blobs is None):
        raise typer.BadParameter("either --rows, or --database and --blobs")
