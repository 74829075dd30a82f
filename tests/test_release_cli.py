"""``ppd release``: what it writes, what it refuses and in which words, what it tells."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig
from typer.testing import CliRunner

from ppd_serve.cli import app
from ppd_serve.errors import ReleaseError
from ppd_serve.release import MANIFEST, Release, load_release, write_release
from ppd_serve.release_build import source
from ppd_serve.settings import STUDIO
from tests.tiny_release import make_tiny_release
from tests.twins.encoders import CLIP_DIM, make_clip
from tests.twins.releases import TWINS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAMPLING = ["--size", "64x64", "--size", "32x64", "--steps", "4", "--guidance-scale", "3",
            "--guidance-rescale", "0.5", "--sampler", "ddim"]  # fmt: skip
NAMED = ["--name", "tiny", "--version", "1.0"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_tiny_release(tmp_path_factory.mktemp("published"))


@pytest.fixture
def parts(published: Release, tmp_path: Path) -> Path:
    """A directory of parts without a release.json."""
    place = tmp_path / "parts"
    shutil.copytree(published.path, place, ignore=shutil.ignore_patterns(MANIFEST))
    return place


@pytest.fixture
def release(published: Release, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published.path, tmp_path / "release"))


def ppd(*words: str | Path) -> Result:
    words = ("release", *map(str, words))
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, words, terminal_width=200)


def told(*words: str | Path) -> Any:
    done = ppd(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*words: str | Path) -> str:
    """The one line that says why."""
    done = ppd(*words)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    return line


def contents(directory: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}


# build


def test_builds_from_a_directory_of_parts(parts: Path, published: Release) -> None:
    done = ppd("build", parts, *NAMED, *SAMPLING, "--example-prompt", "a red house by the sea",
               "--example-prompt", "a cat on a hill at night")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert load_release(parts).manifest == published.manifest
    assert (
        f"embedding space {published.embedding_space} (as before, at first float32)" in done.stdout
    )


def test_what_is_not_given_stays(release: Path, published: Release) -> None:
    assert ppd("build", release, "--version", "1.1", "--steps", "9").exit_code == 0
    before, after = published.manifest, load_release(release).manifest
    assert (after.version, after.defaults.steps) == ("1.1", 9)
    assert after.defaults.sizes == before.defaults.sizes and after.name == before.name
    assert after.checksums == before.checksums


def test_how_the_encoder_is_run_is_part_of_the_space(release: Path, published: Release) -> None:
    assert ppd("build", release, "--dtype", "bfloat16").exit_code == 0
    bf16 = load_release(release).embedding_space
    assert ppd("build", release, "--dtype", "bfloat16", "--quantisation", "4bit").exit_code == 0
    assert len({bf16, load_release(release).embedding_space, published.embedding_space}) == 3


def test_how_the_encoder_is_run_stays_while_the_encoder_does(release: Path) -> None:
    assert ppd("build", release, "--dtype", "bfloat16", "--quantisation", "4bit").exit_code == 0
    before = load_release(release).manifest
    done = ppd("build", release, "--steps", "28")
    assert done.exit_code == 0, done.output
    after = load_release(release).manifest
    assert after.embedding_space == before.embedding_space and after.defaults.steps == 28
    assert after.embedding_shape == before.embedding_shape

    with (release / "encoder/encoder.json").open("a") as file:
        file.write("\n")
    assert "the encoder has changed: say --dtype" in refused("build", release)
    assert load_release(release).manifest == after
    assert ppd("build", release, "--quantisation", "4bit").exit_code == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([*SAMPLING], "name: Field required"),
        ([*NAMED, *SAMPLING[:-2]], "defaults.sampler: Field required"),
        ([*NAMED, *SAMPLING, "--adapter", "adapter/other.safetensors"], "other.safetensors is mis"),
        (
            [*NAMED, *SAMPLING, "--adapter", "../adapter.safetensors"],
            "must stay inside the release",
        ),
        ([*NAMED, *SAMPLING, "--encoder", "backbone"], "encoder.json is missing"),
        ([*NAMED, *SAMPLING, "--encoder-model", "encoder"], "must be like hf://owner/name"),
        ([*NAMED, "--encoder-model", "hf://some/vlm@" + COMMIT], "defaults.sizes: Field required"),
        ([*NAMED, *SAMPLING, "--backbone", "hf://sdxl"], "must be like hf://owner/name"),
    ],
)
def test_a_build_that_is_refused_writes_nothing(parts: Path, options: list[str], why: str) -> None:
    before = contents(parts)
    assert why in refused("build", parts, *options)
    assert contents(parts) == before


def test_a_build_of_nothing(tmp_path: Path) -> None:
    assert "backbone is missing" in refused("build", tmp_path / "new", *NAMED, *SAMPLING)
    assert not (tmp_path / "new").exists()
    assert ppd("build", tmp_path, "--size", "64").exit_code == 2


def test_a_refused_build_leaves_the_release_as_it_was(release: Path) -> None:
    before = (release / MANIFEST).read_bytes()
    (release / "old.pt").write_bytes(b"cos\nsystem\n")
    assert "old.pt is a pickle" in refused("build", release, "--version", "2.0")
    assert (release / MANIFEST).read_bytes() == before
    assert not list(release.glob(".*"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--quantisation", "4bit"], "encoder: a CLIP tower is not quantised"),
        (["--picture-pixels", "4096"], "encoder/encoder.json: picture_pixels: Extra inputs"),
    ],
)
def test_a_tower_takes_no_settings_of_a_vlm(parts: Path, options: list[str], why: str) -> None:
    shutil.rmtree(parts / "encoder")
    shutil.rmtree(parts / "adapter")
    (parts / "questions.safetensors").unlink()
    make_clip(parts / "encoder")
    before = contents(parts)
    assert why in refused("build", parts, *NAMED, *SAMPLING, *options)
    assert contents(parts) == before
    assert ppd("build", parts, *NAMED, *SAMPLING).exit_code == 0
    assert load_release(parts).load_encoder().rows == 1


# the hub


class Hub:
    """What the hub's client is asked; it knows one model, whose main branch is ``COMMIT``."""

    def model_info(self, repo: str, *, revision: str) -> SimpleNamespace:
        if (repo, revision) != ("some/sd", "main"):
            raise OSError(f"404: no {revision} of {repo}\nand much more")
        return SimpleNamespace(sha=COMMIT)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, published: Release) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(
        "diffusers.DiffusionPipeline.download", lambda *_, **__: str(published.backbone_path)
    )


def test_parts_on_the_hub_are_pinned(hub: None, parts: Path) -> None:
    shutil.rmtree(parts / "backbone")
    done = ppd("build", parts, *NAMED, *SAMPLING, "--backbone", "hf://some/sd")
    assert done.exit_code == 0, done.output
    manifest = load_release(parts).manifest
    assert str(manifest.backbone) == f"hf://some/sd@{COMMIT}"
    assert not any(file.startswith("backbone") for file in manifest.checksums)
    assert ppd("check", parts).exit_code == 0


def test_a_commit_is_pinned_already(hub: None) -> None:
    made = source(f"hf://h94/IP-Adapter@{COMMIT}/sdxl_models/ip-adapter_sdxl.safetensors")
    assert (made.hub_id, made.revision) == ("h94/IP-Adapter", COMMIT)
    assert made.path == "sdxl_models/ip-adapter_sdxl.safetensors"


def test_an_encoder_on_the_hub(
    hub: None, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CLIP tower that is not in the release, as on day one; and a VLM nobody has fitted yet."""
    towers = {"clip": make_clip(tmp_path / "tower"), "vlm": parts / "encoder"}
    asked: list[tuple[str, str]] = []

    def snapshot(repo: str, *, revision: str, allow_patterns: object) -> str:
        asked.append((repo, revision))
        return str(towers[repo.partition("/")[2]].parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    shutil.rmtree(parts / "adapter")
    (parts / "questions.safetensors").unlink()
    base = tmp_path / "base"
    base.mkdir()
    shutil.copytree(parts / "backbone", base / "backbone")
    words = ["build", base, *NAMED, *SAMPLING, "--encoder-model"]

    done = ppd(*words, f"hf://some/clip@{COMMIT}/tower")
    assert done.exit_code == 0, done.output
    made = load_release(base)
    said = json.loads((base / "encoder/encoder.json").read_text())
    assert said == {"model": {"hub_id": "some/clip", "revision": COMMIT, "path": "tower"}}
    assert made.load_encoder().space == made.embedding_space
    assert made.manifest.embedding_shape == (1, CLIP_DIM)
    assert ("some/clip", COMMIT) in asked
    tower = told("describe", base)["parts"]["encoder"]["models"][0]
    assert tower["parameters"] == sum(p.numel() for p in made.load_encoder().model.parameters())

    done = ppd(*words, f"hf://some/vlm@{COMMIT}/encoder", "--picture-pixels", "4096")
    assert done.exit_code == 0, done.output
    assert "no transform yet" in done.stdout
    assert load_release(base).embedding_space is None
    assert json.loads((base / "encoder/encoder.json").read_text())["picture_pixels"] == 4096

    said["model"]["revision"] = "main"
    (base / "encoder/encoder.json").write_text(json.dumps(said))
    assert refused("build", base) == "encoder/encoder.json: its model is pinned to no commit"


@pytest.mark.parametrize("path", ["/etc", "../..", "image_encoder/../../elsewhere"])
def test_an_encoder_on_the_hub_stays_in_its_repository(release: Path, path: str) -> None:
    model = {"hub_id": "some/clip", "revision": COMMIT, "path": path}
    (release / "encoder/encoder.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ReleaseError, match=r"model: .* must stay inside"):
        load_release(release).load_encoder()
    assert "model: path: Value error, must stay inside" in refused("build", release)


def test_describing_a_hub_encoder_fetches_no_weights(
    release: Path, published: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(published.path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["encoder"] = {"hub_id": "some/vlm", "revision": COMMIT, "path": "encoder"}
    (release / MANIFEST).write_text(json.dumps(manifest))
    (model,) = told("describe", release)["parts"]["encoder"]["models"]
    assert model["parameters"] > 0
    assert asked == ["encoder*.json"]


def test_what_the_hub_does_not_know_is_named(hub: None, tmp_path: Path) -> None:
    words = ["build", tmp_path / "new", *NAMED, *SAMPLING, "--backbone", "hf://some/sd@v9"]
    assert refused(*words).endswith("of some/sd@v9: 404: no v9 of some/sd")
    assert not (tmp_path / "new").exists()


def test_a_branch_is_no_pin(release: Path) -> None:
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["backbone"] = {"hub_id": "some/sd", "revision": "main"}
    (release / MANIFEST).write_text(json.dumps(manifest))
    assert "backbone: hf://some/sd@main is pinned to no commit" in refused("check", release)


def test_a_part_that_cannot_be_fetched_is_named(
    release: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["encoder"] = {"hub_id": "some/vlm", "revision": COMMIT, "path": "encoder"}
    (release / MANIFEST).write_text(json.dumps(manifest))
    assert f"hf://some/vlm@{COMMIT}/encoder cannot be fetched" in refused("build", release)
    described = told("describe", release)["parts"]["encoder"]
    assert described == {"place": f"hf://some/vlm@{COMMIT}/encoder", "models": None}


# check


@pytest.mark.parametrize("directory", ["tiny", "studio"])
def test_a_good_one(published: Release, directory: str) -> None:
    done = ppd("check", STUDIO if directory == "studio" else published.path)
    assert (done.exit_code, done.stdout) == (0, "ok\n")


def test_a_program_says_no_more(published: Release) -> None:
    """Than the line that is tested everywhere else, whatever libraries have to say."""
    program = Path(sys.executable).with_name("ppd")
    done = subprocess.run(
        [program, "release", "check", published.path], check=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_no_release_at_all(tmp_path: Path) -> None:
    for command in ("check", "describe"):
        assert "holds no release.json" in refused(command, tmp_path)
    assert "holds no release.json" in refused("diff", STUDIO, tmp_path)


def test_a_pickle(release: Path) -> None:
    (release / "backbone/unet/diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert refused("check", release).startswith("backbone/unet/diffusion_pytorch_model.bin is a pi")


@pytest.mark.parametrize("part", ["backbone", "adapter/ip_adapter.safetensors", "encoder"])
def test_a_missing_part(release: Path, part: str) -> None:
    shutil.rmtree(release / part) if (release / part).is_dir() else (release / part).unlink()
    assert refused("check", release) == f"{part} is missing"


@pytest.mark.parametrize("command", ["build", "check"])
@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("backbone/vae", "backbone/vae is missing"),
        ("backbone/tokenizer", "backbone/tokenizer is missing"),
        ("backbone/unet/diffusion_pytorch_model.safetensors", "backbone/unet holds no weights"),
        ("encoder/model.safetensors", "encoder holds no weights"),
    ],
)
def test_a_part_of_a_part_that_was_never_there(
    release: Path, command: str, gone: str, why: str
) -> None:
    """Nor has a checksum."""
    shutil.rmtree(release / gone) if (release / gone).is_dir() else (release / gone).unlink()
    if command == "check":
        write_release(release, load_release(release).manifest)
    before = (release / MANIFEST).read_bytes()
    assert refused(command, release, *["--dtype", "float32"] * (command == "build")).startswith(why)
    assert (release / MANIFEST).read_bytes() == before


def test_weights_in_many_files(release: Path) -> None:
    """As large models have them; all that the list names must be there."""
    unet = release / "backbone/unet"
    whole = unet / "diffusion_pytorch_model.safetensors"
    names = [f"diffusion_pytorch_model-{n}.safetensors" for n in (1, 2)]
    state = load_file(whole)
    keys = list(state)
    for name, half in zip(names, (keys[::2], keys[1::2]), strict=True):
        save_file({key: state[key] for key in half}, unet / name)
    listed = {key: names[n % 2] for n, key in enumerate(keys)}
    (unet / f"{whole.name}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": listed})
    )
    whole.unlink()
    assert ppd("build", release).exit_code == 0
    load_release(release).load_backbone()
    (unet / names[1]).unlink()
    assert refused("build", release) == f"backbone/unet/{names[1]} is missing"


def test_parts_that_nobody_loads_may_be_missing(release: Path) -> None:
    index = json.loads((release / "backbone/model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (release / "backbone/model_index.json").write_text(json.dumps(index))
    assert ppd("build", release).exit_code == 0
    load_release(release).load_backbone()


def test_a_changed_file(release: Path) -> None:
    with (release / "encoder/encoder.json").open("a") as file:
        file.write("\n")
    line = refused("check", release)
    assert line == "encoder/encoder.json has changed since the release was written"


def test_an_adapter_of_another_backbone(release: Path) -> None:
    adapter = release / "adapter/ip_adapter.safetensors"
    state = load_file(adapter)
    key = "ip_adapter.1.to_k_ip.weight"
    save_file(state | {key: torch.zeros(7, state[key].shape[1])}, adapter)
    before = (release / MANIFEST).read_bytes()
    line = refused("build", release)
    assert line.startswith("adapter/ip_adapter.safetensors: ") and "another backbone" in line
    assert (release / MANIFEST).read_bytes() == before


# what is broken is told in one line


def test_a_torn_adapter(release: Path) -> None:
    adapter = release / "adapter/ip_adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:100])
    assert refused("describe", release).startswith("adapter: its size cannot be computed: ")


@pytest.mark.parametrize("file", ["encoder/tokenizer.json", "questions.safetensors"])
def test_a_listed_file_that_is_missing(release: Path, file: str) -> None:
    (release / file).unlink()
    assert file in refused("describe", release)


@pytest.mark.parametrize("path", ["../x", "/etc/x"])
def test_a_hub_part_stays_in_its_repository(release: Path, path: str) -> None:
    line = refused("build", release, "--adapter", f"hf://a/b@{COMMIT}/{path}")
    assert line.startswith(f"hf://a/b@{COMMIT}/{path}: ") and "must stay inside" in line


@pytest.mark.parametrize("torn", ['{"model": {', "[]", '"text"'])
def test_a_torn_encoder_json(release: Path, torn: str) -> None:
    (release / "encoder/encoder.json").write_text(torn)
    assert "encoder.json: " in refused("build", release, "--picture-pixels", "4096")
    assert "encoder.json: " in refused("build", release)
    assert (release / "encoder/encoder.json").read_text() == torn


def test_a_place_that_cannot_be_read(release: Path) -> None:
    """A directory where a file should be."""
    (release / MANIFEST).unlink()
    (release / MANIFEST).mkdir()
    for command in ("build", "check", "describe"):
        assert MANIFEST in refused(command, release)
    (release / "encoder/encoder.json").unlink()
    (release / "encoder/encoder.json").mkdir()
    assert "encoder.json" in refused("build", release, "--picture-pixels", "4096")


# describe


def test_describes_what_it_is_made_of(published: Release) -> None:
    unet = published.load_backbone().denoiser
    encoder = published.load_encoder().model
    found = told("describe", published.path)
    models = {m["name"]: m for part in found["parts"].values() for m in part["models"]}
    assert models["unet"]["parameters"] == sum(p.numel() for p in unet.parameters())
    assert models["encoder"]["parameters"] == sum(p.numel() for p in encoder.parameters())
    assert models["unet"]["memory"]["bfloat16"] == 2 * models["unet"]["parameters"]
    adapter = load_file(published.path / "adapter/ip_adapter.safetensors")
    assert models["adapter"]["parameters"] == sum(x.numel() for x in adapter.values())
    assert found["embedding"] == {"space": published.embedding_space, "shape": [2, 12]}
    assert found["defaults"]["steps"] == 4
    on_disk = found["parts"]["adapter"]
    assert on_disk["files"] == 1
    assert on_disk["bytes"] == (published.path / on_disk["place"]).stat().st_size


def test_describes_the_shipped_one_for_people() -> None:
    done = ppd("describe", STUDIO)
    assert done.exit_code == 0, done.output
    for word in ("studio 0.2", "unet", "10.8 M", "computed", "0949ff0906d535c3", "ddim", "metrics"):
        assert word in done.stdout


@pytest.mark.parametrize("name", TWINS)
def test_describes_every_family(name: str, tmp_path: Path) -> None:
    made = TWINS[name](tmp_path, make_encoder=None)
    backbone = made.load_backbone()
    models = told("describe", tmp_path)["parts"]["backbone"]["models"]
    found = {model["name"]: model["parameters"] for model in models}
    stages = [backbone.denoiser, *(stage.denoiser for stage in backbone.later)]
    counted = [sum(p.numel() for p in denoiser.parameters()) for denoiser in stages]
    assert set(counted) < set(found.values())
    texts = {"sd15": 1, "sdxl": 2, "stable_cascade": 1}[name]
    assert sum("text_encoder" in part for part in found) == texts
    assert len(found) == len(stages) + texts + 1, "and an autoencoder"


def test_describes_models_that_a_pipeline_defines_itself(release: Path) -> None:
    """As Stable Diffusion's safety checker, of transformers' kind, which nobody loads."""
    before = told("describe", release)["parts"]["backbone"]["models"]
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tower, projection_dim=8))
    index = json.loads((release / "backbone/model_index.json").read_text())
    for name in ("safety_checker", "another"):
        checker.config.save_pretrained(release / "backbone" / name)
        index[name] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (release / "backbone/model_index.json").write_text(json.dumps(index))
    found = told("describe", release)["parts"]["backbone"]["models"]
    (more,) = [model for model in found if model not in before]
    assert len(found) == len(before) + 1 and more["name"] == "another"
    assert more["parameters"] == sum(p.numel() for p in checker.parameters())


# diff


def test_equal_releases(release: Path, published: Release) -> None:
    assert told("diff", published.path, release) == []
    assert ppd("diff", published.path, release).stdout == "no difference\n"


def test_what_a_change_means(release: Path, published: Release) -> None:
    with (release / "encoder/encoder.json").open("a") as file:
        file.write("\n")
    (release / "questions.safetensors").unlink()
    manifest = json.loads((release / MANIFEST).read_text())
    del manifest["questions"]
    (release / MANIFEST).write_text(json.dumps(manifest))
    assert ppd("build", release, "--steps", "5", "--dtype", "float32").exit_code == 0

    found = {each["what"]: each for each in told("diff", published.path, release)}
    assert set(found) == {
        "questions", "embedding_space", "defaults.steps", "encoder/encoder.json",
        "questions.safetensors",
    }  # fmt: skip
    assert "must be made again" in found["embedding_space"]["means"]
    assert (found["defaults.steps"]["before"], found["defaults.steps"]["after"]) == (4, 5)
    assert "another encoder" in found["encoder/encoder.json"]["means"]
    assert found["questions"]["after"] is None
    assert "must be made again" in " ".join(ppd("diff", published.path, release).stdout.split())


def test_names_are_whole_where_there_is_little_room(published: Release) -> None:
    narrow = CliRunner(env={"COLUMNS": "60"})
    done = narrow.invoke(app, ["release", "diff", str(published.path), str(STUDIO)])
    cells = [line.split("│")[1].strip() for line in done.stdout.splitlines() if "│" in line]
    assert "backbone/unet/diffusion_pytorch_model.safetensors" in "".join(cells)


def test_another_release_altogether(published: Release) -> None:
    found = {each["what"]: each for each in told("diff", published.path, STUDIO)}
    assert found["name"]["after"] == "studio"
    assert "all pictures change" in found["backbone/unet/config.json"]["means"]
    assert "those without stay" in found["adapter/ip_adapter.safetensors"]["means"]
    assert {"embedding_shape", "defaults.sizes", "metrics.implicit_accuracy_8_draws"} <= set(found)
