import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.admitting import Admit, Admitted
from proxy.app import create_app
from proxy.errors import BadInput
from proxy.feedback import MOST_BYTES, MOST_COMMENT, Feedback, named, read_feedback, respond
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.patterns import Redaction
from proxy.redact import Redactor
from proxy.replay import create_replay
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.tenants import passing_through
from proxy.traffic_file import Row
from tests.logs import migrated
from tests.proxies import Proxy, ask, proxying, raw_server
from tests.servers import serving

ID = "01KAYZ5Q8C4V0M7T2N9R3D6WXH"
EVERYTHING = Redaction(emails=True, phones=True, cards=True, ibans=True, ips=True)


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with serving(create_replay([Row(ask("greet"), "Good morning", None, "gpt-4o", None)])) as url:
        yield url


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def read(**fields: Any) -> Feedback:
    return read_feedback(json.dumps({"exchange": ID, **fields}).encode())


def test_what_may_be_said() -> None:
    assert read(score=1) == read(correct=True) == Feedback(ID, 1.0)
    assert read(correct=False, answer=None) == Feedback(ID, 0.0)
    assert read(score=0.25, comment="meh", correct=None) == Feedback(ID, 0.25, None, "meh")
    assert read(answer='{"a": "é"}') == Feedback(ID, None, '{"a": "é"}')
    assert read(comment="x" * MOST_COMMENT).comment == "x" * MOST_COMMENT


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"score": 1}', "x-stillroom-exchange"),
        ({"exchange": 5, "score": 1}, "x-stillroom-exchange"),
        ({"exchange": ID.lower(), "score": 1}, "x-stillroom-exchange"),
        ({"exchange": f"{ID}\n", "score": 1}, "x-stillroom-exchange"),
        ({"exchange": ID}, "nothing is said"),
        ({"exchange": ID, "score": None}, "nothing is said"),
        ({"exchange": ID, "scor": 1}, "did you mean 'score'"),
        ({"exchange": ID, "model": "m", "score": 1}, "use exchange, score, correct, answer, comment"),
        ({"exchange": ID, "score": True}, "number from 0 to 1"),
        ({"exchange": ID, "score": "1"}, "number from 0 to 1"),
        ({"exchange": ID, "score": 1.01}, "number from 0 to 1"),
        ({"exchange": ID, "score": -1e-9}, "number from 0 to 1"),
        (f'{{"exchange": "{ID}", "score": NaN}}'.encode(), "NaN is no number"),
        (f'{{"exchange": "{ID}", "score": 1e999}}'.encode(), "out of range"),
        (f'{{"exchange": "{ID}", "score": 0, "score": 1}}'.encode(), "a field is there twice"),
        ({"exchange": ID, "correct": 1}, "true or false"),
        ({"exchange": ID, "correct": True, "score": 1}, "say the same"),
        ({"exchange": ID, "answer": {"a": 1}}, "JSON goes into it as text"),
        ({"exchange": ID, "answer": " "}, "a text that is not empty"),
        ({"exchange": ID, "answer": "\ud83d"}, "half a character"),
        ({"exchange": ID, "comment": "a\0b"}, "NUL"),
        ({"exchange": ID, "comment": "x" * (MOST_COMMENT + 1)}, "2,001 characters"),
        (b" " * (MOST_BYTES + 1), "over 1 MB"),
    ],
)
def test_what_may_not(body: bytes | dict[str, Any], why: str) -> None:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadInput, match=why):
        read_feedback(sent)


@given(st.binary() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(as_json))
def test_no_body_breaks_it(body: bytes) -> None:
    status, answer = respond("POST", ID, body, True)
    assert status == 400
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


words = st.text(min_size=1).filter(str.strip)


@example(1.0, "\ud83d", None)
@example(None, "\0", "\0")
@given(st.none() | st.floats(), st.none() | words, st.none() | words)
def test_a_receipt_says_what_was_taken_and_every_reader_agrees(
    score: float | None, answer: str | None, comment: str | None
) -> None:
    body = json.dumps({"exchange": ID, "score": score, "answer": answer, "comment": comment}).encode()
    status, receipt = respond("POST", "01", body, True)
    said = json.loads(receipt)
    if status == 200:
        assert said == {
            "object": "feedback", "id": "01", "exchange": ID, "score": score, "answer": answer, "comment": comment,
        }  # fmt: skip
    else:
        assert said["error"]["code"] == "invalid_feedback"
    assert named(body.decode()) == ID


def test_redaction_leaves_the_exchange_and_not_the_person() -> None:
    redactor = Redactor(EVERYTHING)
    for identity in [ulid() for _ in range(500)] + ["01234567890123456789012345", "0" * 26]:
        body = json.dumps({"exchange": identity, "comment": "ask ann@example.com"}).encode()
        asked, receipt = redactor.exchange(body, respond("POST", ulid(), body, True)[1])
        assert named(asked.decode()) == json.loads(receipt)["exchange"] == identity
        assert json.loads(receipt)["comment"] == "ask [EMAIL_1]"


def test_what_names_nothing_names_nothing() -> None:
    assert [named(text) for text in ("", "[1]", "{}", '{"exchange": 1}', '"' + ID + '"', "[" * 200_000)] == [None] * 6


def spooled(folder: Path) -> str:
    """What is in the spool at this moment, in segments open or closed; one that is just renamed is looked for again."""
    with contextlib.suppress(FileNotFoundError):
        return "".join(path.read_text() for path in folder.iterdir())
    return spooled(folder)


def test_feedback_is_recorded_before_the_200_and_never_relayed(tmp_path: Path) -> None:
    with raw_server(b"HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n") as (url, got), proxying(url, tmp_path) as proxy:
        with proxy.client() as client:
            receipt = client.post(
                "/feedback", cast_to=dict[str, Any], body={"exchange": ID, "correct": False, "answer": "Good day"}
            )
            assert receipt["id"] in spooled(tmp_path)  # Already, while the worker still has the segment open.
            with pytest.raises(openai.BadRequestError, match="did you mean 'answer'") as refused:
                client.post("/feedback", cast_to=dict[str, Any], body={"exchange": ID, "answr": "x"})
        assert (refused.value.code, refused.value.type) == ("invalid_feedback", "invalid_request_error")
        got_it = httpx.post(f"{proxy.url}/feedback/", json={"exchange": ID, "score": 1})
        assert (got_it.status_code, got_it.headers["x-stillroom-served-by"]) == (200, "stillroom")
        assert httpx.get(f"{proxy.url}/feedback").status_code == 405
    assert got == []
    assert receipt == {
        "object": "feedback", "id": receipt["id"], "exchange": ID, "score": 0.0, "answer": "Good day", "comment": None,
    }  # fmt: skip
    records = proxy.records()
    assert [(record["path"], record["status"], record["served_by"]) for record in records] == [
        ("/v1/feedback", status, "stillroom") for status in (200, 400, 200, 405)
    ]
    assert (records[0]["id"], json.loads(records[0]["response"])) == (receipt["id"], receipt)
    assert records[2]["id"] == got_it.headers["x-stillroom-exchange"] == got_it.json()["id"]


def test_what_is_not_recorded_gets_no_200(teacher: str, tmp_path: Path) -> None:
    with proxying(teacher, tmp_path / "spool") as proxy:
        off = {"x-stillroom-capture": "off"}
        asked = httpx.post(f"{proxy.url}/feedback", json={"exchange": ID, "score": 1}, headers=off)
        assert (asked.status_code, asked.json()["error"]["code"]) == (400, "not_recorded")
        (tmp_path / "spool").write_text("in the way")
        lost = httpx.post(f"{proxy.url}/feedback", json={"exchange": ID, "score": 1})
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "feedback_not_stored")
        (tmp_path / "spool").unlink()
        assert httpx.post(f"{proxy.url}/feedback", json={"exchange": ID, "score": 1}).status_code == 200
    assert [record["status"] for record in proxy.records()] == [200]


def greeted(url: str, key: str) -> str:
    body = {"model": "gpt-4o", "messages": list(ask("greet"))}
    answer = httpx.post(f"{url}/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    return answer.headers["x-stillroom-exchange"]


def price(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float:
    return 10.0


def say(url: str, key: str, **fields: Any) -> None:
    answer = httpx.post(f"{url}/feedback", json=fields, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text


def admitting(teacher: str, spool: Path, admit: Admit) -> Any:
    settings = SpoolSettings(rotate_seconds=0.05)
    return create_app(ProxySettings(), TeacherSettings(url=teacher), settings, spool, admit=admit)


def test_the_last_word_of_the_exchanges_own_tenant_is_in_the_log(teacher: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with serving(admitting(teacher, spool, passing_through(b"s" * 32))) as url:
        mine, other, silent = greeted(url, "sk-ann"), greeted(url, "sk-bob"), greeted(url, "sk-ann")
        say(url, "sk-ann", exchange=mine, answer="Good day")
        say(url, "sk-ann", exchange=mine, correct=True, answer="Good évening")
        say(url, "sk-ann", exchange=mine, score=0.5, comment="late")
        say(url, "sk-bob", exchange=mine, score=0, answer="poison")
        say(url, "sk-ann", exchange=other, score=0)
        say(url, "sk-ann", exchange=ID, score=0)
    log = migrated(tmp_path)
    Ingest(log, spool, 7, price).run()
    rows = log.query("SELECT exchange, task IS NOT NULL, served_by, score, answer, comment FROM feedback")
    assert rows == [(mine, True, "teacher", 0.5, "Good évening", "late")]
    second = [record["id"] for record in Proxy(url, spool / "ingested").records() if "évening" in record["response"]]
    assert log.query("SELECT gold FROM feedback") == [(second[0],)]
    assert log.query("SELECT count(*) FROM spend") == [(3,)]
    assert log.query("SELECT DISTINCT task FROM exchanges WHERE path = '/v1/feedback'") == [(None,)]
    assert silent not in {row[0] for row in rows}
    log.close()


def test_a_key_whose_exchanges_are_not_kept_gives_no_feedback(teacher: str, tmp_path: Path) -> None:
    def admit(path: str, headers: Any, body: bytes) -> Admitted:
        return Admitted("house", capture=False)

    with serving(admitting(teacher, tmp_path, admit)) as url:
        answer = httpx.post(f"{url}/feedback", json={"exchange": ID, "score": 1})
    assert answer.json()["error"]["code"] == "not_recorded"
