import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st

from distiller.dashboard import guard
from distiller.dashboard.desk import tell
from distiller.dashboard.guard import COOKIE, HEADERS, Deed, Guard, _fields
from distiller.dashboard.login import _ours
from distiller.dashboard.sessions import NOBODY, OPERATOR, VIEWER, Session, Sessions

ORIGIN = "http://stillroom.example"


class Inside:
    """Something behind a guard, with what it recorded."""

    def __init__(self, without_token: bool = False) -> None:
        self.sessions, self.deeds = Sessions(), list[Deed]()
        app = FastAPI(openapi_url=None)
        app.add_api_route("/page", lambda: "seen")
        app.add_api_route("/login", lambda: "anybody")
        app.add_api_route("/act", self.act, methods=["POST"])
        app.add_api_route("/login", lambda: PlainTextResponse("", 303), methods=["POST"])
        app.add_api_route("/logout", lambda: "left", methods=["POST"])
        self.acted: list[Mapping[str, str]] = []
        guarded = Guard(
            app, self.sessions, self.deeds.append, lambda status, why: PlainTextResponse(why, status), without_token
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url=ORIGIN)

    async def act(self, request: Request) -> PlainTextResponse:
        self.acted.append(request.state.form)
        tell(request, "the target", "why")
        return PlainTextResponse("", int(request.state.form.get("status", "200")))

    def cookie(self, role: str) -> tuple[Session, dict[str, str]]:
        session = self.sessions.start(role)
        return session, {"cookie": f"{COOKIE}={self.sessions.cookie(session)}"}

    async def post(self, path: str, session: Session, headers: dict[str, str], **fields: str) -> httpx.Response:
        given = {"token": self.sessions.form_token(session)} | fields
        return await self.client.post(path, data=given, headers=headers)


async def test_who_is_not_known_is_sent_to_log_in() -> None:
    inside = Inside()
    for cookie in (
        {},
        {"cookie": f"{COOKIE}=nonsense"},
        {"cookie": f"{COOKIE}=a.b; {COOKIE}="},
        inside.cookie(NOBODY)[1],
    ):
        answer = await inside.client.get("/page", headers=cookie)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/login?next=/ui/page")
        assert (await inside.client.get("/login", headers=cookie)).status_code == 200
    part = await inside.client.get("/page", headers={"hx-request": "true"})
    assert (part.status_code, part.headers["hx-refresh"]) == (204, "true")


async def test_a_login_knows_the_whole_way_back() -> None:
    inside = Inside()
    query = "?filter=task%20%3D%20'a%26b'&range=7d"
    for path, back in (
        (f"/page{query}", f"/ui/page{query}"), ("/a%20b?x=%0d%0ay", "/ui/a%20b?x=%0d%0ay"),
        (f"/page?{'x' * 2000}", "/ui/page"),
    ):  # fmt: skip
        answer = await inside.client.get(path)
        assert answer.headers["location"].startswith("/ui/login?next=/ui/")
        asked = httpx.URL(answer.headers["location"])
        assert (asked.params["next"], _ours(asked.params["next"])) == (back, back)


async def test_those_who_are_not_inside_wait_but_for_what_takes_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "AT_ONCE", 1)
    inside, ends, came = Inside(without_token=True), asyncio.Event(), list[str]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came.append(scope["path"])
        if scope["path"] == "/slow":
            await ends.wait()
        await PlainTextResponse("")(scope, receive, send)

    guarded = Guard(app, inside.sessions, inside.deeds.append, lambda status, why: PlainTextResponse(why, status), True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://localhost") as client:
        slow = asyncio.create_task(client.get("/slow"))
        await asyncio.sleep(0.01)
        waits = asyncio.create_task(client.get("/page"))
        await client.get("/events")
        await client.get("/static/x.css")
        assert came == ["/slow", "/events", "/static/x.css"]
        ends.set()
        await asyncio.gather(slow, waits)
    assert came[-1] == "/page"


async def test_viewers_look_and_operators_act() -> None:
    inside = Inside()
    for role, status in ((VIEWER, 403), (OPERATOR, 200), (NOBODY, 403)):
        session, cookie = inside.cookie(role)
        answer = await inside.post("/act", session, cookie)
        assert answer.status_code == status
        if role != NOBODY:
            assert (await inside.client.get("/page", headers=cookie)).json() == "seen"
            assert (await inside.post("/logout", session, cookie)).status_code == 200
        else:
            assert (await inside.post("/logout", session, cookie)).status_code == 403
    assert len(inside.acted) == 1


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"])
async def test_no_other_method_gets_in(method: str) -> None:
    inside = Inside()
    answer = await inside.client.request(method, "/act", headers=inside.cookie(OPERATOR)[1])
    assert (answer.status_code, inside.acted) == (405, [])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": ORIGIN}, 200),
        ({"origin": ORIGIN, "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": f"{ORIGIN}.evil.example"}, 403),
        ({"origin": f"{ORIGIN}:8081"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": ORIGIN, "sec-fetch-site": "cross-site"}, 403),
    ],
)
async def test_a_form_comes_from_our_own_pages(headers: dict[str, str], status: int) -> None:
    inside = Inside()
    session, cookie = inside.cookie(OPERATOR)
    assert (await inside.post("/act", session, cookie | headers)).status_code == status
    assert len(inside.acted) == (1 if status == 200 else 0)


async def test_a_form_carries_its_own_sessions_token() -> None:
    inside = Inside()
    _, cookie = inside.cookie(OPERATOR)
    other, _ = inside.cookie(OPERATOR)
    right: dict[str, Any] = {"content-type": "application/x-www-form-urlencoded"}
    for content in (b"", b"token=", b"token=" + inside.sessions.form_token(other).encode(), b"\xff", b"token=\xff"):
        answer = await inside.client.post("/act", content=content, headers=cookie | right)
        assert (answer.status_code, "out of date" in answer.text) == (403, True)
    json = {"token": inside.sessions.form_token(other)}
    assert (await inside.client.post("/act", json=json, headers=cookie)).status_code == 403
    assert inside.acted == []


async def test_a_form_that_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LARGEST_FORM", 100)
    inside = Inside()
    session, cookie = inside.cookie(OPERATOR)
    assert (await inside.post("/act", session, cookie, text="x" * 101)).status_code == 413
    assert (await inside.post("/login", session, cookie, secret="x" * 5000)).status_code == 413


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8081", 200), ("localhost", 200), ("[::1]:8081", 200), ("evil.example:8081", 403), ("", 403),
        ("127.0.0.1.evil.example", 403), ("localhost@evil.example", 403), ("[", 403),
    ],
)  # fmt: skip
async def test_without_a_token_only_this_machines_own_names_are_answered(host: str, status: int) -> None:
    inside = Inside(without_token=True)
    answer = await inside.client.get("/page", headers={"host": host})
    assert (answer.status_code, "seen" in answer.text) == (status, status == 200)


async def test_without_a_token_forms_still_need_theirs() -> None:
    inside = Inside(without_token=True)
    headers = {"host": "localhost:8081", "origin": "http://localhost:8081"}
    assert (await inside.client.post("/act", data={}, headers=headers)).status_code == 403
    session = Session("local", OPERATOR, float("inf"))
    assert (await inside.post("/act", session, headers)).status_code == 200


async def test_every_answer_has_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Inside()
    session, cookie = inside.cookie(OPERATOR)
    answers = [
        await inside.client.get("/page"),
        await inside.client.get("/page", headers=cookie),
        await inside.client.get("/nowhere", headers=cookie),
        await inside.client.put("/page"),
        await inside.post("/act", session, cookie),
        await inside.client.post("/act"),
    ]
    for answer in answers:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert answer.headers["cache-control"] == "no-store"
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert {"default-src 'none'", "frame-ancestors 'none'", "script-src 'self'"} <= set(policy.split("; "))


async def test_what_is_done_is_recorded_before_it_is_answered() -> None:
    inside = Inside()
    session, cookie = inside.cookie(OPERATOR)
    for status in ("200", "409", "503"):
        await inside.post("/act", session, cookie, status=status)
    await inside.client.get("/page", headers=cookie)
    assert [deed.outcome for deed in inside.deeds] == ["done", "refused (409)", "failed (503)"]
    assert inside.deeds[0] == Deed("127.0.0.1", OPERATOR, "act", "the target", "why", "done")


async def test_what_is_refused_is_not_recorded_as_anybody_could_fill_the_log() -> None:
    inside = Inside()
    session, cookie = inside.cookie(VIEWER)
    await inside.post("/act", session, cookie)
    await inside.client.post("/act", headers=cookie)
    assert inside.deeds == []


async def test_a_form_that_comes_in_pieces_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Inside()
    session, cookie = inside.cookie(OPERATOR)
    whole = f"token={inside.sessions.form_token(session)}&text=%C3%BC+x&text=last".encode()

    async def pieces() -> Any:
        for at in range(0, len(whole), 7):
            yield whole[at : at + 7]

    headers = cookie | {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    assert (await inside.client.post("/act", content=pieces(), headers=headers)).status_code == 200
    assert inside.acted[0]["text"] == "last"


async def test_streams_pass_through_as_they_come() -> None:
    inside = Inside()
    app = FastAPI(openapi_url=None)
    app.add_api_route("/stream", lambda: StreamingResponse(iter([b"a", b"b"])))
    guarded = Guard(app, inside.sessions, inside.deeds.append, lambda status, why: PlainTextResponse(why, status), True)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()  # The client stays.
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/stream",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    await guarded(scope, receive, send)
    assert [message.get("body") for message in sent[1:]] == [b"a", b"b", b""]
    await guarded({"type": "websocket", "path": "/stream"}, receive, send)
    assert len(sent) == 4


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_a_form(content: bytes) -> None:
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in _fields(content).items())
