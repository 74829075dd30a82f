"""What a step of PPD's training costs: the user branch on a frozen model, and a LoRA."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_parts.measure import finished, forget_peak, peak_gb
from benchmarks.gpu_parts.subject import DIM, PROMPT, Subject
from benchmarks.report import Figure, spread
from ppd_serve.diffusion.backbone import Backbone
from training.data.choice_set import ChoiceSet
from training.policy import Policy
from training.recipes import Recipe
from training.stage import Draws, Metrics
from training.train import PreferenceTraining, stage_of

Table = dict[str, Figure | float]
PEOPLE, PAIRS = 8, 64


def training_step(
    subject: Subject, batches: Sequence[int], turns: int, *, checkpointing: bool
) -> dict[str, Table]:
    """Seconds and memory of a whole step, at as many pairs as ``batches`` says. The first turn
    warms up. What is on the device stays there from batch to batch, as in training."""
    if subject.model.trained == "lora":  # as ``training.run`` has it: what is trained is float32
        subject.pipeline.to(torch.float32)
    policy = Policy(
        subject.backbone,
        weights=subject.model.trained,
        conditioning="user",
        embedding_shape=(1, DIM),
    )
    found: Table = {}
    for batch in batches:
        forget_peak(subject.device)
        how = Recipe(
            objective="dpo", conditioning="user", weights=subject.model.trained,
            steps=turns + 2, batch=batch, warmup=0, bf16=True, gradient_checkpointing=checkpointing,
        )  # fmt: skip
        took = _turns(PreferenceTraining(how, choices(subject), policy), subject.device)
        found[f"s a step, {batch} pairs"] = spread(took)
        found[f"pairs a second, {batch} pairs"] = batch / spread(took).value
        if (gb := peak_gb(subject.device)) is not None:
            found[f"memory, GB, {batch} pairs"] = gb
    recomputed = "with" if checkpointing else "without"
    what = {"lora": "LoRA and user branch", "adapter": "user branch"}[subject.model.trained]
    return {f"PPD, {what}, {recomputed} gradient checkpointing": found}


def choices(subject: Subject) -> ChoiceSet:
    """Of random latents: what they show costs the same."""
    rng = np.random.default_rng(0)
    backbone: Backbone = subject.backbone
    shape = backbone.latent_shape(*subject.defaults.sizes[0])
    with_empty = [backbone.encode(text) for text in (PROMPT, "")]
    text = {
        key: np.concatenate([told[key].float().cpu().numpy() for told in with_empty])
        for key in with_empty[0]
    }
    return ChoiceSet(
        user=np.arange(PAIRS) % PEOPLE,
        prompt=np.zeros(PAIRS, np.int64),
        preferred=np.arange(PAIRS),
        rejected=np.arange(PAIRS) + PAIRS,
        read_in=np.full(PAIRS, -1),
        latents=rng.standard_normal((2 * PAIRS, *shape)).astype(np.float16),
        text=text,
        readings=rng.standard_normal((PEOPLE, 1, DIM)).astype(np.float32),
        reading_user=np.arange(PEOPLE),
        reading_pairs=np.full(PEOPLE, 4),
    )


def _turns(run: PreferenceTraining, device: str) -> list[float]:
    """From one question for a loss to the next: forwards, backward, clipping and update."""
    began: list[float] = []

    def loss(step: int, draws: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        finished(device)
        began.append(time.perf_counter())
        yield from run.parts(step, draws)

    with tempfile.TemporaryDirectory() as place:
        stage = stage_of(run, "bench", Path(place))
        stage.loss, stage.save_every_s = loss, float("inf")
        if not stage.run():
            raise KeyboardInterrupt
    return [after - before for before, after in pairwise(began[1:])]
