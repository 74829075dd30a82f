"""The archive of all that is held about a user, made of a real store."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import pytest

from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.loop_schemas import FeedbackIn, QuestionIn, TasteCodeIn
from ppd_serve.api.services import Services
from ppd_serve.errors import NotFound
from ppd_serve.gateway import export
from tests.gateway.conftest import House, choices
from tests.gateway.doubles import SPACE

P = "default"
WHO = "unmistakable-ann"
OTHER = "unmistakable-bob"


async def exported(server: Services, user_id: str = WHO) -> dict[str, bytes]:
    """Name → content."""
    pieces = [piece async for piece in await server.exports.archive(P, user_id)]
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as files:
        assert files.testzip() is None
        return {name: files.read(name) for name in files.namelist()}


def lines(files: dict[str, bytes], name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files[f"{name}.jsonl"].splitlines()]


async def test_everything_is_there(server: Services, house: House) -> None:
    (first,) = (await server.preferences.add(P, WHO, choices("a"), None)).pair_ids
    (second,) = (await server.preferences.add(P, WHO, choices("b"), None)).pair_ids
    asked = await server.questions.ask(P, WHO, QuestionIn(prompt="c"), None)
    answered = await server.questions.answer(P, WHO, asked.question_id, "right")
    drawn = await server.generations.draw(P, GenerateIn(prompt="d", user_id=WHO, n=2), None)
    image_id = drawn.images[0].image_id
    liked = await server.feedback.put(P, WHO, FeedbackIn(image_id=image_id, liked=True), None)
    code = await server.taste_codes.add(P, WHO, TasteCodeIn(version=1), None)

    files = await exported(server)
    about = json.loads(files["user.json"])
    assert (about["user_id"], about["pairs_total"]) == (WHO, 3)
    pairs = lines(files, "pairs")
    assert [pair["pair_id"] for pair in pairs] == [first, second, *answered.pair_ids]
    assert [pair["prompt"] for pair in pairs] == ["a", "b", "c"]
    (question,) = lines(files, "questions")
    assert (question["question_id"], question["choice"]) == (asked.question_id, "right")
    (feedback,) = lines(files, "feedback")
    assert (feedback["feedback_id"], feedback["liked"]) == (liked.feedback_id, True)
    assert (feedback["prompt"], feedback["image_id"]) == ("d", image_id)
    embeddings = lines(files, "embeddings")
    assert [(one["version"], one["profile"]) for one in embeddings] == [
        (3, "likes 3"), (2, "likes 2"), (1, "likes 1"),
    ]  # fmt: skip
    for one in embeddings:
        stored = house.store.get_embedding(P, WHO, SPACE, one["version"])
        assert stored is not None and one["values"] == stored.values.tolist()
    (shared,) = lines(files, "taste_codes")
    assert shared["version"] == 1 and shared["code"] == f"…{code.code[-6:]}"
    (generation,) = lines(files, "generations")
    assert (generation["id"], generation["status"]) == (drawn.id, "done")
    assert generation["request"]["prompt"] == "d" and generation["users"][0]["user_id"] == WHO

    named = {side["image_id"] for pair in pairs for side in (pair["preferred"], pair["rejected"])}
    named |= {asked.left, asked.right} | {painted.image_id for painted in drawn.images}
    pictures = {name: data for name, data in files.items() if name.startswith("images/")}
    assert pictures == {
        f"images/{image_id}.png": house.store.read_image(P, image_id)[1] for image_id in named
    }
    assert await exported(server) == files


async def test_a_page_at_a_time(server: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PAGE", 2)
    monkeypatch.setattr(export, "EMBEDDINGS_PAGE", 2)
    for prompt in "abcde":
        await server.preferences.add(P, WHO, choices(prompt), None)
        await server.generations.draw(P, GenerateIn(prompt=prompt, user_id=WHO), None)
    files = await exported(server)
    assert [pair["prompt"] for pair in lines(files, "pairs")] == list("abcde")
    assert [one["request"]["prompt"] for one in lines(files, "generations")] == list("abcde")
    assert [one["version"] for one in lines(files, "embeddings")] == [5, 4, 3, 2, 1]


async def test_nothing_of_others_is_there(server: Services) -> None:
    for project, user_id in [(P, WHO), (P, OTHER), ("other", WHO)]:
        prompt = "hers" if (project, user_id) == (P, WHO) else "a secret"
        await server.preferences.add(project, user_id, choices(prompt), None)
        secret = GenerateIn(prompt=prompt, user_id=user_id)
        await server.generations.draw(project, secret, None)
    code = (await server.taste_codes.add(P, OTHER, TasteCodeIn(), None)).code
    blend = [{"user_id": WHO, "weight": 0.5}, {"user_id": OTHER}, {"taste_code": code}]
    await server.generations.draw(
        P, GenerateIn.model_validate({"prompt": "both", "users": blend}), None
    )
    files = await exported(server)
    everything = b"".join(files.values()).decode("utf-8", "replace")
    for theirs in (OTHER, code[-6:], "a secret"):
        assert theirs not in everything
    shared = lines(files, "generations")[-1]
    assert [(user["user_id"], user["weight"]) for user in shared["users"]] == [(WHO, 0.5)]
    assert [user["user_id"] for user in shared["request"]["users"]] == [WHO]


async def test_an_unknown_user_has_no_archive(server: Services) -> None:
    with pytest.raises(NotFound):
        await server.exports.archive(P, WHO)
    await server.users.put(P, WHO)
    files = await exported(server)
    assert json.loads(files["user.json"])["pairs_total"] == 0 and len(files) == 7
    with pytest.raises(NotFound):
        await server.exports.archive("other", WHO)


async def test_an_archive_has_no_end_once_its_user_is_deleted(
    server: Services, house: House
) -> None:
    """Also where somebody has taken the name meanwhile."""
    for _ in range(2):
        await server.preferences.add(P, WHO, choices("a"), None)
    got = b""
    with pytest.raises(NotFound):
        async for piece in await server.exports.archive(P, WHO):
            if not got:
                await server.users.delete(P, WHO)
                await server.users.put(P, WHO)
            got += piece
    assert got and not zipfile.is_zipfile(io.BytesIO(got))


async def test_what_is_deleted_meanwhile_stops_coming(server: Services, house: House) -> None:
    await server.preferences.add(P, WHO, choices("a"), None)
    drawn = await server.generations.draw(P, GenerateIn(prompt="d", user_id=WHO), None)
    got, asked = b"", await server.exports.archive(P, WHO)
    async for piece in asked:
        if not got:
            await server.images.delete(P, drawn.images[0].image_id)
        got += piece
    with zipfile.ZipFile(io.BytesIO(got)) as files:
        pictures = [name for name in files.namelist() if name.startswith("images/")]
    assert len(pictures) == 2
