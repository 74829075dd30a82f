"""README.md, docs/production.md, deployments/: every command of ours exists, with these options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from ppd_serve.cli import app as ppd
from training.__main__ import app as training

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/production.md", "deployments/README.md")
PROGRAMS = {("ppd",): ppd, ("python", "-m", "training"): training}


def commands() -> list[str]:
    """One line each, of all shell blocks."""
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [line.strip() for line in shell.splitlines()]
    return [line for line in lines if line.startswith(("ppd ", "python -m training "))]


def test_there_are_some() -> None:
    assert {line.split()[1] for line in commands() if line.startswith("ppd")} == {
        "release", "keys", "serve", "doctor",
    }  # fmt: skip


@pytest.mark.parametrize("line", commands())
def test_it_has_these_options(line: str) -> None:
    words = shlex.split(line, comments=True)
    (start,) = (start for start in PROGRAMS if tuple(words[: len(start)]) == start)
    command = typer.main.get_command(PROGRAMS[start])
    rest = words[len(start) :]
    while hasattr(command, "commands"):  # a group of commands
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(line, rest)  # raises on what it does not know
