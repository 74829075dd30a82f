"""``ppd``: serve, doctor, keys, release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ppd_serve import keys_cli
from ppd_serve.cli_settings import ConfigOption, DataOption, given_settings
from ppd_serve.errors import PPDError
from ppd_serve.manifest import read_manifest

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
release = typer.Typer(help="Look at a release directory.", no_args_is_help=True)
app.add_typer(keys_cli.app, name="keys")
app.add_typer(release, name="release")

DirectoryArg = Annotated[Path, typer.Argument(help="A release directory.")]


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data: DataOption = None,
) -> None:
    """Start the server and stay until SIGINT or SIGTERM. Prints `ready http://…` when it is."""
    from ppd_serve.launch import launch

    settings = given_settings(config, host=host, port=port, data=data)
    try:
        read_manifest(settings.release)
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
