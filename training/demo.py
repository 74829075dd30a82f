"""Four choices, then pictures to that taste: a simulated person meets the real server over HTTP.

The person's taste is hidden from the server, which sees four pairs of pictures and nothing else.
Their exact opposite makes four choices, too. The same prompts and seeds are then drawn for nobody,
for each of the two and for blends of them, and the person's true reward, read from pixels, says
which picture of a pair (theirs, nobody's) they would have chosen.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ppd_client import AsyncClient, PPDError, PreferencesAdded
from training.contact_sheet import PairShown, Row, grid, stack, strip, title
from training.data.judge import scores
from training.data.users import Tastes, people
from training.data.world import (
    AXES,
    HELD_OUT_CAPTIONS,
    SIDE,
    TRAIN_CAPTIONS,
    Caption,
    render,
    sample_style,
)
from training.evaluate.statistics import Rate, win_rate
from training.local_server import ServerFailed, local_server
from training.taste_words import in_words

Pixels = NDArray[np.uint8]
Users = Mapping[str, float]

CHOICES = 4
ROWS = 5
SCALE = 2.0  # so that taste is seen at a glance; the default of 1 keeps more of the content
PERSON, OPPOSITE = "person", "opposite"
NOBODY, PERSONAL = "no user", "this person"
COLUMNS: dict[str, Users] = {
    NOBODY: {},
    PERSONAL: {PERSON: 1.0},
    "mostly this person (3/4 and 1/4)": {PERSON: 0.75, OPPOSITE: 0.25},
    "half and half": {PERSON: 0.5, OPPOSITE: 0.5},
    "mostly the opposite (1/4 and 3/4)": {PERSON: 0.25, OPPOSITE: 0.75},
    "the opposite person": {OPPOSITE: 1.0},
}
# What is seen at a glance in a small picture; the others want a closer look.
_AT_A_GLANCE = [AXES.index(a) for a in ("warmth", "brightness", "colour", "vignette", "frame")]
_FIRST_SEED = 30_000_000  # far from every pool's pictures


class Unpersonal(Exception):
    """The server drew without a taste that it had been told."""


@dataclass(frozen=True)
class Choice:
    """Two pictures of one caption, as offered; the person preferred number ``preferred``."""

    caption: Caption
    pictures: tuple[Pixels, Pixels]
    preferred: int


@dataclass(frozen=True)
class Verdict:
    """What the person's true reward says of personal against plain pictures."""

    wins: Rate
    gain: float  # mean reward gained, in the world's own standard deviations


@dataclass(frozen=True)
class Asked:
    """One picture to be drawn: prompt number, column of the sheet."""

    prompt: int
    column: str


def visible_person() -> Tastes:
    """The first test user with exactly two wishes, both of them seen at a glance."""
    tastes = people("test", 200)
    wishes = tastes.weight != 0
    plain = ~tastes.curvature.any(1) & (wishes.sum(1) == 2)
    return tastes[[int(np.flatnonzero(plain & (wishes[:, _AT_A_GLANCE].sum(1) == 2))[0])]]


def opposite(taste: Tastes) -> Tastes:
    """Likes whatever ``taste`` dislikes, as strongly."""
    return Tastes(-taste.weight, -taste.curvature, taste.level)


def choose(taste: Tastes, seed: int, count: int = CHOICES) -> list[Choice]:
    """Paint ``count`` pairs in random styles and let one person choose, noisily as people do.

    Everybody is offered the same pairs for the same seed.
    """
    rng = np.random.default_rng((seed, 1))
    choices = []
    for index in range(count):
        caption = TRAIN_CAPTIONS[rng.integers(len(TRAIN_CAPTIONS))]
        first = _FIRST_SEED + 2 * (seed * count + index)
        a, b = (render(caption, sample_style(rng), first + k) for k in range(2))
        z = scores(np.stack([a, b]), [caption] * 2)
        likes_a = bool(taste.prefers_first(z[None, 0], z[None, 1], rng)[0])
        choices.append(Choice(caption, (a, b), 0 if likes_a else 1))
    return choices


def pick_prompts(count: int, seed: int) -> list[Caption]:
    """``count`` held-out captions in random order; all of them before any comes again."""
    rng = np.random.default_rng((seed, 2))
    rounds = -(-count // len(HELD_OUT_CAPTIONS))
    order = np.concatenate([rng.permutation(len(HELD_OUT_CAPTIONS)) for _ in range(rounds)])
    return [HELD_OUT_CAPTIONS[i] for i in order[:count]]


def to_draw(prompts: int) -> list[Asked]:
    """Every column for the first rows; for the other prompts what the comparison needs."""
    return [
        Asked(prompt, column)
        for prompt in range(prompts)
        for column in (COLUMNS if prompt < ROWS else (NOBODY, PERSONAL))
    ]


def compare(
    taste: Tastes, captions: Sequence[Caption], personal: Sequence[Pixels], plain: Sequence[Pixels]
) -> Verdict:
    """Compare pictures of equal caption and seed by one person's true reward."""
    ours, theirs = (
        taste.reward(scores(np.stack(images), list(captions))[None])[0]
        for images in (personal, plain)
    )
    return Verdict(win_rate(ours, theirs), float((ours - theirs).mean()))


def lay_out(
    words: str,
    choices: Sequence[Choice],
    captions: Sequence[Caption],
    drawn: Mapping[Asked, Pixels],
) -> Image.Image:
    """The sheet: the person's choices on top, then prompts by columns."""
    pairs = [
        PairShown(
            str(c.caption),
            (Image.fromarray(c.pictures[0]), Image.fromarray(c.pictures[1])),
            c.preferred,
        )
        for c in choices
    ]
    rows = [
        Row(str(caption), [Image.fromarray(drawn[Asked(i, column)]) for column in COLUMNS])
        for i, caption in enumerate(captions[:ROWS])
    ]
    pictures = grid(list(COLUMNS), rows)
    told = f"All that the server was told: {len(choices)} choices, the preferred picture framed."
    hidden = (
        f"The hidden taste: {words}. Each row: one prompt, one seed; preference_scale {SCALE:g}."
    )
    return stack(
        [
            title("Pictures to one person's taste", f"{told} {hidden}", pictures.width),
            strip(pairs),
            pictures,
        ]
    )


def run(
    out: Path = Path("demo.png"), *, port: int | None = None, prompts: int = 16, seed: int = 0
) -> int:
    """The whole demo; writes the sheet to ``out`` and returns the exit code.

    port: for the server, a free one if not given; prompts: how many held-out prompts the person
    compares on, the first few of them shown; seed: of the choices, the prompts and the pictures.
    """
    console = Console(highlight=False)
    try:
        _demo(console, out, port, prompts, seed)
    except KeyboardInterrupt:
        console.print("[yellow]stopped[/]; the server is stopped, too")
        return 130
    except (PPDError, ServerFailed, Unpersonal, OSError) as error:
        console.print(f"[bold red]The demo failed:[/] {type(error).__name__}: ", end="")
        console.print("\n".join([str(error), *getattr(error, "__notes__", [])]), markup=False)
        return 1
    return 0


def _demo(console: Console, out: Path, port: int | None, prompts: int, seed: int) -> None:
    taste = visible_person()
    choices = {PERSON: choose(taste, seed), OPPOSITE: choose(opposite(taste), seed)}
    captions = pick_prompts(prompts, seed)

    console.print("Starting the server [dim](ppd serve)[/]")
    start = time.monotonic()
    with console.status("loading models …") as status, local_server(port) as url:
        status.stop()
        console.print(f"[green]ready[/] {url} after {time.monotonic() - start:.0f} s")
        drawn = asyncio.run(_visit(console, url, choices, captions, seed))
        status.update("stopping the server …")
        status.start()

    words = in_words(taste)
    personal, plain = (
        [drawn[Asked(i, column)] for i in range(prompts)] for column in (PERSONAL, NOBODY)
    )
    verdict = compare(taste, captions, personal, plain)
    lay_out(words, choices[PERSON], captions, drawn).save(out)

    rate = verdict.wins
    console.print(f"\nThe person's hidden taste: [bold]{words}[/]")
    console.print(
        f"By it, their own picture beats the plain one of the same seed on "
        f"[bold]{100 * rate.value:.0f} %[/] of {rate.count} prompts never trained on "
        f"(95 % interval {100 * rate.low:.0f}–{100 * rate.high:.0f} %); "
        f"reward {verdict.gain:+.2f} standard deviations on average"
    )
    console.print("Side by side:", str(out), markup=False)


async def _visit(
    console: Console,
    url: str,
    choices: Mapping[str, Sequence[Choice]],
    captions: Sequence[Caption],
    seed: int,
) -> dict[Asked, Pixels]:
    """Tell the server everybody's choices, then have everything drawn, all at once."""
    # Given a transport, httpx ignores the environment's proxies: they have no way to our loopback.
    transport = httpx.AsyncHTTPTransport()
    async with AsyncClient(url, timeout=600, transport=transport) as client:
        for user_id, made in choices.items():
            start = time.monotonic()
            added = await client.add_preferences(user_id, [_as_pair(c) for c in made])
            _print_added(console, added, time.monotonic() - start)
        asked = to_draw(len(captions))
        bar = Progress(
            TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console,
        )  # fmt: skip
        start = time.monotonic()
        with bar:
            task = bar.add_task("drawing", total=len(asked))

            async def draw(one: Asked) -> Pixels:
                picture = await _draw(client, one, str(captions[one.prompt]), seed)
                bar.advance(task)
                return picture

            pictures = await asyncio.gather(*map(draw, asked))
        took = time.monotonic() - start
        console.print(f"{len(asked)} pictures in {took:.1f} s, {took / len(asked):.2f} s each")
    return dict(zip(asked, pictures, strict=True))


async def _draw(client: AsyncClient, one: Asked, prompt: str, seed: int) -> Pixels:
    users = COLUMNS[one.column]
    # One seed per prompt: within a row nothing differs but the users.
    made = await client.generate(
        prompt, users=users or None, seed=seed + one.prompt, preference_scale=SCALE
    )
    if not all(user.personalized for user in made.users) or len(made.users) != len(users):
        raise Unpersonal(f"asked for {dict(users)}, got {made.users}")
    with Image.open(io.BytesIO(made.images[0].data)) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE)))  # the judge knows one size


def _as_pair(choice: Choice) -> tuple[str, Image.Image, Image.Image]:
    preferred, rejected = choice.pictures[choice.preferred], choice.pictures[1 - choice.preferred]
    return str(choice.caption), Image.fromarray(preferred), Image.fromarray(rejected)


def _print_added(console: Console, added: PreferencesAdded, seconds: float) -> None:
    state = added.embedding
    console.print(
        f"[bold]{added.user_id}[/]: {len(added.pair_ids)} choices told in {seconds:.1f} s; "
        f"embedding {state.status}, made from {state.pairs_used}"
    )
    if added.profile:
        console.print("  what it says of them:", added.profile, style="italic", markup=False)
