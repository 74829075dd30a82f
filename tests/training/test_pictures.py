"""Pictures for people of a file of choices: nothing judged was read, and every count holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ppd_serve.diffusion.engine import Engine
from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.pair_encoder import open_picture
from ppd_serve.release import load_release, write_release
from tests.tiny_encoder import tiny_vlm
from tests.tiny_release import make_tiny_release
from tests.training.shards import row, write_shard
from tests.training.studio import small_pool
from tests.training.tiny_clip import make_tiny_clip
from training.__main__ import app
from training.data.choices import Choice, Skipped, choice_of
from training.data.pickapic import PickAPic
from training.data.pool import PairSampler
from training.data.readings import split_of
from training.data.rows import studio_rows, write_rows
from training.data.unread import Person, people_of
from training.data.users import people as sample
from training.evaluate.pictures import (
    CONDITIONS,
    Judges,
    Shown,
    answered,
    compared,
    embeddings_of,
    judge_release,
    judged,
    named_scorers,
    requests,
    summary,
)
from training.evaluate.pictures_report import pictures_markdown
from training.evaluate.scorers import load_scorer
from training.evaluate.statistics import clustered_rate, wilson
from training.evaluate.studio import draw
from training.evaluate.vlm_judge import Question, VlmJudge, in_both_orders
from training.studio_commands import DEFAULT_RELEASE
from training.vlm import new_processor


def choice(number: int, user: str, prompt: str) -> Choice:
    return replace(choice_of(row(number)), user=user, prompt=prompt)


# --- who, and what is drawn for them ---------------------------------------------------------


def test_prompts_are_of_later_choices_and_were_not_read() -> None:
    told = ["a fox", "A Hat", "a  Fox", "a hat", "a pond", "a POND ", "a fox", "a tree", "a car"]
    (ann,) = people_of([choice(n, "ann", p) for n, p in enumerate(told)], 5, read=2, prompts=2)
    assert [pair.prompt for pair in ann.read] == ["a fox", "A Hat"]
    assert ann.read[0] == choice(0, "ann", "a fox").pair
    assert ann.prompts == ("a pond", "a tree")


def test_people_come_in_the_order_in_which_they_are_complete() -> None:
    said = [("ann", "a"), ("bob", "a"), ("bob", "b"), ("cat", "a"), ("ann", "b"), ("cat", "c")]
    taken: list[str] = []

    def source() -> Iterator[Choice]:
        for number, (user, prompt) in enumerate(said):
            taken.append(user)
            yield choice(number, user, prompt)

    first, second = people_of(source(), 2, read=1, prompts=1)
    assert first.read[0].preferred == choice(1, "bob", "a").preferred  # ann's comes later
    assert second.read[0].preferred == choice(0, "ann", "a").preferred
    assert len(taken) == 5  # no more is fetched than they need
    assert len(people_of(source(), 9, read=1, prompts=1)) == 3
    assert people_of(source(), 9, read=2, prompts=1) == []


def test_base_personal_and_mismatched_share_prompt_and_seed() -> None:
    release = load_release(DEFAULT_RELEASE)
    own = np.arange(6, dtype=np.float32).reshape(3, 1, 2)
    wanted = list(requests([Person((), ("a", "b"))] * 3, own, release.defaults))
    assert len(wanted) == 18
    threes = [wanted[k : k + 3] for k in range(0, 18, 3)]
    assert all(len({(one.prompt, one.seed) for one in three}) == 1 for three in threes)
    assert len({three[0].seed for three in threes}) == 6
    assert [three[0].prompt for three in threes] == ["a", "b"] * 3
    for number, (base, personal, mismatched) in enumerate(threes):
        user = number // 2
        assert base.users == ()
        (known, weight), (other, _) = personal.users[0], mismatched.users[0]
        assert weight == 1 and np.array_equal(known, own[user])
        assert np.array_equal(other, own[user - 1]) and not np.array_equal(other, known)


# --- what judges say -------------------------------------------------------------------------


def red(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> np.ndarray:
    assert len(prompts) == len(pictures)
    return np.array([np.asarray(p, np.float32)[..., 0].mean() for p in pictures], np.float32)


def shown(reds: np.ndarray, users: Sequence[int]) -> list[Shown]:
    """Plain pictures of so much red, ``[n, conditions]``."""
    return [
        Shown(user, "a", tuple(Image.new("RGB", (8, 8), (int(r), 0, 0)) for r in three))
        for user, three in zip(users, reds, strict=True)
    ]


def test_a_scorer_that_always_prefers_the_personal_one() -> None:
    reds = np.random.default_rng(0).integers(0, 50, (20, 3))
    reds[:, 1] += 100
    found = judged(shown(reds, range(20)), [], Judges({"clip": red}))
    told = summary(found)
    assert "vlm" not in told and found.answers is None
    of = told["scorers"]["clip"]
    assert of["personal over base"]["win_rate"] == vars(wilson(20, 20))
    assert of["personal over mismatched"]["win_rate"]["value"] == 1
    gain = of["personal over base"]["difference"]
    assert gain["mean"] == pytest.approx((reds[:, 1] - reds[:, 0]).mean())
    assert gain["low"] < gain["mean"] < gain["high"]
    against = of["mismatched over base"]["win_rate"]
    wins = (reds[:, 2] > reds[:, 0]).sum() + 0.5 * (reds[:, 2] == reds[:, 0]).sum()
    assert against["value"] == wins / 20 and 0 < against["value"] < 1


def test_ties_are_half_and_several_of_one_user_are_clustered() -> None:
    ours, theirs = np.array([1, 2, 3, 4.0]), np.array([1, 1, 4, 4.0])
    once = compared(ours, theirs, np.arange(4))
    assert once["win_rate"] == vars(wilson(2, 4)) and once["difference"]["mean"] == 0
    twice = compared(ours, theirs, [0, 0, 1, 1])
    assert twice["win_rate"] == vars(clustered_rate([0.5, 1, 0, 0.5], [0, 0, 1, 1]))
    assert (twice["win_rate"]["low"], twice["win_rate"]["high"]) == (0.25, 0.75)


def test_a_score_that_is_no_number_is_named() -> None:
    def broken(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.where(np.arange(len(prompts)) == 1, np.nan, 0)

    with pytest.raises(ValueError, match="scorer: clip gave a score that is no number"):
        judged(shown(np.zeros((2, 3)), [0, 1]), [], Judges({"clip": broken}))


class LikesTheirOwn(VlmJudge):
    """Likes the picture that is nearer in red to what the person preferred."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def answer(self, question: Question) -> bool | None:
        self.asked.append(question)
        liked = [preferred for _, preferred, _ in question.choices]
        at = float(np.mean(red([""] * len(liked), liked)))

        def nearer(a: Image.Image, b: Image.Image) -> float:
            return float(np.subtract(*np.abs(red([""] * 2, [b, a]) - at)))

        return in_both_orders(nearer, question.ours, question.theirs)


def test_the_vlm_is_told_whose_choices_they_are() -> None:
    ann, bob = (Person((choice(n, "who", "a fox").pair,), ("a",)) for n in (0, 1))
    own = [
        round(float(red([""], [open_picture(person.read[0].preferred)])[0]))
        for person in (ann, bob)
    ]
    assert own[0] != own[1]
    # Base black, personal as they like it, mismatched as the other does; for bob all are black.
    pictures = shown(np.array([[0, own[0], own[1]], [0, 0, 0]]), [0, 1])
    judge = LikesTheirOwn()
    told = summary(judged(pictures, [ann, bob], Judges({}, judge)))["vlm"]
    for which in ("personal over base", "personal over mismatched", "mismatched over base"):
        counts = [told[which][key] for key in ("wins", "losses", "inconsistent")]
        assert counts == [1, 0, 1], which
    assert [q.choices[0][1].tobytes() for q in judge.asked] == [
        open_picture(person.read[0].preferred).tobytes() for person in (ann, bob) for _ in range(3)
    ]
    assert {q.caption for q in judge.asked} == {"a"}


def test_inconsistent_answers_are_counted_apart() -> None:
    told = answered([True, None, False, True, None], np.arange(5))
    assert (told["wins"], told["losses"], told["inconsistent"]) == (2, 1, 2)
    assert told["win_rate"] == vars(wilson(2, 3))
    assert answered([None, None], np.arange(2))["win_rate"]["count"] == 0
    several = answered([True, True, False, None], np.array([0, 0, 1, 1]))
    assert several["win_rate"] == vars(clustered_rate([1, 1, 0], [0, 0, 1]))


# --- the command -----------------------------------------------------------------------------

USERS, PROMPTS = 3, 2


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the studio's people those who are held out, and some who are not; a broken picture."""
    pool = small_pool(400, captions=12)
    drawn = PairSampler(pool).draw(sample("train", 40), 9, np.random.default_rng(0))
    made = list(studio_rows(pool, *drawn))
    made[9 * int(held_out(40)[0])]["jpg_0"] = b"not a picture"
    path = tmp_path_factory.mktemp("rows") / "mine.parquet"
    write_rows(path, made)
    return path


def held_out(people: int) -> list[str]:
    return [str(user) for user in range(people) if split_of(str(user)) == "dev"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, of the classes of a real one, to which A and B are words."""
    path, processor = tmp_path_factory.mktemp("vlm"), new_processor()
    processor.tokenizer.add_tokens(["A", "B"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny_vlm(processor.tokenizer).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def judge(rows: Path, out: Path, *more: object) -> str:
    arguments = ["judge-pictures", "--rows", rows, "--out", out, *more]
    found = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.mark.slow
def test_a_release_is_judged_by_scorers_and_a_vlm(
    rows: Path, clip: Path, vlm: Path, tmp_path: Path
) -> None:
    how = ("--users", USERS, "--prompts", PROMPTS, "--vlm", vlm, "--scorer", f"clip={clip}",
           "--scorer", f"pickscore={clip}")  # fmt: skip
    said = judge(rows, tmp_path, *how)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.md").read_text() == pictures_markdown(report)
    assert "pickscore | personal over base" in said and "changed with the order" in said
    users = report["users"]
    assert users == len(held_out(40)) == 2 < USERS  # no more are there
    assert report["comparisons"] == users * PROMPTS == len(report["shown"])
    assert report["places"] == {"clip": str(clip), "pickscore": str(clip), "vlm": str(vlm)}

    # Whose pictures they are: unread prompts of held-out people, in the file's order.
    found = list(PickAPic(rows).choices(Skipped(), users="dev"))
    assert {choice.user for choice in found} <= set(held_out(40))
    people = people_of(found, USERS, 4, PROMPTS)
    assert [p for person in people for p in person.prompts] == report["shown"]
    for person in people:
        assert not {pair.prompt for pair in person.read} & set(person.prompts)

    # What was drawn: the release's own pictures, by the server's reading of four choices.
    release = load_release(DEFAULT_RELEASE)
    embeddings = embeddings_of(people, release.load_encoder())
    by_server = release.load_encoder().embed(people[0].read).embedding
    np.testing.assert_allclose(embeddings[0], by_server, atol=1e-5)
    pictures = [
        [Image.open(tmp_path / "pictures" / f"{n:05}-{name}.png") for name in CONDITIONS]
        for n in range(users * PROMPTS)
    ]
    pixels = np.array([[np.asarray(p, np.int16) for p in three] for three in pictures])
    for one, other in ((0, 1), (0, 2), (1, 2)):  # each is to another taste than the others
        apart = np.abs(pixels[:, one] - pixels[:, other]).mean((1, 2, 3))
        assert (apart > 0.1).all()
    again = drawn_again(people, embeddings)
    assert np.abs(again - pixels.reshape(again.shape)).max() <= 2  # batches round otherwise

    # What was said of it.
    prompts = [prompt for prompt in report["shown"] for _ in CONDITIONS]
    scores = load_scorer("clip", clip)(prompts, [p for three in pictures for p in three])
    base, personal, _ = scores.reshape(-1, 3).T
    told = report["scorers"]["clip"]["personal over base"]
    assert told["win_rate"]["value"] == (personal > base).mean()
    assert told["win_rate"]["count"] == users * PROMPTS
    assert told["difference"]["mean"] == pytest.approx((personal - base).mean(), abs=1e-6)
    for counted in report["vlm"].values():
        assert counted["wins"] + counted["losses"] + counted["inconsistent"] == users * PROMPTS
        assert counted["win_rate"]["count"] == counted["wins"] + counted["losses"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > users * 192 and np.asarray(sheet).std() > 10

    judge(rows, tmp_path / "again", *how)
    assert json.loads((tmp_path / "again" / "report.json").read_text()) == report


def drawn_again(people: list[Person], embeddings: np.ndarray) -> np.ndarray:
    """One by one, ``[n, H, W, 3]``."""
    release = load_release(DEFAULT_RELEASE)
    backbone = release.load_backbone()
    with Engine(backbone, release.load_adapter(backbone), max_rows=1) as engine:
        return draw(engine, requests(people, embeddings, release.defaults), "again").astype(int)


def test_nobody_to_judge_for_is_said(tmp_path: Path) -> None:
    user = next(n for n in range(1000) if split_of(str(n)) == "dev")
    few = write_shard(tmp_path / "few.parquet", [row(n, user=user) for n in range(6)])
    how = {"split": "dev", "users": 5, "read": 4, "prompts": 1}
    with pytest.raises(ValueError, match="rows: 1 people of dev have 4 choices"):
        judge_release(DEFAULT_RELEASE, PickAPic(few), Judges({}), tmp_path / "p", **how)
    made = make_tiny_release(tmp_path / "release")
    bare = {"adapter": None, "questions": None}
    write_release(made.path, made.manifest.model_copy(update=bare))
    with pytest.raises(ReleaseError, match="release tiny has no adapter"):
        judge_release(made.path, PickAPic(few), Judges({}), tmp_path / "p", **how)
    assert not (tmp_path / "p").exists()


def test_wrong_words_are_named_before_anything_is_drawn(tmp_path: Path) -> None:
    rows = write_shard(tmp_path / "rows.parquet", [row(n) for n in range(4)])

    def said(*more: str) -> str:
        common = ["--rows", str(rows), "--out", str(tmp_path / "out")]
        found = CliRunner().invoke(app, ["judge-pictures", *common, *more])
        assert found.exit_code == 2
        return " ".join(found.output.replace("│", " ").split())

    assert "at least one judge" in said()
    assert "beauty=x is no NAME=PLACE" in said("--scorer", "beauty=x")
    assert "clip is no NAME=PLACE" in said("--scorer", "clip")
    assert "clip is named twice" in said("--scorer", "clip=a", "--scorer", "clip=b")
    assert "owner/name@revision" in said("--scorer", f"clip={tmp_path}/none")
    assert "--vlm" in said("--vlm", str(tmp_path))
    assert not (tmp_path / "out").exists()
    assert named_scorers(["clip=a=b", "hpsv2=c"]) == {"clip": "a=b", "hpsv2": "c"}
