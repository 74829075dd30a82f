"""Named recipes: each a function that returns a whole, typed training configuration.

``python -m training train --recipe studio-ppd`` and ``bootstrap`` both train from here. Constants
are the papers'; where a paper and its authors' code disagree, a comment says which was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.objectives import Utility
from training.optimizer import OptimizerName
from training.policy import Conditioning, Weights

Objective = Literal["sft", "dpo", "kto", "rpo"]


class Recipe(BaseModel):
    """Everything that decides a run but its data and its place. ``batch`` counts pairs (pictures
    for kto) of one optimizer step over all processes, ``micro_batch`` those of one forward."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: Objective
    conditioning: Conditioning
    weights: Weights = "adapter"
    lora_rank: int = Field(8, ge=1)

    beta: float = Field(5000.0, gt=0)
    sdpo_mu: float | None = Field(None, ge=0, le=1)  # dpo: Diffusion-SDPO's scale on the loser
    utility: Utility = "kahneman_tversky"
    liked_share: float = Field(0.8, gt=0, lt=1)  # kto: γ
    tau: float = Field(0.5, gt=0)  # rpo: temperature
    cross_weight: Literal["inside", "outside"] = "outside"  # rpo

    steps: int = Field(2000, ge=1)
    batch: int = Field(2048, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    warmup: int = Field(500, ge=0)
    hold: float = Field(1.0, ge=0, le=1)  # share of the run at the full rate; 1 = constant
    optimizer: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = Field(0.0, ge=0, lt=1)
    bf16: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0

    first_timestep: int = Field(0, ge=0, le=999)
    empty_prompts: float = Field(0.0, ge=0, le=1)  # share trained without their prompt
    dropped_users: float = Field(0.0, ge=0, le=1)
    embedding_noise: float = Field(0.0, ge=0)
    pooled_readings: tuple[int, ...] = (1,)  # how many readings make a user, drawn from these
    # Where the set knows embeddings exactly: all of them up to the first share of the steps, none
    # from the second on, and on a straight line between the two in between.
    known_until: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.sdpo_mu is not None and self.objective != "dpo":
            raise ValueError("sdpo_mu: only for the objective dpo")
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch: {self.batch} is no multiple of micro_batch")
        if self.dropped_users and self.weights == "adapter":
            # Policy = reference for such a row and its gradient is exactly zero (PPD, point 2).
            raise ValueError("dropped_users: on a frozen backbone they only shrink the batch")
        return self

    @property
    def name(self) -> str:
        method = "sdpo" if self.sdpo_mu is not None else self.objective
        return f"{method}-{self.conditioning}"


def _studio(objective: Objective, conditioning: Conditioning, **changes: object) -> Recipe:
    """Minutes on two cores: one network of 11 M parameters, an adapter of 0.2 M. β, the rate and
    the first timestep come from a spike on this CPU, and the betas of AdamW from the base."""
    return Recipe(
        **dict(
            objective=objective, conditioning=conditioning, beta=300.0, steps=1200, batch=24,
            learning_rate=1e-3, warmup=50, hold=0.4, betas=(0.9, 0.99), ema_decay=0.995,
            first_timestep=150, embedding_noise=0.1 if conditioning == "user" else 0.0,
        ) | changes
    )  # fmt: skip


def studio_ppd() -> Recipe:
    """What the default release is made with."""
    return _studio("dpo", "user", known_until=(0.3, 0.6))


def studio_dpo() -> Recipe:
    return _studio("dpo", "none")


def studio_sdpo() -> Recipe:
    return _studio("dpo", "none", sdpo_mu=0.9)


def studio_kto() -> Recipe:
    """Single pictures: twice as many make an equal forward. γ: the paper's 0.8 is for pictures of
    which most lost somewhere; among two of one pair as many are liked as not."""
    return _studio("kto", "none", batch=48, liked_share=0.5)


def studio_rpo() -> Recipe:
    """β half of DPO's: with identity weights the two are then the same loss."""
    return _studio("rpo", "none", beta=150.0)


def studio_sft() -> Recipe:
    return _studio("sft", "none", batch=48, learning_rate=5e-4)


def _pickapic(model: str, objective: Objective, conditioning: Conditioning) -> Recipe:
    sdxl = model != "sd15"
    common: dict[str, object] = dict(
        objective=objective, conditioning=conditioning, bf16=True, gradient_checkpointing=sdxl,
        weights="full", micro_batch=None, empty_prompts=0.2,  # the code; the paper names no share
        # The paper has SD 1.5 by AdamW, SDXL by Adafactor; its β for SD 1.5 is 2000, the
        # launchers of its code say 5000 for both. The code is what others reproduced.
        beta=5000.0, optimizer="adafactor" if sdxl else "adamw", warmup=200 if sdxl else 500,
        # 2.05e-5 at 2,048 pairs, 2,000 steps in the launchers; the paper's formula,
        # 2.048e-8·(2000/β), is a thousand times less and taken for a misprint.
        learning_rate=2.05e-5, batch=2048, steps=2000,
    )  # fmt: skip
    if conditioning == "user":
        # PPD: new layers only, AdamW 1e-5 at 768 pairs, one epoch of 0.8 M pairs (as read in
        # summaries of the paper; it publishes no β, so Diffusion-DPO's).
        common |= dict(
            weights="adapter", optimizer="adamw", learning_rate=1e-5, batch=768, steps=1040,
            warmup=100, embedding_noise=0.1, empty_prompts=0.0,
        )  # fmt: skip
    if objective == "kto":  # the paper: β 5000, 10,000 steps at 1e-7; its script's β is 1000
        common |= dict(liked_share=0.8)
        if conditioning == "none":
            common |= dict(learning_rate=1e-7, steps=10_000, warmup=1000)
    if objective == "rpo":  # no code was released; β so that identity weights give DPO's loss
        common |= dict(beta=2500.0, tau=0.5)
    if model == "stable-cascade" and conditioning == "none":
        common |= dict(weights="lora", lora_rank=64, optimizer="adamw", learning_rate=1e-4)
    return Recipe(**common)


_OBJECTIVES: tuple[Objective, ...] = ("sft", "dpo", "kto", "rpo")
RECIPES: dict[str, Callable[[], Recipe]] = {
    "studio-ppd": studio_ppd,
    "studio-dpo": studio_dpo,
    "studio-sdpo": studio_sdpo,
    "studio-kto": studio_kto,
    "studio-rpo": studio_rpo,
    "studio-sft": studio_sft,
} | {
    f"pickapic-{model}-{name}": (
        lambda model=model, objective=objective, conditioning=conditioning: _pickapic(
            model, objective, conditioning
        )
    )
    for model in ("sd15", "sdxl", "stable-cascade")
    for name, objective, conditioning in [
        ("ppd", "dpo", "user"), *((o, o, "none") for o in _OBJECTIVES)
    ]
}  # fmt: skip
