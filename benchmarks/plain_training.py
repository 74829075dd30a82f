"""Diffusion-DPO as it is commonly trained, with a user branch: what the trainer is measured
against."""

from __future__ import annotations

import copy
import io
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release
from training.autoencoder import to_input
from training.data.world import SIDE
from training.recipes import Recipe
from training.train import Samples


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
