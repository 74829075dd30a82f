"""A run on planted choices, as its own process: started by ``torchrun``, killed by the tests.

python -m tests.training.run_planted OUT OBJECTIVE BATCH STEPS [SAVE_EVERY_S]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from tests.training.planted import planted_backbone, planted_choices
from training import processes
from training.policy import Policy
from training.recipes import Recipe
from training.train import PreferenceTraining, stage_of


def main(out: str, objective: str, batch: str, steps: str, save_every_s: str = "1e9") -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    how = Recipe(
        objective=objective, conditioning="user", beta=60.0, steps=int(steps), batch=int(batch),
        learning_rate=5e-3, warmup=3, liked_share=0.5, embedding_noise=0.1, seed=3, ema_decay=0.5,
    )  # fmt: skip
    backbone = planted_backbone()
    choices = planted_choices(backbone)
    policy = Policy(
        backbone, weights="adapter", conditioning="user", embedding_shape=choices.embedding_shape
    )
    stage = stage_of(PreferenceTraining(how, choices, policy), "planted", Path(out))
    stage.save_every_s = float(save_every_s)
    finished = stage.run()
    if processes.rank() == 0:
        torch.save(policy.modules["adapter"].state_dict(), Path(out) / "final.pt")
    print("finished" if finished else f"stopped {os.getpid()}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
