"""The main flow and its failures, on one real server."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import httpx
import pytest
from PIL import Image

from ppd_serve.api.schemas import LIMITS
from tests.api.test_images import BAD
from tests.e2e.conftest import is_problem, pairs, until
from tests.e2e.server import Server
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS

pytestmark = pytest.mark.e2e

DRAW = {"prompt": "a boat", "seed": 7}


def drawn(http: httpx.Client, **fields: object) -> tuple[dict, bytes]:
    response = http.post("/generate", json={**DRAW, **fields})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert response.headers["generation-id"] == answer["id"]
    return answer, base64.b64decode(answer["images"][0].get("b64_json", ""))


def pixels(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("PNG", (64, 64))
    return image.tobytes()


def test_from_choices_to_a_picture(http: httpx.Client) -> None:
    assert http.get("/users/flow").status_code == 404
    _, nobody = drawn(http)
    assert http.put("/users/flow").status_code == 201
    answer, base = drawn(http, user_id="flow")
    assert answer["users"][0]["personalized"] is False
    assert pixels(base) == pixels(nobody)

    added = http.post("/users/flow/preferences", json=pairs(4))
    assert added.status_code == 201, added.text
    assert added.json()["embedding"]["status"] == "current"
    answer, personal = drawn(http, user_id="flow")
    assert answer["users"] == [
        {"user_id": "flow", "weight": 1.0, "personalized": True, "version": 1, "pairs_used": 4}
    ]
    assert pixels(personal) != pixels(nobody)
    assert pixels(drawn(http, user_id="flow", preference_scale=0)[1]) == pixels(nobody)
    halves = [{"user_id": "flow", "weight": 0.5}] * 2
    assert pixels(drawn(http, users=halves)[1]) == pixels(personal)

    shape = http.get("/users/flow/embedding").json()["shape"]
    assert shape == [EMBEDDING_ROWS, EMBEDDING_DIM]
    assert b"flow" not in personal  # a picture names nobody


def test_the_ways_to_get_pictures(http: httpx.Client) -> None:
    answer, _ = drawn(http, n=2, response_format="url")
    assert [image["seed"] for image in answer["images"]] == [7, 8]
    for image in answer["images"]:
        assert pixels(http.get(image["url"]).content)
        assert http.get(f"/images/{image['image_id']}").status_code == 200
    bare = http.post("/generate", json=DRAW, headers={"Accept": "image/png"})
    assert bare.headers["content-type"] == "image/png"
    assert pixels(bare.content) == pixels(http.get(answer["images"][0]["url"]).content)
    key = {"Idempotency-Key": "draw-once"}
    twice = [http.post("/generate", json={"prompt": "x"}, headers=key).json() for _ in range(2)]
    assert twice[0] == twice[1]
    other = http.post("/generate", json={"prompt": "y"}, headers=key)
    is_problem(other, 422, "invalid-input", "Idempotency-Key")


def test_preferences_are_kept(http: httpx.Client) -> None:
    key = {"Idempotency-Key": "add-once"}
    twice = [
        http.post("/users/kept/preferences", json=pairs(3), headers=key).json() for _ in range(2)
    ]
    assert twice[0] == twice[1]
    first = http.get("/users/kept/preferences?limit=2").json()
    rest = http.get("/users/kept/preferences", params={"cursor": first["next"]}).json()
    listed = [pair["pair_id"] for pair in first["pairs"] + rest["pairs"]]
    assert (listed, rest["next"]) == (twice[0]["pair_ids"], None)
    assert http.get(f"/images/{first['pairs'][0]['preferred']['image_id']}").content
    for _ in range(2):
        assert http.delete(f"/users/kept/preferences/{listed[0]}").status_code == 204
    assert drawn(http, user_id="kept")[0]["users"][0]["pairs_used"] == 2


def test_a_taste_is_shared_without_its_owner(http: httpx.Client) -> None:
    for kind in ("early", "late"):
        http.post("/users/owner/preferences", json=pairs(1, kind))
    listed = http.get("/users/owner/embeddings").json()["embeddings"]
    assert [one["version"] for one in listed] == [2, 1]
    old = pixels(drawn(http, users=[{"user_id": "owner", "version": 1}])[1])
    assert old != pixels(drawn(http, user_id="owner")[1])
    made = http.post("/users/owner/taste-codes", json={"version": 1})
    assert made.status_code == 201, made.text
    code = made.json()["code"]
    answer, shared = drawn(http, users=[{"taste_code": code}])
    assert pixels(shared) == old
    (used,) = answer["users"]
    assert "user_id" not in used and used["version"] == 1
    assert b"owner" not in shared and code.encode() not in shared

    said = {"image_id": answer["images"][0]["image_id"], "liked": True}
    assert http.post("/users/viewer/feedback", json=said).status_code == 201
    in_use = http.delete(f"/images/{said['image_id']}")
    is_problem(in_use, 409, "conflict", "image_id")
    assert http.delete(f"/users/owner/taste-codes/{code}").status_code == 204
    gone = http.post("/generate", json={**DRAW, "users": [{"taste_code": code}]})
    is_problem(gone, 404, "not-found", "users.0.taste_code")


def test_a_question_is_asked_and_answered(http: httpx.Client) -> None:
    first, second = (http.post("/users/asked/questions", json={}) for _ in range(2))
    assert first.status_code == second.status_code == 201, first.text
    question = first.json()
    left, right = (httpx.get(question[side]["url"]).content for side in ("left", "right"))
    assert pixels(left) != pixels(right)
    assert question["prompt"] != second.json()["prompt"]
    place = f"/users/asked/questions/{question['question_id']}/answer"
    answer = http.put(place, json={"choice": "right"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["pairs_total"], told["embedding"]["status"]) == (1, "current")
    is_problem(http.put(place, json={"choice": "left"}), 409, "conflict", "choice")
    assert drawn(http, user_id="asked")[0]["users"][0]["personalized"]


def test_neighbors(http: httpx.Client) -> None:
    for name in ("near1", "near2"):
        http.post(f"/users/{name}/preferences", json=pairs(1, "neighbours"))
    found = http.get("/users/near1/neighbors?k=100").json()["neighbors"]
    assert "near2" in {near["user_id"] for near in found}
    http.delete("/users/near2")
    found = http.get("/users/near1/neighbors?k=100").json()["neighbors"]
    assert "near2" not in {near["user_id"] for near in found}


def test_concurrent_posts_end_with_the_newest(http: httpx.Client) -> None:
    def post(number: int) -> int:
        return http.post("/users/busy/preferences", json=pairs(1, f"p{number}")).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(post, range(8))) == {201}
    user = http.get("/users/busy").json()
    assert user["embedding"] == {**user["embedding"], "pairs_used": 8, "status": "current"}
    assert http.get("/users/busy/embedding").json()["version"] == user["embedding"]["version"] == 8


def test_errors_over_the_wire(http: httpx.Client) -> None:
    is_problem(http.get("/nowhere"), 404, "not-found")
    is_problem(http.post("/users/ann"), 405, "method-not-allowed")
    is_problem(http.get("/users/nobody"), 404, "not-found", "user_id")
    is_problem(
        http.post("/generate", json={**DRAW, "user_id": "nobody"}), 404, "not-found", "user_id"
    )
    is_problem(http.post("/generate", json={**DRAW, "x": 1}), 422, "invalid-input", "x")
    is_problem(http.post("/generate", json={**DRAW, "width": 60}), 422, "invalid-input", "width")
    wrong = http.post("/generate", json={**DRAW, "sampler": "magic"})  # the engine says so
    is_problem(wrong, 422, "invalid-input", "sampler")
    raw = {"Content-Type": "application/json"}
    is_problem(http.post("/generate", content=b"{", headers=raw), 400, "malformed-json")
    for body, field in [
        (b'{"prompt":"\\ud800"}', "prompt"),
        (b'{"prompt":"a","seed":NaN}', "seed"),
    ]:
        is_problem(http.post("/generate", content=body, headers=raw), 422, "invalid-input", field)
    empty = http.post("/users/e/preferences", json={"pairs": []})
    is_problem(empty, 422, "invalid-input", "pairs")
    is_problem(http.post("/images", content=bytes(LIMITS.body_bytes + 1)), 413, "too-large")
    mine = http.get("/nowhere", headers={"X-Request-ID": "mine"})
    assert mine.headers.get_list("x-request-id") == ["mine"]
    assert "/generate" in http.get("/docs").text
    assert http.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("name", ["text", "truncated png", "bomb", "40 MP"])
def test_bad_pictures_store_nothing(http: httpx.Client, name: str) -> None:
    is_problem(http.post("/images", content=BAD[name]), 422, "bad-image", "body")
    body = pairs(2)
    body["pairs"][1]["rejected"] = {"b64_json": base64.b64encode(BAD[name]).decode()}
    response = http.post("/users/spoiled/preferences", json=body)
    is_problem(response, 422, "bad-image", "pairs.1.rejected.b64_json")
    assert http.get("/users/spoiled").status_code == 404


LONG = {**DRAW, "n": 8, "steps": 100}


def test_a_client_that_leaves_cancels_its_drawing(server: Server, http: httpx.Client) -> None:
    diffuser = server.actor("Diffuser")
    leaving = HTTPConnection("127.0.0.1", server.port)
    raw = {"Content-Type": "application/json"}
    leaving.request("POST", "/generate", json.dumps({**LONG, "prompt": "left"}), raw)
    until(lambda: _state(server, "left"))
    os.kill(diffuser, signal.SIGSTOP)  # so that the drawing lasts until its client has left
    leaving.close()
    until(lambda: _state(server, "left") == "cancelled")
    os.kill(diffuser, signal.SIGCONT)
    until(lambda: http.post("/generate", json=DRAW).status_code == 200)


def _state(server: Server, prompt: str) -> str | None:
    """Of the generation with this prompt; None while there is none."""
    with sqlite3.connect(server.data / "ppd.db") as db:
        records = db.execute("select state, request from generations").fetchall()
    return next((state for state, request in records if f'"{prompt}"' in request), None)


class Posting:
    """A post that is held up in the encoder, which is made to stand still."""

    def __init__(self, server: Server, http: httpx.Client, user_id: str) -> None:
        self.encoder = server.actor("Encoder")
        os.kill(self.encoder, signal.SIGSTOP)
        self._thread = threading.Thread(target=self._post, args=(server, user_id))
        self._thread.start()
        until(lambda: len(http.get(f"/users/{user_id}/preferences").json().get("pairs", [])) == 1)

    def _post(self, server: Server, user_id: str) -> None:
        with server.client() as http:
            self.response = http.post(f"/users/{user_id}/preferences", json=pairs(1, user_id))

    def answer(self) -> httpx.Response:
        self._thread.join()
        return self.response


def test_a_late_encode_revives_nobody(server: Server, http: httpx.Client) -> None:
    posting = Posting(server, http, "late")
    assert http.delete("/users/late").status_code == 204
    os.kill(posting.encoder, signal.SIGCONT)
    assert posting.answer().status_code == 201
    for path in ("/users/late", "/users/late/embedding", "/users/late/preferences"):
        assert http.get(path).status_code == 404
    is_problem(
        http.post("/generate", json={**DRAW, "user_id": "late"}), 404, "not-found", "user_id"
    )


def test_an_encoder_killed_in_mid_post_means_pending(server: Server, http: httpx.Client) -> None:
    posting = Posting(server, http, "held")
    os.kill(posting.encoder, signal.SIGKILL)

    def replacement() -> int:
        found = server.actor("Encoder")
        return found if found != posting.encoder else 0

    successor = until(replacement)
    os.kill(successor, signal.SIGSTOP)  # else it might be up in time to answer, on a fast machine
    answer = posting.answer()
    assert answer.status_code == 201
    assert answer.json()["embedding"] == {
        **answer.json()["embedding"], "version": 0, "pairs_used": 0, "status": "pending",
    }  # fmt: skip
    body = {**DRAW, "user_id": "held"}
    response = http.post("/generate", json=body)
    is_problem(response, 503, "encoder-unavailable")
    assert response.headers["retry-after"]
    os.kill(successor, signal.SIGCONT)
    used = until(lambda: http.post("/generate", json=body).json().get("users"))
    assert used[0]["pairs_used"] == 1
    until(lambda: http.get("/readyz").status_code == 200)


def test_a_diffuser_that_dies_comes_back(server: Server, http: httpx.Client) -> None:
    diffuser = server.actor("Diffuser")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(http.post, "/generate", json={**LONG, "prompt": "cut off"})
        until(lambda: _state(server, "cut off"))
        os.kill(diffuser, signal.SIGKILL)
        is_problem(response := held.result(), 503, "actor-unavailable")
    assert response.headers["retry-after"]
    assert _state(server, "cut off") == "failed"
    until(lambda: http.post("/generate", json=DRAW).status_code == 200)


def test_an_index_that_dies_is_fed_again(server: Server, http: httpx.Client) -> None:
    for name in ("fed1", "fed2"):
        http.post(f"/users/{name}/preferences", json=pairs(1, name))
    before = http.get("/users/fed1/neighbors?k=100").json()
    index = server.actor("UserIndex")
    os.kill(index, signal.SIGKILL)
    assert drawn(http, user_id="fed1")[0]["users"][0]["personalized"]
    until(lambda: server.actor("UserIndex") != index)
    until(lambda: http.get("/users/fed1/neighbors?k=100").json() == before)


def test_a_gateway_that_dies_is_a_problem_document(server: Server, http: httpx.Client) -> None:
    gateway = server.actor("Gateway")
    os.kill(gateway, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(http.get, "/users/flow")
        os.kill(gateway, signal.SIGKILL)
        response = held.result()
    if response.status_code != 200:  # the next gateway takes what this one had not begun
        is_problem(response, 503, "actor-unavailable")
    until(lambda: http.get("/readyz").status_code == 200)
    assert http.get("/users/kept").json()["pairs_total"] == 2
