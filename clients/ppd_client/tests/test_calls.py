"""Each call sends what the interface says and reads what it promises, in both clients."""

from __future__ import annotations

import base64
import inspect
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from ppd_client import (
    AsyncClient,
    Client,
    GeneratedImage,
    ImageRef,
    Pair,
    Question,
    Readiness,
    TasteCode,
    UnexpectedAnswer,
    UserWeight,
)

OK = httpx.Response
STATE = {"space": "s1", "version": 3, "pairs_used": 2, "status": "current"}
ADDED = {"user_id": "ann", "pair_ids": ["p1"], "pairs_total": 1, "embedding": STATE, "new": 1}
DRAWN = {
    "id": "g1",
    "created": 1,
    "release": "studio",
    "images": [{"image_id": "i1", "seed": 7, "b64_json": base64.b64encode(b"png").decode()}],
    "users": [{"user_id": "ann", "weight": 1, "personalized": True, "version": 3, "pairs_used": 2}],
    "timing": {"total_s": 1.5},
}
RECORD = {"id": "g1", "status": "running", "created": 1, "release": "studio", "images": []}
ASKED = {
    "question_id": "q1",
    "prompt": "fish",
    "left": {"image_id": "i1", "url": "http://l"},
    "right": {"image_id": "i2", "url": "http://r"},
}
CODE = {"code": "taste_1", "version": 3, "created": 1.5}
USER = {"user_id": "ann", "pairs_total": 2, "embedding": STATE, "profile": "p", "ask_more": True}

# call, its arguments, the answer, the request line, one thing read from the result
CALLS: list[tuple[str, tuple[Any, ...], httpx.Response, str, Any]] = [
    ("put_user", ("ann",), OK(201, json=USER), "PUT /users/ann", None),
    ("get_user", ("a.n@x:1",), OK(200, json=USER), "GET /users/a.n@x:1", "profile='p'"),
    ("delete_user", ("ann",), OK(204), "DELETE /users/ann", None),
    (
        "add_preferences",
        ("ann", [("fish", b"a", b"b")]),
        OK(201, json=ADDED),
        "POST /users/ann/preferences",
        "pair_ids=['p1']",
    ),
    (
        "preferences_page",
        ("ann", "c_1", 5),
        OK(200, json={"pairs": [], "next": None}),
        "GET /users/ann/preferences?cursor=c_1&limit=5",
        "pairs=[]",
    ),
    ("delete_preference", ("ann", "p1"), OK(204), "DELETE /users/ann/preferences/p1", None),
    (
        "ask",
        ("ann", "fish"),
        OK(201, json=ASKED),
        "POST /users/ann/questions",
        "left=LinkedImage(image_id='i1', url='http://l')",
    ),
    (
        "answer",
        ("ann", Question.model_validate(ASKED), "left"),
        OK(200, json=ADDED),
        "PUT /users/ann/questions/q1/answer",
        "pair_ids=['p1']",
    ),
    (
        "give_feedback",
        ("ann", ImageRef(image_id="i1"), True),
        OK(201, json={"feedback_id": "f1", "image_id": "i1", "liked": True}),
        "POST /users/ann/feedback",
        "feedback_id='f1'",
    ),
    ("delete_feedback", ("ann", "f1"), OK(204), "DELETE /users/ann/feedback/f1", None),
    (
        "embeddings_page",
        ("ann", "7", 2),
        OK(200, json={"embeddings": [{"version": 6, "pairs_used": 5}], "next": None}),
        "GET /users/ann/embeddings?cursor=7&limit=2",
        "version=6",
    ),
    (
        "add_taste_code",
        ("ann", 3),
        OK(201, json=CODE),
        "POST /users/ann/taste-codes",
        "code='taste_1'",
    ),
    (
        "taste_codes",
        ("ann",),
        OK(200, json={"taste_codes": [CODE]}),
        "GET /users/ann/taste-codes",
        "version=3",
    ),
    (
        "delete_taste_code",
        ("ann", TasteCode.model_validate(CODE)),
        OK(204),
        "DELETE /users/ann/taste-codes/taste_1",
        None,
    ),
    (
        "embedding",
        ("ann", 1),
        OK(200, json={"space": "s", "version": 1, "shape": [1, 2], "values": [[0.5, 1]]}),
        "GET /users/ann/embedding?version=1",
        "values=[[0.5, 1.0]]",
    ),
    (
        "neighbors",
        ("ann", 3),
        OK(200, json={"neighbors": [{"user_id": "bob", "similarity": 0.5}]}),
        "GET /users/ann/neighbors?k=3",
        "user_id='bob'",
    ),
    ("upload_image", (b"png",), OK(201, json={"image_id": "i1"}), "POST /images", "image_id='i1'"),
    ("get_image", ("i1",), OK(200, content=b"png"), "GET /images/i1", "b'png'"),
    ("delete_image", (ImageRef(image_id="i1"),), OK(204), "DELETE /images/i1", None),
    ("generate", ("fish",), OK(200, json=DRAWN), "POST /generate", "seed=7"),
    ("generate_png", ("fish",), OK(200, content=b"png"), "POST /generate", "b'png'"),
    ("submit", ("fish",), OK(202, json=RECORD), "POST /generate", "status='running'"),
    ("generation", ("g1",), OK(200, json=RECORD), "GET /generations/g1", "id='g1'"),
    ("cancel", ("g1",), OK(202, json=RECORD), "DELETE /generations/g1", "release='studio'"),
    (
        "releases",
        (),
        OK(200, json={"active": {"name": "studio", "version": "1"}, "known": []}),
        "GET /releases",
        "name='studio'",
    ),
    ("healthz", (), OK(200, json={}), "GET /healthz", None),
    ("readyz", (), OK(200, json={}), "GET /readyz", "ready=True"),
]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name, args, answer, line, result", CALLS, ids=[c[0] for c in CALLS])
async def test_call(server, kind, name, args, answer, line, result):
    server.says(answer)
    if kind == "sync":
        with server.client(api_key="secret") as client:
            got = getattr(client, name)(*args)
    else:
        async with server.async_client(api_key="secret") as client:
            got = await getattr(client, name)(*args)
    assert server.asked() == [line]
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert got is None if result is None else result in repr(got)


def test_every_call_is_covered_above():
    calls = {n for n, _ in inspect.getmembers(Client, inspect.isfunction) if n[0] != "_"}
    own = {"send", "close", "preferences", "export_user", "wait_ready", "stream", "events"}
    assert calls - own == {c[0] for c in CALLS}
    others = {n for n, _ in inspect.getmembers(AsyncClient, inspect.isfunction) if n[0] != "_"}
    assert others == calls - {"close"} | {"aclose"}


class Drawn:
    """What a PIL image looks like from here."""

    def save(self, fp: IO[bytes], format: str) -> None:
        fp.write(f"saved as {format}".encode())


def test_pictures_travel_as_bytes_path_savable_or_reference(server, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"file")
    server.says(OK(201, json=ADDED))
    held = GeneratedImage(image_id="i9", seed=1)
    server.client().add_preferences(
        "ann",
        [
            Pair("fish", b"bytes", tmp_path / "a.png"),
            ("ship", Drawn(), held),
            ("tree", str(tmp_path / "a.png"), ImageRef(image_id="i2")),
        ],
    )

    def b64(data: bytes) -> dict[str, str]:
        return {"b64_json": base64.b64encode(data).decode()}

    assert server.body == {
        "pairs": [
            {"prompt": "fish", "preferred": b64(b"bytes"), "rejected": b64(b"file")},
            {"prompt": "ship", "preferred": b64(b"saved as PNG"), "rejected": {"image_id": "i9"}},
            {"prompt": "tree", "preferred": b64(b"file"), "rejected": {"image_id": "i2"}},
        ]
    }


def test_upload_sends_the_raw_bytes(server):
    server.says(OK(201, json={"image_id": "i1"}))
    server.client().upload_image(Drawn())
    assert server.requests[0].content == b"saved as PNG"


def test_generate_sends_only_what_was_given(server):
    server.says(OK(200, json=DRAWN), OK(200, json=DRAWN), OK(200, json=DRAWN))
    client = server.client()
    client.generate("fish")
    assert server.body == {"prompt": "fish"}
    client.generate("fish", user_id="ann", seed=0, preference_scale=0.0, n=2)
    assert server.body == {
        "prompt": "fish",
        "user_id": "ann",
        "seed": 0,
        "preference_scale": 0.0,
        "n": 2,
    }
    client.generate("fish", users=[UserWeight(user_id="ann", weight=-1, version=3)])
    assert server.body["users"] == [{"user_id": "ann", "weight": -1, "version": 3}]


def test_the_loop_sends_what_was_chosen(server):
    server.says(OK(201, json=ASKED), OK(200, json=ADDED), OK(201, json=CODE), OK(200, json=DRAWN))
    client = server.client()
    question = client.ask("ann", idempotency_key="mine")
    assert server.body == {} and server.requests[0].headers["idempotency-key"] == "mine"
    client.answer("ann", question, "neither")
    assert server.body == {"choice": "neither"}
    code = client.add_taste_code("ann")
    assert server.body == {} and server.requests[2].headers["idempotency-key"]
    client.generate("fish", users=[UserWeight(taste_code=code.code, weight=0.5)])
    assert server.body["users"] == [{"taste_code": "taste_1", "weight": 0.5}]


def test_generate_png_asks_for_png_and_blends_by_weight(server):
    server.says(OK(200, content=b"png"))
    server.client().generate_png("fish", users={"ann": 0.25, "bob": 0.75})
    assert server.requests[0].headers["accept"] == "image/png"
    assert server.body["users"] == [
        {"user_id": "ann", "weight": 0.25},
        {"user_id": "bob", "weight": 0.75},
    ]


def test_submit_does_not_wait_and_draws_nothing_twice(server):
    server.says(OK(202, json=RECORD), OK(202, json=RECORD | {"status": "done"}))
    assert not server.client().submit("fish", n=2).ended
    headers = server.requests[0].headers
    assert headers["prefer"] == "respond-async" and headers["idempotency-key"]
    assert server.body == {"prompt": "fish", "n": 2}
    assert server.client().submit("fish", idempotency_key="mine").ended
    assert server.requests[1].headers["idempotency-key"] == "mine"


def test_a_drawn_picture_gives_its_bytes_unless_it_is_a_url(server):
    server.says(OK(200, json=DRAWN))
    assert server.client().generate("fish").images[0].data == b"png"
    with pytest.raises(ValueError, match="get_image"):
        _ = GeneratedImage(image_id="i1", seed=1, url="http://x").data


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a?b", "a\n", ".hidden", "ä", "x" * 129])
def test_an_id_can_never_be_a_path(server, bad):
    client = server.client()
    for call in (client.delete_user, client.get_user, client.get_image):
        with pytest.raises(ValueError, match="id"):
            call(bad)
    with pytest.raises(ValueError, match="pair_id"):
        client.delete_preference("ann", bad)
    assert server.requests == []


def test_numbers_that_are_not_json_never_leave(server):
    with pytest.raises(ValueError):
        server.client().generate("fish", guidance_scale=float("nan"))
    assert server.requests == []


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_preferences_walks_every_page(server, kind):
    def page(*ids: str, next: str | None) -> httpx.Response:
        ref = {"image_id": "i"}
        rows = [{"pair_id": i, "prompt": "p", "preferred": ref, "rejected": ref} for i in ids]
        return OK(200, json={"pairs": rows, "next": next})

    server.says(page("p1", "p2", next="c1"), page(next="c2"), page("p3", next=None))
    if kind == "sync":
        got = [pair.pair_id for pair in server.client().preferences("ann", page_size=2)]
    else:
        client = server.async_client()
        got = [pair.pair_id async for pair in client.preferences("ann", page_size=2)]
    assert got == ["p1", "p2", "p3"]
    assert server.asked() == [
        "GET /users/ann/preferences?limit=2",
        "GET /users/ann/preferences?cursor=c1&limit=2",
        "GET /users/ann/preferences?cursor=c2&limit=2",
    ]


def test_a_base_url_with_a_path_is_kept(server):
    server.says(OK(204))
    client = Client("http://server/ppd/", transport=httpx.MockTransport(server))
    client.delete_user("ann")
    assert server.asked() == ["DELETE /ppd/users/ann"]


@pytest.mark.parametrize("answer", [OK(200, text="<html>"), OK(200, json={}), OK(302)])
def test_an_answer_that_is_not_the_promised_one_says_so(server, answer):
    server.says(answer)
    with pytest.raises(UnexpectedAnswer):
        server.client().get_user("ann")


def test_readyz_tells_what_is_missing_instead_of_raising(server):
    server.refuses(503, "unavailable", detail="encoder: loading")
    assert server.client().readyz() == Readiness(ready=False, detail="encoder: loading")
