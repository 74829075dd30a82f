"""``ppd release``: make a release directory, check it, tell what it is, compare two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

from ppd_serve.errors import ReleaseError
from ppd_serve.manifest import read_manifest
from ppd_serve.release_diff import differences

app = typer.Typer(help="Make, check and compare release directories.", no_args_is_help=True)

DirectoryArg = Annotated[Path, typer.Argument(help="A release directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
PlaceOption = Annotated[
    str | None, typer.Option(help="A path inside, or hf://owner/name@revision/path.")
]


@app.command()
def build(
    directory: Annotated[Path, typer.Argument(help="Where its local parts lie.")],
    name: str | None = None,
    version: str | None = None,
    backbone: PlaceOption = None,
    adapter: PlaceOption = None,
    encoder: PlaceOption = None,
    questions: PlaceOption = None,
    encoder_model: Annotated[
        str | None, typer.Option(help="hf://… of the model that encoder/ is for, if not in there.")
    ] = None,
    picture_pixels: Annotated[
        int | None, typer.Option(min=1, help="At most so many of each picture that a VLM reads.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="WIDTHxHEIGHT; the first is usual.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance_scale: float | None = None,
    guidance_rescale: float | None = None,
    sampler: str | None = None,
    preference_scale: float | None = None,
    example_prompt: list[str] | None = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the encoder, as it will be served; at first float32."),
    ] = None,
    quantisation: Annotated[
        Literal["4bit", "8bit"] | None,
        typer.Option(help="Of the encoder, as it will be served; stays only where --dtype does."),
    ] = None,
) -> None:
    """Write release.json: where the parts are, with a checksum of every local file.

    Parts are found by their usual names (backbone/, adapter/ip_adapter.safetensors, encoder/,
    questions.safetensors) unless an option names another place; a part on the hub is pinned to
    the commit that its revision (main, unless given) names now. In a directory that has a
    release.json already, what is not given stays.
    """
    from ppd_serve.release_build import build as written

    places = {"backbone": backbone, "adapter": adapter, "encoder": encoder, "questions": questions}
    defaults = {
        "sizes": tuple(map(_size, size)) if size else None,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_rescale": guidance_rescale,
        "sampler": sampler,
        "preference_scale": preference_scale,
    }
    said = {"name": name, "version": version, "example_prompts": example_prompt or None}
    with _told():
        made = written(
            directory,
            places=_given(places),
            defaults=_given(defaults),
            encoder_model=encoder_model,
            picture_pixels=picture_pixels,
            dtype=dtype,
            quantisation=quantisation,
            **_given(said),
        )
    typer.echo(f"{made.name} {made.version} in {directory}")
    if made.embedding_space:
        said_how = " ".join(filter(None, (dtype or "float32", quantisation)))
        how = said_how if dtype or quantisation else "as before, at first float32"
        typer.echo(f"embedding space {made.embedding_space} ({how})")
    elif made.manifest.encoder:
        typer.echo("its encoder has no transform yet: python -m training fit-transform makes one")


@app.command()
def check(directory: DirectoryArg) -> None:
    """Whether it can be served as it was published: parts, checksums, shapes, no pickles."""
    from ppd_serve.release import load_release

    with _told():
        load_release(directory).check()
    typer.echo("ok")


@app.command()
def describe(directory: DirectoryArg, as_json: JsonOption = False) -> None:
    """What it is made of, how large it is, and what it says of itself."""
    from ppd_serve.release import load_release
    from ppd_serve.release_description import description, render

    with _told():
        told = description(load_release(directory))
    typer.echo(json.dumps(told, indent=2)) if as_json else render(told, Console())


@app.command()
def diff(before: DirectoryArg, after: DirectoryArg, as_json: JsonOption = False) -> None:
    """What changes from one release to another, and what that means."""
    with _told():
        found = differences(read_manifest(before), read_manifest(after))
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=2))
        return
    table = Table(Column("what", overflow="fold"), "before", "after", "means")
    for each in found:
        table.add_row(each.what, _short(each.before), _short(each.after), each.means)
    Console().print(table if found else "no difference")


@contextmanager
def _told() -> Iterator[None]:
    """Exits with 1, after one line, for what is wrong with a release or the disk it is on."""
    try:
        yield
    except (ReleaseError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise typer.BadParameter(f"{text!r} is not like 1024x1024", param_hint="--size")
    return int(width), int(height)


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:21]}…"
