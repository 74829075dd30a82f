"""The stages that make the default's encoder: look, profile, readings and their transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, Idefics3ForConditionalGeneration

from ppd_serve.preferences.transform import BetweenUserTransform, fit_transform
from training import vlm, vlm_lessons
from training.data.audience import Audience, read_people
from training.data.users import people
from training.workbench import Workbench, load


class EncoderStages(Workbench):
    """In the order they run."""

    def seeing(self) -> Idefics3ForConditionalGeneration:
        def make(draft: Path) -> None:
            if self.start:
                AutoProcessor.from_pretrained(self.start / "encoder").save_pretrained(draft)
                load(Idefics3ForConditionalGeneration, self.start / "encoder").save_pretrained(
                    draft
                )
                return
            processor = vlm.new_processor()
            model = vlm.new_vlm(processor.tokenizer)
            vlm_lessons.whiten_patches(model, self.pool().images[:1500])
            model.to(self.device)
            self.train(vlm_lessons.look_stage(
                model, self.pool(), self.pool("dev"), self.work, steps=self.budget.look_steps
            ))  # fmt: skip
            processor.save_pretrained(draft)
            model.half().save_pretrained(draft)

        return load(Idefics3ForConditionalGeneration, self.once("vlm-look", make)).to(self.device)

    def features(self, name: str) -> torch.Tensor:
        def make(draft: Path) -> None:
            found = vlm.cache_features(self.seeing(), self.pool(name).images)
            torch.save(found, draft)

        return torch.load(self.once(f"features-{name}.pt", make), weights_only=True)

    def reader(self, model: Any, name: str) -> vlm.Reader:
        processor = AutoProcessor.from_pretrained(self.work / "vlm-look")
        return vlm.Reader(model, processor, self.features(name))

    def vlm(self) -> Idefics3ForConditionalGeneration:
        def make(draft: Path) -> None:
            model = self.seeing().train()
            self.train(vlm_lessons.profile_stage(
                self.reader(model, "train"), self.pool(), self.work,
                steps=self.budget.profile_steps, readings=self.budget.profile_batch,
                held_out=(
                    self.reader(model, "dev"), self.pool("dev"),
                    people("dev", self.budget.dev_people),
                ),
                trained=self.start is not None,
            ))  # fmt: skip
            model.half().save_pretrained(draft)

        return load(Idefics3ForConditionalGeneration, self.once("vlm", make)).to(self.device)

    def audience(self, split: str, count: int, readings: int) -> Audience:
        """People of a split with several readings each, of 1-4 pairs, mostly 4."""
        pool_name = "train" if split == "train" else "dev"

        def make(draft: Path) -> None:
            reader = self.reader(self.vlm(), pool_name)
            audience = read_people(reader, self.pool(pool_name), people(split, count), readings)
            with draft.open("wb") as file:
                np.savez(file, states=audience.states, pairs=audience.pairs)

        stored = np.load(self.once(f"readings-{split}.npz", make))
        if stored["pairs"].shape != (count, readings):
            raise ValueError(f"{self.work} holds readings of another budget")
        return Audience(people(split, count), stored["states"], stored["pairs"])

    def transform(self) -> BetweenUserTransform:
        def make(draft: Path) -> None:
            audience = self.audience("train", self.budget.people, self.budget.readings)
            fit_transform(audience.states[:, :, None], self.budget.directions).save(draft)

        return BetweenUserTransform.load(self.once("transform.safetensors", make))
