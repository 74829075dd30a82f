"""The whole recipe on a tiny budget: from nothing to a release that loads, stoppable anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release, load_release
from training import base, bootstrap
from training.__main__ import TO_BE_CONTINUED, app
from training.base import noise_schedule
from training.bootstrap import Bootstrap
from training.budget import BUDGETS
from training.carry import pack, unpack
from training.data.audience import Audience
from training.data.pool import PairSampler, Pool, png
from training.data.users import Tastes, people
from training.data.world import AXES, CAPTIONS
from training.evaluate.run import sweep_scales
from training.stage import Stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def release(work: Path) -> Release:
    """Made here, once, from nothing."""
    threads = torch.get_num_threads()
    try:
        path = Bootstrap(work, BUDGETS["tiny"], threads=2).release(work / "release", version="0")
    finally:
        torch.set_num_threads(threads)
    return load_release(path)


def test_it_ends_in_a_release_that_can_be_served(release: Release) -> None:
    release.check()
    manifest = release.manifest
    assert manifest.name == "studio"
    assert manifest.training["budget"] == dataclasses.asdict(BUDGETS["tiny"])
    assert set(manifest.metrics) == {"implicit_accuracy_1_draws", "implicit_accuracy_8_draws"}
    backbone = release.load_backbone()
    assert release.load_adapter(backbone) is not None
    encoder = release.load_encoder()
    assert encoder.space == manifest.embedding_space
    assert (encoder.rows, encoder.dim) == manifest.embedding_shape
    size = sum(f.stat().st_size for f in release.path.rglob("*") if f.is_file())
    assert size < 40e6
    for text in release.path.rglob("*.json"):
        assert str(release.path.parent) not in text.read_text(), text.name


def test_it_sees(work: Path, release: Release) -> None:
    """Style scores of new pictures are explained better than by their mean."""
    lines = [json.loads(x) for x in (work / "look.jsonl").read_text().splitlines()]
    explained = [lines[-1][f"r2_{axis}"] for axis in AXES]
    assert np.mean(explained) > 0.3


def test_the_base_and_the_autoencoder_learned(work: Path, release: Release) -> None:
    base = [json.loads(x) for x in (work / "base.jsonl").read_text().splitlines()]
    tiny, alphas = Bootstrap(work, BUDGETS["tiny"]), noise_schedule().alphas_cumprod
    z = tiny.latents() * tiny.scaling_factor()
    nothing = (alphas + (1 - alphas) * z.square().mean()).mean()  # v is never predicted but as 0
    assert base[-1]["mse"] < 0.75 * nothing
    core = [json.loads(x) for x in (work / "autoencoder.jsonl").read_text().splitlines()]
    assert core[-1]["psnr"] > 13


@pytest.mark.parametrize("readings", [1, 3])
def test_its_embeddings_speak_of_the_person(work: Path, release: Release, readings: int) -> None:
    """Beat chance, honestly: a linear map from embedding to taste, fitted on training people, ranks
    new people's further choices between new pictures. The map has no constant term, so what most
    people like cannot help it: zero is the average person."""
    tiny = Bootstrap(work, BUDGETS["tiny"])
    audience = tiny.audience("train", tiny.budget.people, tiny.budget.readings)
    new = tiny.audience("dev", 300, 3)

    def embedded(of: Audience) -> np.ndarray:
        read = Audience(of.tastes, of.states[:, :readings], of.pairs[:, :readings])
        return read.mean_embedding(tiny.transform())[:, 0]

    linear = audience.tastes.weight + 2 * audience.tastes.curvature * audience.tastes.level
    known = embedded(audience)
    ridge = 20 * np.eye(known.shape[1])
    to_taste = np.linalg.solve(known.T @ known + ridge, known.T @ (linear - linear.mean(0)))
    right = agreement(embedded(new) @ to_taste, new.tastes, tiny.pool("dev"))
    standard_error = right.std() / np.sqrt(len(right))
    assert right.mean() > 0.5 + 2 * standard_error


def agreement(guess: np.ndarray, tastes: Tastes, pool: Pool) -> np.ndarray:
    """Per person, the share of 40 further choices that the guessed linear taste foresees."""
    preferred, rejected = PairSampler(pool).draw(tastes, 40, np.random.default_rng(99))
    margin = ((pool.scores[preferred] - pool.scores[rejected]) * guess[:, None]).sum(-1)
    return (margin > 0).mean(1)


def test_the_shipped_encoder_reads_as_the_trainer_did(work: Path, release: Release) -> None:
    """Weights are rounded to fp16 on the way into the release; the embedding hardly notices."""
    tiny = Bootstrap(work, BUDGETS["tiny"])
    pool, reader = tiny.pool("dev"), tiny.reader(tiny.vlm(), "dev")
    preferred, rejected = PairSampler(pool).draw(people("dev", 3), 4, np.random.default_rng(5))
    with torch.no_grad():
        states, _ = reader.states(pool.captions[preferred], preferred, rejected)
    expected = tiny.transform()(states.numpy()[:, None])
    encoder: Encoder = release.load_encoder()
    for i in range(3):
        pairs = [
            Pair(str(CAPTIONS[pool.captions[w]]), png(pool.images[w]), png(pool.images[x]))
            for w, x in zip(preferred[i], rejected[i], strict=True)
        ]
        np.testing.assert_allclose(encoder.embed(pairs).embedding, expected[i], atol=0.1)


# --- stopping -------------------------------------------------------------------------------

SHORT = dataclasses.replace(
    BUDGETS["tiny"], pool=96, dev_pool=64, autoencoder_steps=3, autoencoder_batch=2,
    decoder_steps=3, look_steps=3, base_steps=3, base_batch=4, profile_steps=3, profile_batch=12,
    people=24, readings=2, dev_people=12, directions=2, adapter_steps=3, adapter_batch=4,
    population_steps=2, gate_pairs=4, question_pictures=4, report_users=3,
)  # fmt: skip


class Killed(BaseException):
    """As a signal would be: not an error that anybody handles."""


def digests(path: Path) -> dict[str, str]:
    return {
        f.relative_to(path).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(path.rglob("*"))
        if f.is_file()
    }


def test_killed_everywhere_and_continued_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the middle of every stage and in the middle of writing every result."""
    straight = Bootstrap(tmp_path / "straight", SHORT).release(tmp_path / "a", version="0")

    interrupted: set[str] = set()
    run, rename = Stage.run, Path.rename

    def stopping_run(stage: Stage, **how: float) -> bool:
        if stage.name not in interrupted:
            interrupted.add(stage.name)
            assert not run(stage, seconds=0)  # one step, a checkpoint, and then the end
            raise Killed
        return run(stage, **how)

    def stopping_rename(path: Path, target: Path) -> Path:
        if path.name.startswith("draft-") and path.name not in interrupted:
            interrupted.add(path.name)
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Stage, "run", stopping_run)
    monkeypatch.setattr(bootstrap.Path, "rename", stopping_rename)
    made = None
    for _ in range(60):
        try:
            made = Bootstrap(tmp_path / "broken", SHORT).release(tmp_path / "b", version="0")
            break
        except Killed:
            continue
    assert made is not None
    assert {"autoencoder", "look", "base", "profile", "adapter", "decoder"} <= interrupted
    assert {"draft-unet", "draft-vlm", "draft-readings-train.npz"} <= interrupted
    assert digests(made) == digests(straight)


def test_another_budget_is_not_mixed_in(work: Path, release: Release) -> None:
    more = dataclasses.replace(BUDGETS["tiny"], people=BUDGETS["tiny"].people + 1)
    with pytest.raises(ValueError, match="another budget"):
        Bootstrap(work, more).audience("train", more.people, more.readings)


# --- in pieces, on machines that forget --------------------------------------------------------


def test_carried_from_machine_to_machine_it_ends_and_can_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call has time for one step and a new working directory; only what is packed travels.
    Then the release itself is the start of another."""
    two_steps = dataclasses.replace(
        SHORT, autoencoder_steps=2, decoder_steps=2, look_steps=2, base_steps=2, profile_steps=2,
        adapter_steps=2, population_steps=2,
    )  # fmt: skip
    monkeypatch.setitem(BUDGETS, "two steps", two_steps)
    carry, first = tmp_path / "carry", tmp_path / "first"

    def call(machine: str, out: Path, *more: str) -> int:
        arguments = ["bootstrap", "--budget", "two steps", "--out", str(out), *more]
        found = CliRunner().invoke(app, [*arguments, "--work", str(tmp_path / machine)])
        assert found.exit_code in {0, TO_BE_CONTINUED}, found.output
        return found.exit_code

    calls = 0
    while call(
        f"machine-{calls}", first, "--minutes", "0", "--carry", str(carry), "--version", "7"
    ):
        assert first.exists() == (calls == 8)  # all that is left then is the report
        carried = {path.name for path in carry.iterdir()}
        assert not {"pool", "latents-train.pt", "features-train.pt"} & carried
        calls += 1
    assert calls == 9  # in the middle of each stage, before the gate and before the report
    load_release(first).check()
    report = tmp_path / f"machine-{calls}" / "report"
    assert json.loads((report / "report.json").read_text())["users"] == two_steps.report_users
    assert "personal" in (report / "report.md").read_text()
    swept = sweep_scales(
        first, users=2, work=report.parent, scales=(0.5, 2.0), pool_size=two_steps.dev_pool
    )
    assert {name: row["win_rate"]["count"] for name, row in swept.items()} == {"0.5": 2, "2": 2}

    assert call("machine-0", tmp_path / "second", "--from", str(first), "--bf16") == 0
    raised = load_release(tmp_path / "second")
    raised.check()
    assert raised.manifest.training["from"]["version"] == "7"
    same, moved = "backbone/vae/config.json", "backbone/unet/diffusion_pytorch_model.safetensors"
    assert digests(first)[same] == digests(raised.path)[same]  # the same latents ...
    assert digests(first)[moved] != digests(raised.path)[moved]  # ... and a base that went on


def test_a_stage_in_the_middle_travels_light(tmp_path: Path) -> None:
    """The default's own base, the largest stage there is, fits what may be carried (60 MiB)."""
    unet, text = base.new_unet(), base.new_text_encoder(base.new_tokenizer())
    latents = torch.randn(8, 8, 16, 16)
    stage = base.base_stage(
        unet, text, base.new_tokenizer(), latents, np.zeros(8, np.int64), tmp_path / "work",
        steps=9, batch=2,
    )  # fmt: skip
    assert not stage.run(seconds=0)
    assert pack(tmp_path / "work", tmp_path / "carry") < 60 * 2**20 - 10e6  # and the other parts
    trained = {k: v.clone() for k, v in unet.state_dict().items()}

    unpack(tmp_path / "carry", tmp_path / "elsewhere")
    stage.directory = tmp_path / "elsewhere"
    assert not stage.run(seconds=0)
    assert torch.load(stage.checkpoint, weights_only=True)["step"] == 2
    for name, value in unet.state_dict().items():
        torch.testing.assert_close(value, trained[name], atol=2e-3, rtol=1e-3)
