"""The exam is arithmetic that can be checked: who knows the taste passes, who does not guesses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppd_serve.preferences.choice_model import ChoiceModel
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.transform import BetweenUserTransform
from tests import tiny_encoder
from tests.training.studio import small_pool
from training import vlm
from training.data.audience import Audience, taste_features
from training.data.pool import PairSampler, Pool
from training.data.users import Tastes, people
from training.evaluate import choices
from training.evaluate.choices import (
    COUNTS,
    QUESTIONS,
    Exam,
    Probe,
    bayes,
    choice_model_right,
    choices_markdown,
    chunk_wise,
    embeddings,
    measure_choices,
    new_exam,
    population,
    share_of_the_way,
    write_choices,
)
from training.evaluate.studio import bayes_mean

USERS = 40


@pytest.fixture(scope="module")
def pool() -> Pool:
    return small_pool(160)


@pytest.fixture(scope="module")
def exam(pool: Pool) -> Exam:
    return new_exam("dev", USERS, pool)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The tiny encoder, read as the studio's is: the last layer alone."""
    path = tiny_encoder.make_tiny_encoder(tmp_path_factory.mktemp("encoder"))
    read_two_layers = Encoder.load(path)
    transform = read_two_layers.transform
    return Encoder(
        read_two_layers.model,
        read_two_layers.processor,
        read_two_layers.config.model_copy(
            update={"layers": (-1,), "profile": "skip", "prompt": vlm.STUDIO_PROMPT}
        ),
        BetweenUserTransform(transform.mean[-1:], transform.matrix[-1:]),
        space="tiny",
    )


def linear(weight: Any) -> Tastes:
    weight = np.asarray(weight, np.float32)
    return Tastes(weight, np.zeros_like(weight), np.zeros_like(weight))


# --- the exam -------------------------------------------------------------------------------------


def test_who_knows_the_taste_is_always_right(exam: Exam) -> None:
    assert exam.better.shape == exam.worse.shape == (USERS, QUESTIONS)
    tastes = exam.panel.tastes
    np.testing.assert_array_equal(exam.right(tastes), 1)
    opposite = Tastes(-tastes.weight, -tastes.curvature, tastes.level)
    np.testing.assert_array_equal(exam.right(opposite), 0)
    np.testing.assert_array_equal(exam.right(linear(np.zeros((USERS, 8)))), 0.5)


def test_a_taste_is_the_polynomial_that_was_believed(exam: Exam) -> None:
    """Coefficients of a particular person, quadratic ones too, foresee what the person does."""
    tastes = exam.panel.tastes
    assert (tastes.curvature > 0).any()
    np.testing.assert_array_equal(exam.right(choices._taste(taste_features(tastes)[:, :-1])), 1)


def test_questions_are_new_ones_and_of_one_caption(pool: Pool, exam: Exam) -> None:
    np.testing.assert_array_equal(pool.captions[exam.better], pool.captions[exam.worse])
    assert (exam.better != exam.worse).all()
    again, fewer = new_exam("dev", USERS, pool), new_exam("test", USERS, pool)
    np.testing.assert_array_equal(again.better, exam.better)
    assert (fewer.better != exam.better).mean() > 0.9
    told = exam.panel.preferred[:, :QUESTIONS]
    assert (told != exam.better[:, : told.shape[1]]).mean() > 0.9


# --- who foresees ---------------------------------------------------------------------------------


def test_population_is_what_all_have_in_common(pool: Pool) -> None:
    everybody = replace_all(people("train", 400), weight=[0.5, -0.5, 0, 0, 0, 0, 0, 0])
    w, x = PairSampler(pool).draw(everybody, 16, np.random.default_rng(0))
    found = population(pool.scores[w].reshape(-1, 8), pool.scores[x].reshape(-1, 8))
    true = taste_features(everybody)[0, :-1]
    # σ(4·difference of rewards) is how people choose
    np.testing.assert_allclose(found, 4 * true, atol=0.4)
    swapped = population(pool.scores[x].reshape(-1, 8), pool.scores[w].reshape(-1, 8))
    np.testing.assert_allclose(swapped, -found, atol=1e-3)


def replace_all(tastes: Tastes, weight: list[float]) -> Tastes:
    return linear(np.tile(np.float32(weight), (len(tastes), 1)))


def test_bayes_knows_more_from_more_choices_and_most_of_all(exam: Exam) -> None:
    found = bayes(exam.panel, (1, 4, 16))
    right = [exam.right(found[count]).mean() for count in (1, 4, 16)]
    assert np.diff(right).min() > 0.02
    assert right[-1] > 0.75


def test_from_eight_on_chunks_are_read_alone_and_averaged() -> None:
    found = chunk_wise(lambda start, end: np.array([start, end, 1.0]), (1, 2, 4, 8, 16))
    np.testing.assert_array_equal(found[1], [0, 1, 1])
    np.testing.assert_array_equal(found[2], [0, 2, 1])
    np.testing.assert_array_equal(found[4], [0, 4, 1])
    np.testing.assert_array_equal(found[8], [2, 6, 1])
    np.testing.assert_array_equal(found[16], [6, 10, 1])
    assert set(chunk_wise(lambda start, end: np.zeros(1), (2,))) == {2}


def test_a_probe_finds_what_is_there_linearly() -> None:
    """Embeddings that are a taste and noise give the taste back; it is fixed for any new person."""
    rng = np.random.default_rng(0)
    tastes, new = people("train", 300), people("dev", 50)
    mix = rng.normal(size=(17, 20))

    def states(who: Tastes) -> Any:
        clean = (taste_features(who) @ mix)[:, None]
        return (clean + 0.01 * rng.normal(size=(len(who), 3, 20))).astype(np.float32)

    plain = BetweenUserTransform(np.zeros((1, 20), np.float32), np.eye(20, dtype=np.float32)[None])
    probe = Probe.fit(Audience(tastes, states(tastes), np.full((300, 3), 4)), plain, ridge=1e-3)
    assert probe.matrix.shape == (21, 16)
    found = probe(states(new)[:, :1])
    np.testing.assert_allclose(found.weight, taste_features(new)[:, :8], atol=0.05)
    np.testing.assert_allclose(found.curvature, new.curvature, atol=0.05)


def test_the_quick_reader_makes_what_the_encoder_makes(pool: Pool, encoder: Encoder) -> None:
    """Of one choice, of four, and of eight in two chunks."""
    panel = new_exam("dev", 3, pool).panel
    reader = vlm.Reader(
        encoder.model, encoder.processor, vlm.cache_features(encoder.model, pool.images)
    )
    quick = embeddings(reader, encoder.transform, panel, (1, 4, 8))
    assert set(quick) == {1, 4, 8}
    for count, found in quick.items():
        slow = [encoder.embed(panel.pairs(user, count)).embedding for user in range(3)]
        np.testing.assert_allclose(found, np.stack(slow), atol=2e-3)
    assert np.abs(quick[4] - quick[8]).max() > 0.1


def test_the_choice_model_is_asked_the_same_questions(pool: Pool, exam: Exam) -> None:
    """Looking at the judged scores themselves it is nearly Bayes for all whose taste is linear."""
    model = ChoiceModel(np.eye(8), np.zeros(8), 2 * np.eye(8))
    none = choice_model_right(model, pool.scores, exam, 0)
    np.testing.assert_array_equal(none, [[0.5] * USERS, [0.5] * USERS, [0] * USERS])
    right, by_chunks, certainty = zip(
        *(choice_model_right(model, pool.scores, exam, n) for n in COUNTS), strict=True
    )
    assert np.diff(np.mean(certainty, 1)).min() > 0
    assert np.mean(right[-1]) > np.mean(right[0]) + 0.05
    np.testing.assert_array_equal(right[:3], by_chunks[:3])  # up to one chunk
    assert (right[-1] != by_chunks[-1]).any()
    assert np.mean(right[2]) == pytest.approx(
        exam.right(bayes_mean(exam.panel, 4)).mean(), abs=0.06
    )


# --- the scale ------------------------------------------------------------------------------------


def test_the_share_of_the_way_is_nothing_half_and_all() -> None:
    rng = np.random.default_rng(0)
    start, end = rng.uniform(0.4, 0.6, 200), rng.uniform(0.7, 0.9, 200)
    for share in (0.0, 0.5, 1.0):
        found = share_of_the_way(start + share * (end - start), start, end)
        assert found == {k: pytest.approx(share) for k in ("value", "low", "high")}
    noisy = end + rng.normal(size=200) * 0.2
    found = share_of_the_way(noisy, start, end)
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx((noisy - start).mean() / (end - start).mean())


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        start, end = 0.6 + 0.1 * rng.normal(size=(2, 80)) + [[0], [0.15]]
        ours = 0.7 + 0.1 * rng.normal(size=80)  # two thirds of the way
        found = share_of_the_way(ours, start, end, draws=300, seed=trial)
        hits += found["low"] < 2 / 3 < found["high"]
    assert 0.9 < hits / 200 < 0.99


# --- all of it ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(pool: Pool, encoder: Encoder) -> dict[str, Any]:
    return measure_choices(
        encoder, small_pool(120, seed=1), pool, "dev", USERS, training_users=30, readings=2
    )


def test_the_report_has_every_count_kind_and_axis(report: dict[str, Any], exam: Exam) -> None:
    assert list(report["counts"]) == [str(count) for count in COUNTS]
    four = report["counts"]["4"]
    assert sum(row["users"] for row in four["kinds"].values()) == USERS
    assert len(four["axes"]) == 8
    assert four["bayes"]["value"] == pytest.approx(exam.right(bayes_mean(exam.panel, 4)).mean())
    for kind in ("vlm", "choice_model", "bayes", "population"):
        whole = sum(row["users"] * row[kind] for row in four["kinds"].values()) / USERS
        expected = report[kind] if kind == "population" else four[kind]
        assert whole == pytest.approx(expected["value"])
    way = four["bayes"]["value"] - report["population"]["value"]
    gone = four["vlm"]["value"] - report["population"]["value"]
    assert four["vlm_share"]["value"] == pytest.approx(gone / way)
    certainty = [row["certainty"] for row in report["counts"].values()]
    assert certainty == sorted(certainty) and 0 < certainty[0] < certainty[-1] < 1


def test_an_untrained_vlm_is_said_to_foresee_less_than_bayes(report: dict[str, Any]) -> None:
    sixteen = report["counts"]["16"]
    assert sixteen["vlm"]["high"] < sixteen["bayes"]["low"]
    assert sixteen["vlm_share"]["high"] < 1


def test_the_report_is_written(report: dict[str, Any], tmp_path: Path) -> None:
    write_choices(report, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "choices.json").read_text()) == report
    page = (tmp_path / "new" / "choices.md").read_text()
    assert page == choices_markdown(report)
    for count, row in report["counts"].items():
        assert f"| {count} | {100 * row['vlm']['value']:.1f} (" in page
    assert "| particular | " in page and "| warmth | " in page


def test_kinds_are_told_apart(exam: Exam) -> None:
    tastes = exam.panel.tastes
    found = choices._by_kind(tastes, {"one": np.ones(USERS)})
    assert list(found) == ["sparse", "dense", "particular"]
    assert found["particular"]["users"] == (tastes.curvature > 0).any(1).sum()
    assert found["dense"]["users"] == ((tastes.weight != 0).all(1)).sum()


def test_an_encoder_read_elsewhere_is_refused(pool: Pool, encoder: Encoder) -> None:
    captions = {"prompt": vlm.STUDIO_PROMPT.model_copy(update={"caption": "{caption}"})}
    for changed in ({"layers": (-2,)}, {"position": "after_profile"}, captions):
        other = Encoder(
            encoder.model,
            encoder.processor,
            encoder.config.model_copy(update=changed),
            encoder.transform,
            space="other",
        )
        with pytest.raises(ValueError, match="encoder"):
            measure_choices(other, pool, pool, "dev", 2)


def test_a_changed_world_counts_for_nothing(
    pool: Pool, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "FROZEN", "another")
    with pytest.raises(SystemExit, match="frozen"):
        measure_choices(encoder, pool, pool, "dev", 2)
