"""One training run from the command line: alone, on several processes, or as a Ray Train job."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ppd_serve.errors import ReleaseError
from ppd_serve.release import Release, Source, load_release, write_release
from training import processes
from training.data.choice_set import ChoiceSet, NoChoices
from training.data.served import refuse_other_release
from training.data.studio import studio_set
from training.evaluate.run import POPULATION
from training.improvement import improvement
from training.lineage import lineage
from training.policy import Policy
from training.recipes import Recipe
from training.stage import OtherRun
from training.train import PreferenceTraining, stage_of

STUDIO = "studio"  # in place of a prepared directory: the studio world
HELD_OUT_BATCHES = (8, 240)  # at least and at most
STOP = "stop"  # a file in ``out``: save and end after this step, whichever process sees it
_TOLD = (OtherRun, NoChoices, ReleaseError)  # what whoever called is to be told as it is
_DRAWS = 4  # of noise and timestep for every held-out pair, as far as that goes


@dataclass(frozen=True)
class Job:
    """What, on what, from what, to where. ``data`` is a directory that ``prepare`` wrote, with
    ``train`` and ``dev`` in it, or ``studio``."""

    recipe: Recipe
    data: str
    release: Path
    out: Path
    work: Path
    device: str = "cpu"


def train(job: Job, told_to_stop: Callable[[], bool] = lambda: False) -> bool:
    """To the end, or to a SIGTERM or Ctrl-C; False if there is more to do. Resumes from ``out``, or
    raises OtherRun if what is there comes of another recipe, base or data. ReleaseError for data
    that was prepared with another release."""
    PartialState(cpu=job.device == "cpu")
    release = load_release(job.release)
    how = job.recipe
    # Trained weights stay float32, as the optimizer needs them; a frozen base may be halved.
    halved = how.bf16 and job.device == "cuda" and how.weights == "adapter"
    backbone = release.load_backbone(job.device, torch.bfloat16 if halved else torch.float32)
    choices = _choices(job, release, "train")
    policy = Policy(
        backbone, weights=how.weights, conditioning=how.conditioning,
        embedding_shape=choices.embedding_shape, lora_rank=how.lora_rank, seed=how.seed,
    )  # fmt: skip
    training = PreferenceTraining(how, choices, policy)
    stage = stage_of(training, how.name, job.out)
    stage.lineage = lineage(how, release, choices)
    stage.told_to_stop = told_to_stop
    if not stage.run():
        return False
    if processes.rank() == 0:
        policy.save(job.out)
        report: dict[str, Any] = {
            "recipe": how.model_dump(), "release": f"{release.name} {release.version}",
            "pairs": len(choices), "people": choices.users, "left_out": training.sampler.left_out,
            "last": stage.history[-1:], "held_out": held_out(job, release, policy),
        }  # fmt: skip
        if how.objective == "kto":
            report["likes"] = len(training.sampler.likes)
        if how.conditioning == "user" and how.weights == "adapter":
            write_new_release(release, job, policy, report["held_out"])
        # Last, because whoever finds it takes the run for finished.
        (job.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        (job.out / STOP).unlink(missing_ok=True)  # asked too late
    return True


def held_out(job: Job, release: Release, policy: Policy) -> dict[str, Any] | None:
    """The objective's own measure on choices of people that no training saw: how far the loss fell
    below the base's on the same draws, with its interval over these people. None where nobody, or
    too little of what the objective compares, is left to measure it on."""
    try:
        unseen = _choices(job, release, "dev")
    except FileNotFoundError:  # `prepare` found nobody for it
        return None
    if not len(unseen):
        return None
    plain = {
        "embedding_noise": 0.0, "known_until": None, "empty_prompts": 0.0, "dropped_users": 0.0,
    }  # fmt: skip
    how = job.recipe.model_copy(update={**plain, "batch": min(32, job.recipe.batch)})
    batches = int(np.clip(_DRAWS * len(unseen) // how.batch, *HELD_OUT_BATCHES))
    try:
        measured = PreferenceTraining(how, unseen, policy)
    except NoChoices:  # kto: these few people liked all they saw, or nothing
        return None
    found = improvement(measured, batches)
    told = {"improvement": found.interval(), **found.stats,
            "people": found.people, "batches": batches, "batch": how.batch}  # fmt: skip
    if (accuracy := found.accuracy()) is not None:
        told["implicit_accuracy"] = accuracy
    return told


def write_new_release(
    release: Release, job: Job, policy: Policy, measured: dict[str, Any] | None
) -> Release:
    """The release with its adapter replaced by the new one, or with its first: servable as it
    stands. It asks no questions until ``fit-questions`` has seen how its own pictures answer to the
    embedding."""
    path = job.out / "release"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(release.path, path)
    adapter = release.manifest.adapter
    if adapter is None or adapter.hub_id:
        adapter = Source(path="adapter/ip_adapter.safetensors")
    assert adapter.path is not None
    policy.save_adapter(path / adapter.path, torch.float16)
    # Of the old adapter's choices and steps: no control of the new one.
    (path / "adapter" / POPULATION).unlink(missing_ok=True)
    if (questions := release.manifest.questions) and questions.path:
        (path / questions.path).unlink()
    manifest = release.manifest.model_copy(
        update={
            "adapter": adapter,
            "questions": None,
            "version": f"{release.version}+{job.recipe.name}",
            "training": {
                "recipe": job.recipe.model_dump(),
                "from": {"version": release.version, "training": release.manifest.training},
            },
            "metrics": {"held_out": measured},
        }
    )
    return write_release(path, manifest)


def train_on_ray(job: Job, workers: int) -> bool:
    """The same run on ``workers`` processes that Ray Train starts, here or on a cluster.

    Ray Train trains in a thread, where no signal comes. A SIGTERM to this process is handed on as a
    file in ``out``, which all of them see; one to Ray's own processes ends them at once, and what
    is left then is the checkpoint of the last two minutes. From the main thread only.
    """
    import ray
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    packed: dict[str, Any] = asdict(job) | {
        "recipe": job.recipe.model_dump(),
        **{k: str(getattr(job, k).resolve()) for k in ("release", "out", "work")},
    }
    if job.data != STUDIO:
        packed["data"] = str(Path(job.data).resolve())
    if not ray.is_initialized():
        ray.init()  # before SIGTERM is ours: it takes the signal for itself
    trainer = TorchTrainer(
        _on_a_worker,
        train_loop_config=packed,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=job.device == "cuda"),
    )
    job.out.mkdir(parents=True, exist_ok=True)
    stop = job.out / STOP
    stop.unlink(missing_ok=True)  # of a run that died before it could
    before = signal.signal(signal.SIGTERM, lambda *_: stop.touch())
    try:
        trainer.fit()
    except Exception as error:
        for failure in getattr(error, "worker_failures", {}).values():  # Ray Train v2's
            if isinstance(other := getattr(failure, "_base_exc", failure), _TOLD):
                raise other from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        stopped = stop.exists()
        stop.unlink(missing_ok=True)
    return not stopped


def _on_a_worker(packed: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    places = {k: Path(packed[k]) for k in ("release", "out", "work")}
    job = Job(**(packed | places | {"recipe": Recipe(**packed["recipe"])}))
    train(job, (job.out / STOP).exists)


def _choices(job: Job, release: Release, split: str) -> ChoiceSet:
    if job.data == STUDIO:
        return studio_set(release, job.work, split)
    found = ChoiceSet.load(Path(job.data) / split)
    refuse_other_release(found.about, release, by_user=job.recipe.conditioning == "user")
    return found
