"""The demo's person, choices, prompts, verdict and sheet; and the whole of it on a real server."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import demo
from training.data.judge import scores
from training.data.users import Tastes, people
from training.data.world import AXES, HELD_OUT_CAPTIONS, TRAIN_CAPTIONS, render
from training.local_server import free_port
from training.taste_words import WORDS, in_words


def likes(**weights: float) -> Tastes:
    weight = np.zeros((1, len(AXES)), np.float32)
    for axis, value in weights.items():
        weight[0, AXES.index(axis)] = value
    return Tastes(weight, np.zeros_like(weight), np.zeros_like(weight))


def test_the_person_is_a_test_user_with_two_plain_wishes() -> None:
    person = demo.visible_person()

    assert len(person) == 1
    assert (person.weight != 0).sum() == 2
    assert not person.curvature.any()
    assert (people("test", 200).weight == person.weight).all(1).any()


def test_the_opposite_feels_exactly_the_contrary() -> None:
    person = demo.visible_person()
    z = np.random.default_rng(0).normal(size=(1, 20, len(AXES))).astype(np.float32)

    assert np.allclose(demo.opposite(person).reward(z), -person.reward(z))


def test_a_taste_is_told_in_words_the_strongest_wish_first() -> None:
    assert in_words(likes(frame=0.5, warmth=0.8)) == "warm light and wide frames"
    assert in_words(likes(frame=-0.9, warmth=-0.4)) == "no frame and cool light"
    assert in_words(likes(frame=-0.9, warmth=-0.4), most=1) == "no frame"
    assert set(WORDS) == set(AXES)


def test_choices_are_on_training_captions_and_mostly_to_the_taste() -> None:
    taste = likes(brightness=1.0)

    choices = demo.choose(taste, seed=3, count=24)

    assert {c.caption for c in choices} <= set(TRAIN_CAPTIONS)
    reward = np.array(
        [taste.reward(scores(np.stack(c.pictures), [c.caption] * 2)[None])[0] for c in choices]
    )
    chosen = np.array([c.preferred for c in choices])
    agrees = reward[np.arange(24), chosen] > reward[np.arange(24), 1 - chosen]
    assert agrees.mean() > 0.75


def test_everybody_is_offered_the_same_pairs_and_the_opposite_disagrees() -> None:
    taste = demo.visible_person()

    ours, theirs = demo.choose(taste, 0, 12), demo.choose(demo.opposite(taste), 0, 12)

    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(a.pictures[0], b.pictures[0])
    assert sum(a.preferred != b.preferred for a, b in zip(ours, theirs, strict=True)) >= 8


def test_prompts_are_held_out_and_repeat_only_when_all_were_used() -> None:
    every = len(HELD_OUT_CAPTIONS)

    assert set(demo.pick_prompts(every, seed=1)) == set(HELD_OUT_CAPTIONS)
    assert len(demo.pick_prompts(every + 3, seed=1)) == every + 3
    assert demo.pick_prompts(5, seed=1) == demo.pick_prompts(9, seed=1)[:5]


def test_every_prompt_is_drawn_plain_and_personal_and_the_first_in_every_column() -> None:
    asked = demo.to_draw(7)

    assert len(asked) == len(set(asked)) == demo.ROWS * len(demo.COLUMNS) + 2 * (7 - demo.ROWS)
    for column in (demo.NOBODY, demo.PERSONAL):
        assert [a.prompt for a in asked if a.column == column] == list(range(7))


def test_the_person_prefers_pictures_painted_to_their_taste() -> None:
    taste, captions = likes(warmth=1.0), list(HELD_OUT_CAPTIONS[:4])
    style = np.zeros(len(AXES), np.float32)
    plain = [render(c, style, 5) for c in captions]
    style[AXES.index("warmth")] = 1.0
    warm = [render(c, style, 5) for c in captions]

    assert demo.compare(taste, captions, warm, plain).wins.value == 1
    assert demo.compare(taste, captions, warm, plain).gain > 0.5
    assert demo.compare(demo.opposite(taste), captions, warm, plain).wins.value == 0
    assert demo.compare(taste, captions, plain, plain).wins.value == 0.5


def test_the_sheet_shows_choices_and_every_column_of_the_first_prompts() -> None:
    captions = demo.pick_prompts(6, seed=0)
    drawn = {
        one: np.full((128, 128, 3), 7 + index, np.uint8)
        for index, one in enumerate(demo.to_draw(6))
    }

    sheet = demo.lay_out("wide frames", demo.choose(likes(frame=1.0), 0), captions, drawn)

    pixels = np.asarray(sheet)
    for one, picture in drawn.items():
        shown = bool((pixels == picture[0, 0]).all(-1).sum() >= 128 * 128)
        assert shown == (one.prompt < demo.ROWS)


def test_a_server_that_does_not_start_is_one_message_and_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PPD_RELEASE", str(tmp_path))

    assert demo.run(tmp_path / "demo.png") == 1

    said = capsys.readouterr().out
    assert "The demo failed" in said
    assert "release.json" in said  # the server's own words
    assert not (tmp_path / "demo.png").exists()


@pytest.mark.e2e
@pytest.mark.slow
def test_four_choices_become_pictures_to_the_taste(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, out = free_port(), tmp_path / "demo.png"

    code = demo.run(out, port=port, prompts=6)

    said = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert code == 0, said
    assert "made from 4" in said
    assert "of 6 prompts" in said
    with Image.open(out) as sheet:
        assert sheet.width > len(demo.COLUMNS) * 128
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # nobody stayed behind
