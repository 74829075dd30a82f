"""Named recipes: each a function that returns a whole, typed training configuration.

``python -m training train --recipe studio-ppd`` and ``bootstrap`` both train from here. Constants
are the papers'; where a paper and its authors' code disagree, a comment says which was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
        if self.utility != "kahneman_tversky" and self.objective != "kto":
            raise ValueError("utility: only for the objective kto")
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch: {self.batch} is no multiple of micro_batch")
        if self.dropped_users and self.weights == "adapter":
            # Policy = reference for such a row and its gradient is exactly zero (PPD, point 2).
            raise ValueError("dropped_users: on a frozen backbone they only shrink the batch")
        if self.known_until and not self.known_until[0] < self.known_until[1]:
            raise ValueError("known_until: the second share must be the larger")
        return self

    @property
    def name(self) -> str:
        method = "sdpo" if self.sdpo_mu is not None else self.objective
        return f"{method}-{self.conditioning}"


def studio(objective: Objective, conditioning: Conditioning) -> Recipe:
    """Minutes on two cores: a network of 11 M parameters, an adapter of 0.2 M. β, the rate and the
    first timestep come from a spike on such a machine."""
    made = Recipe(
        objective=objective, conditioning=conditioning, beta=300.0, steps=1200, batch=24,
        learning_rate=1e-3, warmup=50, hold=0.4, betas=(0.9, 0.99), ema_decay=0.995,
        first_timestep=150,
    )  # fmt: skip
    if conditioning == "user":
        made = made.model_copy(update={"embedding_noise": 0.1, "known_until": (0.3, 0.6)})
    if objective == "rpo":  # with identity weights it is then DPO's loss
        made = made.model_copy(update={"beta": 150.0})
    if objective == "kto":
        # Single pictures: twice as many make an equal forward. The paper's γ = 0.8 is for pictures
        # of which most have lost somewhere; of the studio's as many were liked as not.
        made = made.model_copy(update={"batch": 48, "liked_share": 0.5})
    if objective == "sft":
        made = made.model_copy(update={"batch": 48, "learning_rate": 5e-4})
    if conditioning == "none":
        # The studio's people agree in so little that at 10⁻³ all but one objective ended at or
        # below the base by their own held-out measure (reports/methods-0.2.1).
        made = made.model_copy(update={"learning_rate": 1e-4})
    return made


def _pickapic(model: str, objective: Objective, conditioning: Conditioning) -> Recipe:
    large = model != "sd15"
    made = Recipe(
        objective=objective, conditioning=conditioning, weights="full", bf16=True,
        gradient_checkpointing=large, empty_prompts=0.2,  # the code's; the paper names no share
        # The paper's β for SD 1.5 is 2000, the launchers of its code say 5000 for both models; the
        # code is what others reproduced. It trains SD 1.5 by AdamW and SDXL by Adafactor.
        beta=5000.0, optimizer="adafactor" if large else "adamw", warmup=200 if large else 500,
        # The launchers again; the paper's formula, 2.048e-8·(2000/β), is a thousand times less and
        # taken for a misprint.
        learning_rate=2.05e-5, batch=2048, steps=2000,
    )  # fmt: skip
    if objective == "kto":  # the paper's; its script has β 1000 by default
        made = made.model_copy(update={"learning_rate": 1e-7, "steps": 10_000, "warmup": 1000})
    if objective == "rpo":  # no code was ever released; identity weights would give DPO's loss
        made = made.model_copy(update={"beta": 2500.0})
    if model == "stable-cascade" and conditioning == "none":
        # Nobody has published this one: 3.6 G weights are left alone, and a LoRA learns faster.
        made = made.model_copy(
            update={"weights": "lora", "lora_rank": 64, "optimizer": "adamw", "learning_rate": 1e-4}
        )
    if conditioning == "user":
        # PPD (as read in summaries of the paper): new layers only, AdamW at 1e-5, 768 pairs, one
        # epoch of 0.8 M. It publishes no β; the objective's own is taken.
        made = made.model_copy(
            update={"weights": "adapter", "optimizer": "adamw", "learning_rate": 1e-5, "batch": 768,
                    "steps": 1040, "warmup": 100, "embedding_noise": 0.1, "empty_prompts": 0.0}
        )  # fmt: skip
    return made


FAMILIES: dict[str, Callable[[Objective, Conditioning], Recipe]] = {
    "studio": studio,
    **{f"pickapic-{m}": partial(_pickapic, m) for m in ("sd15", "sdxl", "stable-cascade")},
}
METHODS: dict[str, tuple[Objective, Conditioning]] = {
    "ppd": ("dpo", "user"), "sft": ("sft", "none"), "dpo": ("dpo", "none"),
    "sdpo": ("dpo", "none"), "kto": ("kto", "none"), "rpo": ("rpo", "none"),
}  # fmt: skip
NAMES = tuple(f"{family}-{method}" for family in FAMILIES for method in METHODS)

# A rate belongs to what it moves. Where a recipe trains other weights than its own: the rates of
# diffusers' examples for LoRA and whole UNets, and PPD's for the branch.
_OF_OTHER_WEIGHTS: dict[str, dict[str, object]] = {
    "adapter": {"learning_rate": 1e-5, "optimizer": "adamw"},
    "lora": {"learning_rate": 1e-4, "optimizer": "adamw"},
    "full": {"learning_rate": 1e-5},
}
# Where more than the branch learns, nobody must stay somebody it knows (PPD, point 2). The paper
# names no share; a tenth is classifier-free guidance's for prompts.
_DROPPED_USERS = 0.1


def recipe(
    name: str,
    objective: Objective | None = None,
    conditioning: Conditioning | None = None,
    **changes: object,
) -> Recipe:
    """The recipe of that name: ``studio-ppd``, ``pickapic-sdxl-dpo`` …

    Another objective or conditioning than the name's takes the constants of the same family for
    it, and other ``weights`` a rate of their own. Raises KeyError with the names there are, and
    pydantic's ValidationError for bad changes.
    """
    if name not in NAMES:
        raise KeyError(f"{name!r} is none of {', '.join(NAMES)}")
    family, _, method = name.rpartition("-")
    own_objective, own_conditioning = METHODS[method]
    made = FAMILIES[family](objective or own_objective, conditioning or own_conditioning)
    if method == "sdpo" and made.objective == "dpo":
        made = made.model_copy(update={"sdpo_mu": 0.9})  # the paper's, at β 5000
    if (weights := changes.get("weights", made.weights)) != made.weights:
        made = made.model_copy(update=_OF_OTHER_WEIGHTS.get(str(weights), {}))
        if made.conditioning == "user" and weights != "adapter":
            made = made.model_copy(update={"dropped_users": _DROPPED_USERS})
    return Recipe(**(made.model_dump() | changes))
