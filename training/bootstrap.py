"""``python -m training bootstrap``: the embedded default from nothing.

Stages, each resumable and skipped once its result is on disk: paint the pools, autoencoder, look,
content judge, base, profile, readings and transform, adapter (and the population control), decoder,
release, report. How long each of them runs stands in ``budget.py``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoProcessor

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.request import Defaults
from ppd_serve.preferences.encoder import embedding_space
from ppd_serve.preferences.questions import Questioner
from ppd_serve.release import Manifest, Release, Source, load_release, write_release
from training import base, vlm
from training.backbone_stages import BackboneStages
from training.data.audience import taste_to_embedding
from training.data.choice_set import ChoiceSet
from training.data.fingerprint import FROZEN
from training.data.pool import PairSampler
from training.data.studio import assemble, caption_text
from training.data.users import people
from training.data.world import CAPTIONS, SIDE
from training.encoder_stages import EncoderStages
from training.evaluate.implicit import implicit_accuracy
from training.evaluate.report import markdown, write_report
from training.evaluate.run import CONTROLS, POPULATION, evaluate
from training.policy import Policy
from training.questions import fit_questioner, ship
from training.recipes import Recipe, recipe
from training.stage import Metrics
from training.train import PreferenceTraining, stage_of

CROWD, CHOICES_OF_EACH, _QUESTION_SEED = 1000, 32, 12
QUESTION_SCALE = 1.5  # what two pictures differ in is seen more clearly than at the default of 1


class Bootstrap(BackboneStages, EncoderStages):
    """The stages over one working directory; these are the last ones. In the order they run.

    What a stage hands on is rounded to fp16 as it ships, so the next one learns on the real thing.
    """

    # --- adapter ------------------------------------------------------------------------------

    def choices(self, split: str, backbone: Backbone) -> ChoiceSet:
        budget = self.budget
        train, dev = (budget.people, budget.readings), (budget.dev_people, 3)
        people, readings = train if split == "train" else dev
        return assemble(
            self.pool(split), self.latents(split) * self.scaling_factor(), caption_text(backbone),
            self.audience(split, people, readings), self.transform(), self.features(split),
        )  # fmt: skip

    def training(self, how: Recipe, split: str = "train") -> PreferenceTraining:
        backbone = self.backbone()
        choices = self.choices(split, backbone)
        policy = Policy(
            backbone, weights=how.weights, conditioning=how.conditioning,
            embedding_shape=choices.embedding_shape, seed=self.seed,
        )  # fmt: skip
        return PreferenceTraining(how, choices, policy)

    def adapter(self, *, population: bool = False) -> Path:
        name = "population" if population else "adapter"
        steps = self.budget.population_steps if population else self.budget.adapter_steps
        how = recipe(
            "studio-dpo" if population else "studio-ppd",
            steps=steps, batch=self.budget.adapter_batch, seed=self.seed, bf16=self.bf16,
        )  # fmt: skip

        def make(draft: Path) -> None:
            run, glance = self.training(how), min(256, self.budget.gate_pairs)
            unseen = PreferenceTraining(
                _judging(how), self.choices("dev", run.policy.backbone), run.policy
            )

            def peek(_: int) -> Metrics:
                return {"dev_accuracy": implicit_accuracy(unseen, pairs=glance).value}

            stage = stage_of(run, name, self.work)
            stage.peek, stage.peek_every = peek, 200
            self.train(stage)
            run.policy.save_adapter(draft, torch.float16)

        return self.once(f"{name}.safetensors", make)

    def gate(self) -> dict[str, float]:
        """Implicit accuracy on dev people's choices from one reading each (issue #2's gate)."""

        def make(draft: Path) -> None:
            adapter = self.adapter()
            self.or_later("gate")
            run = self.training(_judging(recipe("studio-ppd")), "dev")
            run.policy.load_adapter(adapter)
            found = {
                f"implicit_accuracy_{draws}_draws": implicit_accuracy(
                    run, pairs=self.budget.gate_pairs, draws=draws
                ).value
                for draws in (1, 8)
            }
            draft.write_text(json.dumps(found))

        return json.loads(self.once("gate.json", make).read_text())

    # --- release ------------------------------------------------------------------------------

    def release(self, out: Path, *, version: str) -> Path:
        """Put the parts together, fp16 safetensors in diffusers' and transformers' own formats."""
        unet, text = self.base()
        vae = self.vae()
        vae.register_to_config(scaling_factor=self.scaling_factor())
        draft = out.with_name(out.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        base.save_backbone(draft / "backbone", vae, text, base.new_tokenizer(), unet)
        (draft / "adapter").mkdir()
        shutil.copyfile(self.adapter(), draft / "adapter" / "ip_adapter.safetensors")
        shutil.copyfile(self.adapter(population=True), draft / "adapter" / POPULATION)
        save_file(self.controls(), draft / "adapter" / CONTROLS)
        encoder = draft / "encoder"
        self.vlm().half().save_pretrained(encoder)
        AutoProcessor.from_pretrained(self.work / "vlm-look").save_pretrained(encoder)
        self.transform().save(encoder / "transform.safetensors")
        (encoder / "encoder.json").write_text(vlm.ENCODER_CONFIG.model_dump_json(indent=1) + "\n")
        transform = self.transform()
        write_release(
            draft,
            Manifest(
                name="studio",
                version=version,
                backbone=Source(path="backbone"),
                adapter=Source(path="adapter/ip_adapter.safetensors"),
                encoder=Source(path="encoder"),
                embedding_space=embedding_space(encoder, dtype="float32", quantisation=None),
                embedding_shape=(transform.matrix.shape[0], transform.matrix.shape[-1]),
                defaults=Defaults(
                    sizes=((SIDE, SIDE),), steps=20, guidance_scale=3.0, sampler="ddim",
                    guidance_rescale=0.5, preference_scale=1.0,  # `tune`, 600 dev users
                ),
                example_prompts=[str(c) for c in CAPTIONS[::13]],
                training=self.provenance(),
                metrics=self.gate(),
            ),
        )  # fmt: skip
        ship(draft, self.questioner(load_release(draft)))
        shutil.rmtree(out, ignore_errors=True)
        draft.rename(out)
        return out

    def questioner(self, release: Release) -> Questioner:
        """Of training people's choices, nobody's hidden taste."""
        crowd = people("train", min(CROWD, self.budget.people))
        rng = np.random.default_rng(_QUESTION_SEED)
        chosen = PairSampler(self.pool()).draw(crowd, CHOICES_OF_EACH, rng)
        return fit_questioner(
            release, release.load_encoder(), self.features("train").flatten(1).float().numpy(),
            *chosen, pictures=self.budget.question_pictures, scale=QUESTION_SCALE,
        )  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        found = {"world": FROZEN, "seed": self.seed, "bf16": self.bf16, "budget": vars(self.budget)}
        if self.start:
            before = load_release(self.start).manifest
            found["from"] = {"version": before.version, "training": before.training}
        return found

    def report(self, release: Path) -> str:
        """Judge the release on dev people: ``report/`` in the working directory, as a page here."""
        self.or_later("report")
        users = self.budget.report_users
        found, outcomes, panel = evaluate(
            release, split="dev", users=users, side_users=users, work=self.work,
            pool_size=self.budget.dev_pool, full=False,
        )  # fmt: skip
        write_report(found, outcomes, panel, self.work / "report")
        return markdown(found)

    def controls(self) -> dict[str, np.ndarray]:
        """What only the evaluation needs: where a taste known exactly would lie in the space."""
        audience = self.audience("train", self.budget.people, self.budget.readings)
        return {"taste_to_embedding": taste_to_embedding(audience, self.transform())}


def _judging(how: Recipe) -> Recipe:
    """The same objective on plain VLM readings, as users come."""
    return how.model_copy(update={"batch": 32, "embedding_noise": 0.0, "known_until": None})
