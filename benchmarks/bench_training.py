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

import copy
import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import DDPMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.report import OUT, STUDIO, Figure, about, ratios, spread, write
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.preferences.encoder import CHUNK, Encoder
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release, load_release
from training import vlm
from training.autoencoder import to_input
from training.data.audience import Audience
from training.data.pool import PairSampler, Pool, load_pool, png
from training.data.studio import assemble, caption_text, pool_latents
from training.data.users import people as simulated
from training.data.world import CAPTIONS, SIDE
from training.policy import Policy
from training.recipes import Recipe, recipe
from training.stage import Draws, Metrics
from training.train import PreferenceTraining, Samples, stage_of

OURS, KNOWN, PLAIN = "trainer", "plain, users known", "plain"


class Example(NamedTuple):
    """A choice as a data set has it, and the four that its user made before."""

    pair: Pair
    earlier: Sequence[Pair]


def now() -> float:
    """Seconds: the process's own with one thread, the clock's with several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        start = now()
        yield
        self.spent[what] += now() - start


class PlainLoop:
    """Diffusion-DPO with a user branch; everything is computed when needed, then forgotten."""

    def __init__(self, release: Release, how: Recipe) -> None:
        assert release.adapter_path is not None
        stock = StableDiffusionPipeline.from_pretrained(
            release.backbone_path, safety_checker=None, requires_safety_checker=False,
            dtype=torch.float32,
        )  # fmt: skip
        for part in (stock.unet, stock.vae, stock.text_encoder):
            part.eval().requires_grad_(False)
        self.vae, self.text, self.tokenizer = stock.vae, stock.text_encoder, stock.tokenizer
        self.reference = copy.deepcopy(stock.unet)
        self.policy = stock.unet
        self.adapter = UserAdapter.load(release.adapter_path, self.policy)
        self.encoder = reader(release)
        self.noising = DDPMScheduler.from_config(stock.scheduler.config)
        self.how, self.clock = how, Clock()
        self.optimizer = torch.optim.AdamW(
            self.adapter.trainable_parameters(), how.learning_rate, betas=how.betas,
            weight_decay=how.weight_decay, fused=True,
        )  # fmt: skip

    def loss(
        self, examples: Sequence[Example], t_B: Tensor, noise_BCHW: Tensor,
        embedding_BRE: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Of one batch; reads the users where ``embedding_BRE`` does not tell who they are.

        Winners first, then losers: ``m`` is the policy's error and ``r`` the reference's.
        """
        pairs, on = [example.pair for example in examples], self.clock.on
        with on("open and crop the pictures"):
            shown = [pair.preferred for pair in pairs] + [pair.rejected for pair in pairs]
            pixels = to_input(np.stack([cropped(data) for data in shown]))
        with torch.no_grad():
            with on("autoencoder"):
                z = self.vae.encode(pixels).latents * self.vae.config.scaling_factor
            with on("text encoder"):
                words = self.tokenizer(
                    [pair.prompt for pair in pairs], padding="max_length", truncation=True,
                    return_tensors="pt",
                )  # fmt: skip
                states = self.text(words.input_ids)[0].repeat(2, 1, 1)
            if embedding_BRE is None:
                with on("VLM"):
                    embedding_BRE = self.read([example.earlier for example in examples])
        t, noise = t_B.repeat(2), noise_BCHW.repeat(2, 1, 1, 1)  # shared inside a pair
        noisy = self.noising.add_noise(z, noise, t)
        target = self.noising.get_velocity(z, noise, t)
        with on("policy"):
            users = self.adapter.project(embedding_BRE.repeat(2, 1, 1))[:, None]
            with self.adapter.condition(users):
                predicted = self.policy(noisy, t, states).sample
        m_w, m_l = (predicted - target).square().mean((1, 2, 3)).chunk(2)
        with on("reference"), torch.no_grad():
            predicted = self.reference(noisy, t, states).sample
        r_w, r_l = (predicted - target).square().mean((1, 2, 3)).chunk(2)
        return -F.logsigmoid(-0.5 * self.how.beta * ((m_w - m_l) - (r_w - r_l))).mean()

    def read(self, users: Sequence[Sequence[Pair]]) -> Tensor:
        """Who made these choices, ``[B, rows, dim]``: all in one forward, which the server's
        encoder does not do, but a loop that minds its time would."""
        prompt, processor = self.encoder.config.prompt, self.encoder.processor
        shown = [[(p.prompt, opened(p.preferred), opened(p.rejected)) for p in own]
                 for own in users]  # fmt: skip
        inputs = processor(
            text=[processor.apply_chat_template(prompt.conversation(x), add_generation_prompt=True)
                  for x in shown],
            images=[prompt.images(x) for x in shown], padding=True, return_tensors="pt",
        )  # fmt: skip
        seen = self.encoder.model(**inputs, use_cache=False, output_hidden_states=True)
        last = [seen.hidden_states[k][:, -1] for k in self.encoder.config.layers]
        return torch.from_numpy(self.encoder.transform(torch.stack(last, 1).numpy()))

    def step(self, examples: Sequence[Example], samples: Samples, *, users_known: bool) -> None:
        known = samples.embedding if users_known else None
        loss = self.loss(examples, samples.t, samples.noise, known)
        with self.clock.on("backward"):
            loss.backward()
        with self.clock.on("clip and update"):
            torch.nn.utils.clip_grad_norm_(self.adapter.trainable_parameters(), self.how.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def cropped(data: bytes) -> NDArray[np.uint8]:
    """``[SIDE, SIDE, 3]``, the middle."""
    return np.asarray(ImageOps.fit(opened(data), (SIDE, SIDE)))


def reader(release: Release) -> Encoder:
    """The release's encoder; it need not write down what it thinks."""
    encoder = release.load_encoder()
    encoder.config = encoder.config.model_copy(update={"profile": "skip"})
    return encoder


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
    stage.run()
    turns = len(found[OURS])
    spent = {what: s / turns for what, s in clocks[PLAIN].spent.items()}
    return Turns({name: times[1:turns] for name, times in found.items()}, spent)


def summary(turns: Turns, batch: int) -> dict[str, dict[str, Figure]]:
    """Tables; a ratio is the median of the turns' own."""
    loops = turns.seconds
    whole = sum(turns.plain.values())
    return {
        "the trainer is faster by": {
            name: ratios(times, loops[OURS]) for name, times in loops.items() if name != OURS
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
