"""``ppd``: serve, doctor, release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ppd_serve.errors import PPDError
from ppd_serve.manifest import read_manifest
from ppd_serve.settings import Settings

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
release = typer.Typer(help="Look at a release directory.", no_args_is_help=True)
app.add_typer(release, name="release")

DirectoryArg = Annotated[Path, typer.Argument(help="A release directory.")]


@app.command()
def serve(
    config: Annotated[
        Path | None, typer.Option(help="A Ray Serve config; its args are our settings.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where users and pictures are kept.")] = None,
) -> None:
    """Start the server and stay until SIGINT or SIGTERM. Prints `ready http://…` when it is."""
    from ppd_serve.launch import launch, read_config

    flags = {"host": host, "port": port, "data": data}
    try:
        settings = Settings.load(
            read_config(config) if config else {},
            {name: value for name, value in flags.items() if value is not None},
        )
        read_manifest(settings.release)
    except ValidationError as error:
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "settings"
            typer.echo(f"{where}: {item['msg']}", err=True)
        raise typer.Exit(2) from None
    except (PPDError, OSError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    try:
        launch(settings)
    except (PPDError, RuntimeError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@app.command()
def doctor(
    data: Annotated[Path, typer.Option(help="Where the server would keep its data.")] = Path(
        "data"
    ),
) -> None:
    """What this machine has, and what would run well on it."""
    from ppd_serve.doctor import render, report

    render(report(data))


@release.command()
def check(directory: DirectoryArg) -> None:
    """Whether it can be served as it was published: parts, checksums, shapes, no pickles."""
    from ppd_serve.release import load_release

    try:
        load_release(directory).check()
    except PPDError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo("ok")


@release.command()
def describe(directory: DirectoryArg) -> None:
    """What it says of itself, as JSON."""
    try:
        told: dict[str, Any] = read_manifest(directory).model_dump(mode="json", exclude_none=True)
    except PPDError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    told.pop("checksums")
    typer.echo(json.dumps(told, indent=2))
