import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from distiller.dashboard.exchange_view import SHOWN, TURN, TURNS, Turn, body_bytes, exchange, recorded
from distiller.settings import Settings
from proxy.errors import BadInput
from proxy.log import Log
from tests.distiller.dashboard.bundles import sealed
from tests.logs import migrated
from tests.router.conftest import insert, judged, known, spent

HEADERS = json.dumps([["content-type", "application/json"], ["x-request-id", "req_1"]])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path))


@pytest.fixture
def log(settings: Settings) -> Iterator[Log]:
    log = migrated(settings.folder)
    yield log
    log.close()


def test_an_exchange_is_shown_as_it_was_sent_with_all_that_was_made_of_it(log: Log, settings: Settings) -> None:
    said = '{"id":"1",  "choices":[]}'
    (one,) = insert(
        log, ["where is my parcel"], response=said, response_encoding="utf-8", response_bytes=25, request_bytes=120,
        response_headers=HEADERS, request_headers="[]", latency_ms=42.0, reason="no policy", tenant="acme",
    )  # fmt: skip
    candidate = known(log)
    judged(log, candidate, [0.5], exchange=one, answer="shipping", latency_ms=3.0)
    spent(log, "teacher", 0.002, one)
    spent(log, "ceiling", None, one)
    student = sealed(settings, learned=[one, "other"])
    sealed(settings, learned=["other"], weights="v")
    found = exchange(log, settings, one)
    assert (found.id, found.columns["reason"], found.columns["latency_ms"]) == (one, "no policy", 42.0)
    assert not {"request", "response", "logprobs"} & found.columns.keys()
    assert found.turns == (Turn("system", "Say which queue."), Turn("user", "where is my parcel"))
    assert (found.response.text, found.response.size) == (said, 25)
    assert found.response.pretty == '{\n  "id": "1",\n  "choices": []\n}'
    assert found.response.headers == (("content-type", "application/json"), ("x-request-id", "req_1"))
    assert [(v.candidate, v.kind, v.verdict, v.answer) for v in found.verdicts] == [
        (candidate.id, "shadow", 0.5, "shipping")
    ]
    assert [(c.kind, c.usd) for c in found.charges] == [("teacher", 0.002), ("ceiling", None)]
    assert (found.feedback, found.learned_by) == ((), (student.id,))


def test_feedback_is_shown(log: Log, settings: Settings) -> None:
    (one,) = insert(log, ["x"])
    receipt = json.dumps({"exchange": one, "score": 0.0, "answer": "shipping", "comment": "wrong queue"})
    insert(log, ["x"], path="/v1/feedback", served_by="stillroom", response=receipt)
    (told,) = exchange(log, settings, one).feedback
    assert (told.score, told.answer, told.comment) == (0.0, "shipping", "wrong queue")


def test_a_stream_is_shown_event_by_event(log: Log, settings: Settings) -> None:
    text = 'data: {"a":1}\n\ndata: not JSON\n\ndata: [DONE]\n\n'
    (one,) = insert(log, ["x"], response=text, response_encoding="utf-8", stream=True)
    found = exchange(log, settings, one).response
    assert (found.text, found.pretty) == (text, '{"a": 1}\nnot JSON\n[DONE]')


def test_bytes_come_back_as_they_were(log: Log, settings: Settings) -> None:
    packed = gzip.compress(b'{"messages": []}')
    headers = '[["content-encoding", "gzip"]]'
    (one,) = insert(
        log, ["x"], request=base64.b64encode(packed).decode(), request_encoding="base64", request_headers=headers,
        response="\u00e9", response_encoding="utf-8",
    )  # fmt: skip
    row = recorded(log, one)
    assert body_bytes(row, "request") == packed
    assert body_bytes(row, "response") == "\u00e9".encode()
    assert exchange(log, settings, one).request.text == '{"messages": []}'


def test_what_is_not_there_says_so(log: Log, settings: Settings) -> None:
    (one,) = insert(log, ["x"], request=None, request_encoding=None, response=None)
    found = exchange(log, settings, one)
    assert (found.request.text, found.response.text, found.turns) == (None, None, ())
    with pytest.raises(BadInput, match="no response of this exchange was recorded"):
        body_bytes(recorded(log, one), "response")
    with pytest.raises(BadInput, match="it was not recorded, was erased, or is past retention"):
        exchange(log, settings, "01NOWHERE")


@pytest.mark.parametrize(
    "request_body",
    ["", "[]", "7", '{"messages": 3}', '{"messages": [3]}', '{"messages": null}', "[" * 100_000, '{"messages": {}}'],
)
def test_a_strange_body_is_shown_and_breaks_nothing(log: Log, settings: Settings, request_body: str) -> None:
    (one,) = insert(log, ["x"], request=request_body, response=request_body, response_encoding="utf-8")
    found = exchange(log, settings, one)
    assert (found.turns, found.request.text) == ((), request_body[:SHOWN])


def test_long_texts_are_cut_and_how_much_is_told(log: Log, settings: Settings) -> None:
    turns = [{"role": "user", "content": "x" * (TURN + 7)}, {"role": "us\ud800er", "content": "\ud800"}]
    turns += [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}] * TURNS
    body = json.dumps({"messages": turns}) + " " * SHOWN
    (one,) = insert(log, ["x"], request=body)
    found = exchange(log, settings, one)
    assert found.request.left_out == len(body) - SHOWN
    assert len(found.turns) == TURNS + 1
    assert found.turns[0].text.endswith("\u2026 (7 more characters)")
    assert found.turns[1] == Turn("us?er", "?")
    assert '"tool_calls"' in found.turns[2].text
    assert found.turns[-1].text == "2 more messages: see the body"
