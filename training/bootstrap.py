"""``python -m training bootstrap``: the embedded default from nothing.

Stages, each resumable and skipped once its result is on disk: paint the pools, autoencoder, look,
content judge, base, profile, readings and transform, adapter (and the population control), decoder,
release, report. How long each of them runs stands in ``budget.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import AutoProcessor, CLIPTextModel, Idefics3ForConditionalGeneration

from ppd_serve.diffusion.backbone import Backbone, load_backbone
from ppd_serve.diffusion.request import Defaults
from ppd_serve.preferences.encoder import embedding_space
from ppd_serve.preferences.questions import Questioner
from ppd_serve.preferences.transform import BetweenUserTransform, fit_transform
from ppd_serve.release import Manifest, Release, Source, load_release, write_release
from training import autoencoder, base, vlm
from training.budget import Budget
from training.data.audience import Audience, read_people, taste_to_embedding
from training.data.choice_set import ChoiceSet
from training.data.fingerprint import FROZEN
from training.data.pool import PairSampler, Pool, load_pool
from training.data.studio import assemble, caption_text
from training.data.users import people
from training.data.world import CAPTIONS, SIDE
from training.evaluate.implicit import implicit_accuracy
from training.evaluate.report import markdown, write_report
from training.evaluate.run import CONTROLS, POPULATION, evaluate
from training.policy import Policy
from training.questions import fit_questioner, ship
from training.recipes import Recipe, recipe
from training.stage import Metrics, Stage
from training.train import PreferenceTraining, stage_of

CROWD, CHOICES_OF_EACH, _QUESTION_SEED = 1000, 32, 12


class OutOfTime(Exception):
    """The given minutes are over; everything so far is in the working directory."""


class Bootstrap:
    """The stages over one working directory. Methods are in the order they run.

    What a stage hands on is rounded to fp16 as it ships, so the next one learns on the real thing.

    ``start``: a release whose latents and eyes are kept, and whose base, decoder and language part
    train on from where they are, so that the shipped default can be raised step by step.
    """

    def __init__(
        self,
        work: Path,
        budget: Budget,
        *,
        seed: int = 0,
        threads: int | None = None,
        start: Path | None = None,
        bf16: bool = False,
        device: str = "cpu",
        minutes: float | None = None,
    ) -> None:
        self.work, self.budget, self.seed, self.start = work, budget, seed, start
        self.bf16, self.device = bf16, device
        self.worked = False  # a call gets at least one thing done, however short its time
        self.spent: list[Path] = []  # checkpoints that nobody needs once their result is written
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        if threads:
            torch.set_num_threads(threads)
        work.mkdir(parents=True, exist_ok=True)

    def train(self, stage: Stage) -> None:
        """To the end, or as far as the minutes go."""
        left = None if self.deadline is None else self.deadline - time.monotonic()
        self.worked = True
        if not stage.run(seconds=left):
            raise OutOfTime(stage.name)
        self.spent.append(stage.checkpoint)

    def or_later(self, name: str) -> None:
        """Leave what cannot be interrupted to the next call, if this one is out of time."""
        if self.worked and self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime(name)
        self.worked = True

    # --- data ---------------------------------------------------------------------------------

    def pool(self, name: str = "train") -> Pool:
        count = self.budget.pool if name == "train" else self.budget.dev_pool
        return load_pool(self.work / "pool", name, count, workers=os.cpu_count() or 1)

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file or directory ``name``; unless it is there, ``make`` writes it, all or nothing.

        Each result has its own random numbers, whether it is made alone or on the way to another.
        """
        path = self.work / name
        if not path.exists():
            draft = path.with_name(f"draft-{name}")
            shutil.rmtree(draft, ignore_errors=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                make(draft)
            draft.rename(path)
            while self.spent:
                self.spent.pop().unlink(missing_ok=True)  # nothing to train writes none
        return path

    # --- backbone -----------------------------------------------------------------------------

    def vae_core(self) -> AutoencoderTiny:
        def make(draft: Path) -> None:
            if self.start:
                shutil.copytree(self.start / "backbone" / "vae", draft)
                return
            vae = autoencoder.new_autoencoder()
            self.train(autoencoder.core_stage(
                vae, self.pool().images, self.pool("dev").images[:32], self.work,
                steps=self.budget.autoencoder_steps, batch=self.budget.autoencoder_batch,
                seed=self.seed, device=self.device,
            ))  # fmt: skip
            vae.half().save_pretrained(draft)

        return load(AutoencoderTiny, self.once("vae-core", make))

    def latents(self, name: str = "train") -> torch.Tensor:
        """Raw latents of a pool; times ``scaling_factor`` before use."""

        def make(draft: Path) -> None:
            vae = self.vae_core().to(self.device)
            torch.save(base.encode_pool(vae, self.pool(name).images), draft)

        return torch.load(self.once(f"latents-{name}.pt", make), weights_only=True)

    def scaling_factor(self) -> float:
        return float(1 / self.latents().std())

    def base(self) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        def make(draft: Path) -> None:
            latents = self.latents() * self.scaling_factor()
            tokenizer = base.new_tokenizer()
            text, unet = base.new_text_encoder(tokenizer), base.new_unet()
            if self.start:
                text = load(CLIPTextModel, self.start / "backbone" / "text_encoder")
                unet = load(UNet2DConditionModel, self.start / "backbone" / "unet")
            self.train(base.base_stage(
                unet, text, tokenizer, latents, self.pool().captions, self.work,
                steps=self.budget.base_steps, batch=self.budget.base_batch, seed=self.seed,
                bf16=self.bf16, device=self.device,
            ))  # fmt: skip
            text.half().save_pretrained(self.work / "text")
            unet.half().save_pretrained(draft)

        unet = load(UNet2DConditionModel, self.once("unet", make))
        return unet, load(CLIPTextModel, self.work / "text")

    def vae(self) -> AutoencoderTiny:
        def make(draft: Path) -> None:
            vae = self.vae_core()
            self.train(autoencoder.decoder_stage(
                vae, self.pool().images, self.pool("dev").images[:32], self.work,
                steps=self.budget.decoder_steps, batch=self.budget.autoencoder_batch,
                seed=self.seed, device=self.device,
            ))  # fmt: skip
            vae.half().save_pretrained(draft)

        return load(AutoencoderTiny, self.once("vae", make))

    # --- encoder ------------------------------------------------------------------------------

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
            vlm.whiten_patches(model, self.pool().images[:1500])
            model.to(self.device)
            self.train(vlm.look_stage(
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
            self.train(vlm.profile_stage(
                self.reader(model, "train"), self.pool(), self.work,
                steps=self.budget.profile_steps,
                held_out=(self.reader(model, "dev"), self.pool("dev"), people("dev", 300)),
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

    # --- adapter ------------------------------------------------------------------------------

    def backbone(self) -> Backbone:
        """The base as it ships but for the decoder, which no training of the adapter looks at."""

        def make(draft: Path) -> None:
            unet, text = self.base()
            vae = self.vae_core()
            vae.register_to_config(scaling_factor=self.scaling_factor())
            base.save_backbone(draft, vae, text, base.new_tokenizer(), unet)

        return load_backbone(self.once("backbone", make), self.device)

    def choices(self, split: str, backbone: Backbone) -> ChoiceSet:
        train = split == "train"
        people, readings = (self.budget.people, self.budget.readings) if train else (300, 3)
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
            run = self.training(how)
            unseen = PreferenceTraining(
                _judging(how), self.choices("dev", run.policy.backbone), run.policy
            )

            def peek(_: int) -> Metrics:
                return {"dev_accuracy": implicit_accuracy(unseen, pairs=256).value}

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
                    guidance_rescale=0.5, preference_scale=1.5,  # `tune`, 200 dev users
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
            *chosen, pictures=self.budget.question_pictures,
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
        write_report(found, outcomes, panel.captions, self.work / "report")
        return markdown(found)

    def controls(self) -> dict[str, np.ndarray]:
        """What only the evaluation needs: where a taste known exactly would lie in the space."""
        audience = self.audience("train", self.budget.people, self.budget.readings)
        return {"taste_to_embedding": taste_to_embedding(audience, self.transform())}


def load(model: Any, path: Path) -> Any:
    """A model as it ships, in float32 again."""
    return model.from_pretrained(path).float().eval()


def _judging(how: Recipe) -> Recipe:
    """The same objective on plain VLM readings, as users come."""
    return how.model_copy(update={"batch": 32, "embedding_noise": 0.0, "known_until": None})
