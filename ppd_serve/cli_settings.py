"""The settings that a command was given, or a word about what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ppd_serve.settings import Settings

ConfigOption = Annotated[
    Path | None, typer.Option(help="A Ray Serve config; its args are our settings.")
]
DataOption = Annotated[Path | None, typer.Option(help="Where users and pictures are kept.")]


def given_settings(config: Path | None, **flags: Any) -> Settings:
    """Flags that are not None, over ``PPD_*``, over the file. Exits with 2."""
    from ppd_serve.launch import read_config

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings.load(read_config(config) if config else {}, given)
    except ValidationError as error:
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "settings"
            typer.echo(f"{where}: {item['msg']}", err=True)
    except (OSError, ValueError) as error:
        typer.echo(str(error), err=True)
    raise typer.Exit(2)
