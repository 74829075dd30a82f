"""Every command and program in README.md is run here, or at least would run.

A comment before each block says how it is checked:

- ``readme: run``     run as it stands;
- ``readme: server``  run as it stands against a real server, in the README's order;
- ``readme: make``    the targets exist and make can plan them. Running them here would be a circle:
  ``make test`` is what runs this test, and the others start from the same set-up.
- ``readme: short``   run in the README's order, with two training steps in place of many;
- ``readme: file``    run beside lines of JSON; what it writes is read as training reads it;
- ``readme: options`` a training command that would take hours: it exists and has these options
  (tests/training/test_bootstrap.py runs them all on a tiny budget);
- ``readme: hub``     needs the hub and a GPU: it has these options (test_production_commands.py),
  and runs on models in miniature (e2e/test_deployments.py).
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import typer
from PIL import Image

from ppd_serve.release import load_release
from training.__main__ import app
from training.data.choices import Skipped
from training.data.pickapic import PickAPic
from training.local_server import local_server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNNABLE = {"bash", "sh", "shell", "console", "python"}
URL = "http://127.0.0.1:8000"  # as the README writes it


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    check: str | None

    def __str__(self) -> str:
        return self.code.strip().splitlines()[0][:50]


def blocks(markdown: str) -> list[Block]:
    fence = re.compile(
        r"(?:<!-- readme: (?P<check>\w+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
        re.MULTILINE | re.DOTALL,
    )
    return [Block(m["language"], m["code"], m["check"]) for m in fence.finditer(markdown)]


BLOCKS = [block for block in blocks(README) if block.language in RUNNABLE]


def checked(how: str) -> list[Block]:
    return [block for block in BLOCKS if block.check == how]


def execute(block: Block, where: Path, url: str = URL) -> str:
    """Run a block in the directory ``where`` and return what it printed; it must succeed."""
    code = block.code.replace(URL, url).replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    shell = ["bash", "-euo", "pipefail", "-c"]
    command = [sys.executable, "-c", code] if block.language == "python" else [*shell, code]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_says_how_it_is_checked():
    kinds = {"run", "server", "make", "short", "options", "hub", "file"}
    assert [str(block) for block in BLOCKS if block.check not in kinds] == []
    assert {block.check for block in BLOCKS} == kinds


def test_no_command_hides_in_a_block_without_a_language():
    plain = [block.code for block in blocks(README) if block.language not in RUNNABLE]
    command = re.compile(
        r"^\s*\$?\s*(make|ppd|pip|python|curl|docker|serve|\.venv)\b", re.MULTILINE
    )
    assert [code for code in plain if command.search(code)] == []


def test_blocks_are_found_with_their_checks():
    text = "<!-- readme: run -->\n```bash\na\nb\n```\ntext\n```python\nc\n```\n```\nd\n```\n"
    assert blocks(text) == [
        Block("bash", "a\nb\n", "run"),
        Block("python", "c\n", None),
        Block("", "d\n", None),
    ]


@pytest.mark.parametrize("block", checked("make"), ids=str)
def test_make_targets_can_be_planned(block: Block):
    for line in block.code.strip().splitlines():
        words = line.split("#")[0].split()
        assert words[0] == "make", f"not a make command: {line}"
        done = subprocess.run(
            ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", checked("options"), ids=str)
def test_long_training_commands_have_these_options(block: Block):
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in block.code.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line.split("#")[0])
        assert words[:3] == [".venv/bin/python", "-m", "training"], line
        commands[words[3]].make_context(words[3], words[4:])  # raises on what it does not know


def test_links_lead_somewhere():
    shown = re.sub(r"<!--.*?-->", "", README, flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", shown)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("block", checked("file"), ids=str)
def test_lines_of_json_become_a_file_of_choices(block: Block, tmp_path: Path):
    lines = []
    for number in range(4):
        for side, name in enumerate(("liked", "other")):
            Image.new("RGB", (8, 8), (number, side, 0)).save(tmp_path / f"{name}{number}.png")
        told = {"user": "ann", "prompt": f"a boat, {number}", "liked": f"liked{number}.png"}
        lines.append(json.dumps(told | {"other": f"other{number}.png"}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    execute(block, tmp_path)
    skipped = Skipped()
    found = list(PickAPic(tmp_path / "mine.parquet").choices(skipped))
    assert [choice.prompt for choice in found] == [f"a boat, {number}" for number in range(4)]
    assert found[2].preferred == (tmp_path / "liked2.png").read_bytes()
    assert found[2].user == "ann" and not skipped.reasons


@pytest.mark.slow
@pytest.mark.parametrize("block", checked("run"), ids=str)
def test_commands_run(block: Block, tmp_path: Path):
    execute(block, tmp_path)


@pytest.mark.slow
def test_training_commands_run_short(tmp_path: Path):
    (block,) = checked("short")
    # The default release is named by its place in the repository.
    (tmp_path / "ppd_serve").symlink_to(ROOT / "ppd_serve")
    (tmp_path / "training").symlink_to(ROOT / "training")
    code = re.sub(r"--people \d+", "--people 30", re.sub(r"--steps \d+", "--steps 2", block.code))
    said = execute(Block(block.language, code, block.check), tmp_path)
    assert "held_out" in said
    made = load_release(tmp_path / "runs" / "mine-ppd" / "release")
    made.check()
    assert made.version.endswith("+dpo-user")


@pytest.fixture
def server() -> Iterator[str]:
    """The address of ``ppd serve`` with the default release and a database of its own."""
    with local_server() as url:
        yield url


@pytest.mark.slow
@pytest.mark.e2e
def test_examples_run_against_the_server(server: str, tmp_path: Path):
    for block in checked("server"):
        execute(block, tmp_path, server)
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(drawn) == {"left.png", "right.png", "ann.png", "bob.png", "both.png"}
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())
    base = httpx.post(
        f"{server}/generate",
        json={"prompt": "a house on a hill at night", "seed": 3},
        headers={"Accept": "image/png"},
        timeout=120,
    )
    # The tastes that the README's user told the server must show.
    assert len({base.content, drawn["ann.png"], drawn["bob.png"]}) == 3
