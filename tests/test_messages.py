"""Clients that speak Anthropic's Messages API: relayed and recorded as it came, and charged."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from proxy.ingest import Ingest
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.spool import closed_segments
from router.prices import cost as price_of
from router.settings import Price
from tests.logs import migrated
from tests.proxies import proxying, raw_server
from tests.servers import eventually, serving

KEY = "sk-ant-api03-Xk29vQ7hT4mB1nR8"
HEADERS = {
    "x-api-key": KEY,
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "a-beta-2026-01-01",
    "content-type": "application/json",
}
# As nobody would serialise it: what arrives changed shows.
ASKED = (
    b'{ "model":"claude-x" ,"max_tokens":16, "system":"Be brief.","messages":[{"role":"user","content":"h\\u00e9"}]%s}'
)
USAGE = b'{"input_tokens":9,"output_tokens":2}'
PLAIN = b'{"id":"msg_1", "type":"message","content":[{"type":"text","text":"H\xc3\xa9"}],"usage":%s}\n' % USAGE
EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9}}}\n\n',
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text",',
    b'"text":""}}\n\nevent: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_',
    b'delta","text":"H\xc3',
    b'\xa9"}}\n\nevent: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},',
    b'"usage":{"output_tokens":2}}\n\nevent: mess',
    b'age_stop\ndata: {"type":"message_stop"}\n\n',
)
OVERLOADED = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
ANSWERS = {"": (200, b"application/json", (PLAIN,)), ',"stream":true': (200, b"text/event-stream", EVENTS)}
ANSWERS[',"overload":1'] = 529, b"application/json", (OVERLOADED,)


@dataclass
class Anthropic:
    """A server in Anthropic's manner with fixed answers; it keeps what it heard."""

    heard: list[tuple[str, dict[bytes, bytes], bytes]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.heard.append((scope["path"], dict(scope["headers"]), body))
        status, kind, parts = next(ANSWERS[more] for more in sorted(ANSWERS, reverse=True) if more.encode() in body)
        limits = [(b"request-id", b"req_7"), (b"anthropic-ratelimit-requests-remaining", b"49"), (b"retry-after", b"3")]
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *limits]})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextmanager
def proxied(spool: Path) -> Iterator[tuple[str, Anthropic]]:
    upstream = Anthropic()
    with serving(upstream) as teacher:
        with serving(create_app(ProxySettings(), TeacherSettings(url=teacher), SpoolSettings(), spool)) as url:
            yield url, upstream


@pytest.mark.parametrize("more", ANSWERS)
def test_an_exchange_is_relayed_byte_for_byte_and_kept_without_its_key(more: str, tmp_path: Path) -> None:
    status, kind, parts = ANSWERS[more]
    asked = ASKED % more.encode()
    with proxied(tmp_path) as (url, upstream):
        answer = httpx.post(f"{url}/messages", content=asked, headers=HEADERS)
    assert (answer.status_code, answer.content) == (status, b"".join(parts))
    assert answer.headers["content-type"] == kind.decode()
    assert answer.headers["request-id"] == "req_7"
    assert answer.headers["anthropic-ratelimit-requests-remaining"] == "49"
    assert answer.headers["retry-after"] == "3"
    ((path, headers, body),) = upstream.heard
    assert (path, body) == ("/v1/messages", asked)
    assert {name: headers[name.encode()].decode() for name in HEADERS} == HEADERS
    (line,) = recorded(tmp_path)
    record = json.loads(line)
    assert (record["request"].encode(), record["response"].encode()) == (asked, b"".join(parts))
    assert (record["status"], record["stream"], record["partial"]) == (status, "stream" in more, False)
    assert KEY not in line


def test_it_is_in_the_log_raw_and_at_its_price(tmp_path: Path) -> None:
    with proxied(tmp_path / "spool") as (url, _):
        for more in ANSWERS:
            httpx.post(f"{url}/messages", content=ASKED % more.encode(), headers=HEADERS)

    def price(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float | None:
        return None if prompt is None or completion is None else prompt + completion / 10

    log = migrated(tmp_path)
    assert Ingest(log, tmp_path / "spool", 7, price).run() == len(ANSWERS)
    rows = log.query("SELECT request, response, partial, model, answer, prompt_tokens FROM exchanges ORDER BY id")
    expected = [(ASKED % more.encode(), b"".join(parts)) for more, (_, _, parts) in ANSWERS.items()]
    assert [(request.encode(), response.encode()) for request, response, *_ in rows] == expected
    read = [False, "claude-x", "Hé", 9]
    assert [derived for _, _, *derived in rows] == [read, read, [False, "claude-x", None, None]]
    assert log.query("SELECT usd FROM spend") == [(9.2,), (9.2,)]


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (b'{"input_tokens":9,"output_tokens":2,"cache_creation_input_tokens":40}', 59.2),
        (b'{"input_tokens":9,"output_tokens":2,"server_tool_use":{"web_search_requests":1}}', None),
        (b'{"input_tokens":9,"output_tokens":2,"cache_creation_input_tokens":"many"}', None),
        (b'{"input_tokens":9}', None),
        (b"null", None),
    ],
)
def test_what_writing_the_cache_costs_is_charged_and_what_is_not_known_is_unpriced(
    usage: bytes, usd: float | None, tmp_path: Path
) -> None:
    answer = b'{"content":[],"stop_reason":"end_turn","usage":%s}' % usage
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
    with raw_server(head + answer) as (url, _), proxying(url, tmp_path / "spool") as proxy:
        httpx.post(f"{proxy.url}/messages", content=ASKED % b"", headers=HEADERS)
    log = migrated(tmp_path)
    cost = partial(price_of, {"claude-x": Price(1e6, 1e5)})
    assert Ingest(log, tmp_path / "spool", 7, cost).run() == 1
    assert log.query("SELECT usd FROM spend") == [(usd,)]


def test_it_is_on_disk_before_its_last_event_is_out(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    with raw_server(head + b"".join(EVENTS), hold=True) as (url, _), proxying(url, tmp_path) as proxy:
        with httpx.stream("POST", f"{proxy.url}/messages", content=ASKED % b"", headers=HEADERS) as answer:
            next(chunk for chunk in answer.iter_bytes() if b"message_stop" in chunk)
            record = eventually(proxy.records)[0]  # While the upstream still holds its connection.
    assert (record["partial"], record["response"].encode()) == (False, b"".join(EVENTS))


def recorded(spool: Path) -> list[str]:
    return [line for segment in closed_segments(spool) for line in segment.read_text(encoding="utf-8").splitlines()]
