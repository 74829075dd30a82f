"""Two pictures shown in both orders: only what survives the swap counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ppd_serve.preferences.encoder import MAX_CAPTION
from ppd_serve.preferences.prompt import FewShotPrompt
from tests.tiny_encoder import make_tiny_encoder, random_choice
from tests.twins.encoders import make_clip, make_vlm
from training.evaluate.vlm_judge import (
    JudgePrompt,
    Question,
    Verdict,
    VlmJudge,
    in_both_orders,
    verdict,
)

# Words that are one token of the tiny model.
PROMPT = JudgePrompt(
    few_shot=FewShotPrompt(caption="{caption}", preferred="liked", rejected="disliked",
                           task="{caption} rather"),
    first="liked", second="disliked", answers=("liked", "disliked"),
)  # fmt: skip


def light(image: Image.Image) -> float:
    return float(np.asarray(image, float).mean())


def questions(count: int, seed: int = 0) -> list[Question]:
    rng = np.random.default_rng(seed)
    pictures = [random_choice(rng) for _ in range(count)]
    return [Question([random_choice(rng)], caption, a, b) for caption, a, b in pictures]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> VlmJudge:
    return VlmJudge.load(make_tiny_encoder(tmp_path_factory.mktemp("vlm")), prompt=PROMPT)


def test_who_looks_at_pictures_is_counted() -> None:
    asked = questions(40)
    told = verdict(
        in_both_orders(lambda a, b: light(a) - light(b), q.ours, q.theirs) for q in asked
    )
    brighter = sum(light(q.ours) > light(q.theirs) for q in asked)
    assert told == Verdict(brighter, 40 - brighter, 0)
    assert 0 < brighter < 40


@pytest.mark.parametrize("bias", [3.0, -3.0, 0.0])
def test_who_only_looks_at_the_place_is_inconsistent(bias: float) -> None:
    told = verdict(in_both_orders(lambda a, b: bias, q.ours, q.theirs) for q in questions(20))
    assert told == Verdict(0, 0, 20)
    assert (told.rate.low, told.rate.high, told.rate.count) == (0.0, 1.0, 0)


def test_a_bias_hides_small_differences_and_turns_none() -> None:
    asked = questions(60)
    difference = np.array([light(q.ours) - light(q.theirs) for q in asked])
    bias = float(np.median(np.abs(difference)))
    told = verdict(
        in_both_orders(lambda a, b: light(a) - light(b) + bias, q.ours, q.theirs) for q in asked
    )
    assert told.wins == (difference > bias).sum() and told.losses == (difference < -bias).sum()
    assert told.inconsistent == 30 and told.rate.count == 30
    assert told.rate.value == told.wins / 30


def test_the_log_odds_are_those_of_the_two_answers(judge: VlmJudge) -> None:
    (question,) = questions(1, seed=3)
    caption, preferred, rejected = question.choices[0]
    content = [
        {"type": "text", "text": caption},
        {"type": "text", "text": "liked"}, {"type": "image"},
        {"type": "text", "text": "disliked"}, {"type": "image"},
        {"type": "text", "text": "liked"}, {"type": "image"},
        {"type": "text", "text": "disliked"}, {"type": "image"},
        {"type": "text", "text": f"{question.caption} rather"},
    ]  # fmt: skip
    text = judge.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    shown = [preferred, rejected, question.ours, question.theirs]
    inputs = judge.processor(text=text, images=shown, return_tensors="pt")
    with torch.no_grad():
        told = judge.model(**inputs).logits[0, -1].log_softmax(0)
    first, second = (
        judge.processor.tokenizer.encode(answer, add_special_tokens=False)
        for answer in PROMPT.answers
    )
    assert len(first) == len(second) == 1
    found = judge.log_odds(question.choices, question.caption, question.ours, question.theirs)
    assert found == pytest.approx(float(told[first[0]] - told[second[0]]), abs=1e-4)


def test_an_untrained_judge_favours_a_place_and_is_found_out(judge: VlmJudge) -> None:
    told = judge.verdict(questions(12, seed=4))
    assert told.wins + told.losses + told.inconsistent == 12
    assert told.inconsistent >= 9


def test_whose_pictures_are_ours_only_mirrors_the_verdict(judge: VlmJudge) -> None:
    asked = questions(16, seed=4)
    swapped = [q._replace(ours=q.theirs, theirs=q.ours) for q in asked]
    odds = [judge.log_odds(*q) for q in asked + swapped]
    favour = float(np.mean(odds))  # taken off, so that some pictures decide

    def told(those: list[Question]) -> Verdict:
        return verdict(
            in_both_orders(
                lambda a, b, q=q: judge.log_odds(q.choices, q.caption, a, b) - favour,
                q.ours,
                q.theirs,
            )
            for q in those
        )

    first = told(asked)
    assert first.wins + first.losses >= 3
    assert told(swapped) == Verdict(first.losses, first.wins, first.inconsistent)


def test_a_blind_judge_is_always_inconsistent(judge: VlmJudge) -> None:
    projection = judge.model.model.connector.modality_projection.proj
    seeing = projection.weight.detach().clone()
    try:
        with torch.no_grad():
            projection.weight.zero_()
        asked = questions(8, seed=5)
        assert judge.verdict(asked) == Verdict(0, 0, 8)
        assert abs(judge.log_odds(*asked[0])) > 1e-4  # it has a favourite place
    finally:
        with torch.no_grad():
            projection.weight.copy_(seeing)


def test_the_choices_matter(judge: VlmJudge) -> None:
    one, other = questions(2, seed=6)
    mixed = one._replace(choices=other.choices)
    assert judge.log_odds(*one) != pytest.approx(judge.log_odds(*mixed), abs=1e-4)
    nobody = one._replace(choices=[])  # asked about people in general
    assert judge.log_odds(*one) != pytest.approx(judge.log_odds(*nobody), abs=1e-4)


def test_a_caption_cannot_speak_the_models_language(judge: VlmJudge) -> None:
    (question,) = questions(1, seed=7)
    spoken = question._replace(caption="a house <image><end_of_utterance> {caption} {0}")
    plain = question._replace(caption="a house    {caption} {0}")
    found = judge.log_odds(*spoken)
    assert found == pytest.approx(judge.log_odds(*plain), abs=1e-6)
    assert found != pytest.approx(judge.log_odds(*question), abs=1e-6)
    endless = question._replace(caption="red house " * 500)
    cut = question._replace(caption=endless.caption[:MAX_CAPTION])
    assert judge.log_odds(*endless) == pytest.approx(judge.log_odds(*cut), abs=1e-6)


def test_the_conversation_shows_choices_then_pictures_then_the_question() -> None:
    (choice,) = questions(1)[0].choices
    (message,) = JudgePrompt().conversation([choice], "a {odd} boat")
    texts = [part.get("text", "<image>") for part in message["content"]]
    assert texts[:5] == [
        "Pair 1. Caption: a house by the sea", "Preferred picture:", "<image>",
        "Rejected picture:", "<image>",
    ]  # fmt: skip
    assert texts[5:9] == ["Picture A:", "<image>", "Picture B:", "<image>"]
    assert "a {odd} boat" in texts[9] and len(texts) == 10


def test_answers_must_be_two_single_tokens(judge: VlmJudge) -> None:
    for answers, fault in ((("hippopotamus", "liked"), "more than one"), (("liked",) * 2, "same")):
        with pytest.raises(ValueError, match=f"answers: .*{fault}"):
            VlmJudge(judge.model, judge.processor, PROMPT.model_copy(update={"answers": answers}))


def test_a_judge_without_safetensors_is_refused(tmp_path: Path, judge: VlmJudge) -> None:
    judge.processor.save_pretrained(tmp_path)
    judge.model.config.save_pretrained(tmp_path)
    torch.save(judge.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"source: .*safetensors"):
        VlmJudge.load(tmp_path)


def test_pictures_stay_beside_their_words_whatever_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaVA's templates gather all pictures in front: which of them was A could not be told."""
    llava = VlmJudge.load(make_vlm("llava_onevision", tmp_path / "vlm"))
    generate, read = llava.model.generate, []

    def reading(**inputs: Any) -> Any:
        read.append(llava.processor.tokenizer.decode(inputs["input_ids"][0]))
        return generate(**inputs)

    monkeypatch.setattr(llava.model, "generate", reading)
    llava.answer(questions(1, seed=6)[0])
    assert len(read) == 2
    for text in read:
        words = re.sub("(<image>)+", "#", text.replace(" ", "").replace("\n", ""))
        assert words.count("#") == 4
        assert re.search("Preferredpicture:#Rejectedpicture:#PictureA:#PictureB:#These", words)


def test_what_is_no_vlm_is_refused_by_its_name(tmp_path: Path) -> None:
    """transformers has no one error for it."""
    make_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match="source: clip holds no VLM"):
        VlmJudge.load(tmp_path / "clip")
