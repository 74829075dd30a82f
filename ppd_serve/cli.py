"""``ppd``: serve, doctor, keys, release."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from ppd_serve import keys_cli, release_cli
from ppd_serve.cli_settings import ConfigOption, DataOption, given_settings
from ppd_serve.errors import PPDError
from ppd_serve.manifest import read_manifest

# On some CPUs it says whenever diffusers is imported that a kernel is not installed; others do.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(keys_cli.app, name="keys")
app.add_typer(release_cli.app, name="release")


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
