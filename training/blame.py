"""What a command cannot do with what it was told, as its usage error and not as a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def blame(option: str, *errors: type[Exception]) -> Iterator[None]:
    """These errors are ``option``'s fault."""
    try:
        yield
    except errors as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
