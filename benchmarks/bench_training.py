"""What it is worth to compute once what does not change: the trainer against a plain loop.

    .venv/bin/python -m benchmarks.bench_training

Both train the same adapter on the same choices by the same formula. The plain loop keeps nothing,
as Diffusion-DPO (arXiv 2311.12908) is commonly trained: in every step it opens and crops the
pictures, runs them through the autoencoder and the prompts through the text encoder, and asks a
frozen copy of the denoiser for the reference. To know its users (PPD, arXiv 2501.06655) it also
reads their choices with the VLM; a second figure leaves this out. All take turns, one step each, so
that a drift of the machine's speed meets everybody; figures are medians over turns. With one thread
the processor's time is counted, not the clock's, so that others on the machine hardly matter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.plain_training import Clock, Example, PlainLoop, now, opened, reader
from benchmarks.report import OUT, STUDIO, Figure, about, ratios, spread, write
from ppd_serve.preferences.encoder import CHUNK, Encoder
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release, load_release
from training import vlm
from training.data.audience import Audience
from training.data.pool import PairSampler, Pool, load_pool, png
from training.data.studio import assemble, caption_text, pool_latents
from training.data.users import people as simulated
from training.data.world import CAPTIONS
from training.policy import Policy
from training.recipes import Recipe, recipe
from training.stage import Draws, Metrics
from training.train import PreferenceTraining, Samples, stage_of

OURS, KNOWN, PLAIN = "trainer", "plain, users known", "plain"


def state(encoder: Encoder, pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """One reading, ``[rows, hidden]``."""
    return encoder.read([(p.prompt, opened(p.preferred), opened(p.rejected)) for p in pairs])[0]


@dataclass(frozen=True)
class Choices:
    """The same choices for both: everything computed (``training``), and as a data set has them."""

    training: PreferenceTraining
    examples: list[Example]

    def of(self, samples: Samples) -> list[Example]:
        return [self.examples[pair] for pair in samples.pair]


def choices(release: Release, pool: Pool, how: Recipe, people: int) -> Choices:
    """Simulated people who chose four times, were read once, and go on choosing."""
    tastes, encoder, backbone = simulated("train", people), reader(release), release.load_backbone()
    sampler, rng = PairSampler(pool), np.random.default_rng(0)
    pictures = [png(image) for image in pool.images]

    def pair(preferred: int, rejected: int) -> Pair:
        caption = str(CAPTIONS[pool.captions[preferred]])
        return Pair(caption, pictures[preferred], pictures[rejected])

    earlier = [
        [pair(w, x) for w, x in zip(*chosen, strict=True)]
        for chosen in zip(*sampler.draw(tastes, CHUNK, rng), strict=True)
    ]
    audience = Audience(
        tastes, np.stack([state(encoder, pairs) for pairs in earlier]), np.full((people, 1), CHUNK)
    )
    found = assemble(
        pool, pool_latents(backbone, pool), caption_text(backbone), audience, encoder.transform,
        vlm.cache_features(encoder.model, pool.images),
    )  # fmt: skip
    policy = Policy(
        backbone, weights=how.weights, conditioning=how.conditioning,
        embedding_shape=found.embedding_shape,
    )  # fmt: skip
    assert release.adapter_path is not None
    policy.load_adapter(release.adapter_path)
    examples = [
        Example(pair(w, x), earlier[user])
        for w, x, user in zip(found.preferred, found.rejected, found.user, strict=True)
    ]
    return Choices(PreferenceTraining(how, found, policy), examples)


def ppd(**changes: Any) -> Recipe:
    """The studio's recipe on users as one reading shows them."""
    return recipe("studio-ppd", embedding_noise=0.0, known_until=None, **changes)


@dataclass
class Turns:
    """Seconds of every turn by loop, and what the plain loop spent its own on."""

    seconds: dict[str, list[float]]
    plain: dict[str, float]


def take_turns(ours: Choices, plain: PlainLoop, directory: Path) -> Turns:
    """Of every step, the plain loop's and the trainer's own; the first turn warms up.

    The trainer asks for a step's loss once a step: what others do before it answers is not its
    time, all from there to its next question is. Its last step has none, and does not count.
    """
    run = ours.training
    found: dict[str, list[float]] = {OURS: [], KNOWN: [], PLAIN: []}
    clocks = {KNOWN: Clock(), PLAIN: Clock()}
    began = 0.0

    def loss(step: int, draws: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        nonlocal began
        if step:
            found[OURS].append(now() - began)
        samples = run.samples(step, range(run.recipe.batch))
        examples = ours.of(samples)
        for name in (KNOWN, PLAIN):
            plain.clock = clocks[name] if step else Clock()
            start = now()
            plain.step(examples, samples, users_known=name == KNOWN)
            found[name].append(now() - start)
        began = now()
        return run.parts(step, draws)

    stage = stage_of(run, "bench", directory)
    stage.loss, stage.save_every_s = loss, float("inf")
    if not stage.run():
        raise KeyboardInterrupt
    turns = len(found[OURS])
    spent = {what: s / turns for what, s in clocks[PLAIN].spent.items()}
    return Turns({name: times[1:turns] for name, times in found.items()}, spent)


def summary(turns: Turns, batch: int) -> dict[str, dict[str, Figure]]:
    """Tables; a ratio is the median of the turns' own."""
    loops = turns.seconds
    whole = sum(turns.plain.values())
    return {
        "the trainer is faster by": {
            name: ratios(times, loops[OURS], "≥ 1.5" if name == PLAIN else "")
            for name, times in loops.items()
            if name != OURS
        },
        "pairs a second": {
            name: spread([batch / s for s in times]) for name, times in loops.items()
        },
        "seconds a step": {name: spread(times) for name, times in loops.items()},
        "the plain step's time, share": {
            what: Figure(s / whole) for what, s in turns.plain.items()
        },
    }


def main(
    turns: int = 12,
    batch: int = 24,
    pictures: int = 300,
    people: int = 48,
    threads: Annotated[int | None, typer.Option(help="torch's; default: its own choice")] = None,
    release: Path = STUDIO,
    out: Path = OUT / "training.json",
) -> None:
    if threads:
        torch.set_num_threads(threads)
    how = ppd(batch=batch, steps=turns + 2)  # the first warms up, the last is not measured
    loaded = load_release(release)
    where = about(loaded)
    ours = choices(loaded, load_pool(out.parent / "pool", "train", pictures), how, people)
    with tempfile.TemporaryDirectory() as place:
        measured = take_turns(ours, PlainLoop(loaded, how), Path(place))
    clock = "processor's seconds" if torch.get_num_threads() == 1 else "seconds"
    where |= {"threads": torch.get_num_threads(), "clock": clock, "pairs in a step": batch}
    write(out, where, summary(measured, batch))


if __name__ == "__main__":
    typer.run(main)
