"""``ppd keys``: make API keys, list them, take them back. A running server on the same database
sees it within seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppd_serve.cli_settings import ConfigOption, DataOption, given_settings
from ppd_serve.errors import PPDError
from ppd_serve.keys import OF_A_PROJECT, ApiKey, Scope

if TYPE_CHECKING:
    from ppd_serve.storage.store import Store

app = typer.Typer(help="API keys of the server's database.", no_args_is_help=True)

Limit = Annotated[int | None, typer.Option(min=1, help="Not limited, unless given.")]


@app.command()
def create(
    project: Annotated[str, typer.Option(help="Whose users and pictures it opens.")],
    name: Annotated[str, typer.Option(help="What it is for, in your words.")] = "",
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; unless given, everything but metrics."),
    ] = None,
    rate_per_minute: Limit = None,
    concurrency: Limit = None,
    days: Annotated[
        float | None, typer.Option(min=0, help="How long it lives; for ever, unless given.")
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Make a key and print it: once, for only its digest is kept."""
    with _store(config, data) as store:
        made, key = store.create_key(
            project,
            name=name,
            scopes=scope or list(OF_A_PROJECT),
            rate_per_minute=rate_per_minute,
            concurrency=concurrency,
            days=days,
        )
    typer.echo(f"{made.id}: keep it now, it is not shown again", err=True)
    typer.echo(key)


@app.command("list")
def show(config: ConfigOption = None, data: DataOption = None) -> None:
    """What is known of each key, oldest first; never the key."""
    with _store(config, data) as store:
        keys = list(store.keys().values())
    lines: list[tuple[str, ...]] = [
        ("ID", "PROJECT", "SCOPES", "PER MINUTE", "AT ONCE", "CREATED", "STATE", "NAME")
    ]
    lines += map(_line, keys)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="As `ppd keys list` shows it.")],
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Take a key back, for good."""
    with _store(config, data) as store:
        store.revoke_key(id)
    typer.echo(f"{id} opens nothing any more")


@contextmanager
def _store(config: Path | None, data: Path | None) -> Iterator[Store]:
    """The server's own store. Exits with 1 for what goes wrong there."""
    from ppd_serve.storage.store import Store

    settings = given_settings(config, data=data)
    try:
        store = Store.open(settings.database, settings.blobs)
        try:
            yield store
        finally:
            store.close()
    except (PPDError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _line(key: ApiKey) -> tuple[str, ...]:
    now = datetime.now(UTC).timestamp()
    state = "live" if key.expires is None else f"until {_day(key.expires)}"
    if not key.is_live(now):
        state = "expired" if key.revoked is None else "revoked"
    limits = (str(limit or "-") for limit in (key.rate_per_minute, key.concurrency))
    scopes = ",".join(sorted(key.scopes))
    return (key.id, key.project, scopes, *limits, _day(key.created), state, key.name)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
