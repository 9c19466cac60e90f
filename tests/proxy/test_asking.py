import asyncio
import base64
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request, Response
from hypothesis import given
from hypothesis import strategies as st

from proxy.answers import Held
from proxy.asking import REFUSED_SECONDS, Asking, Kind, ask_for_logprobs, check_share
from proxy.counters import Counters
from proxy.errors import BadInput
from proxy.exchange import Exchange
from proxy.logprobs import Position, read, unpacked
from proxy.withholding import Withheld
from tests.proxies import ask, proxying
from tests.proxy.test_logprobs import entry
from tests.proxy.test_relay import deciding, sure
from tests.proxy.test_usage import JSON, SPELLINGS, same
from tests.servers import serving

BODY = b'{"model":"m","messages":[]}'
KIND = Kind("m", "none")
WORDS = ["Good ", "mörning", " 🙂"]
SAYS: dict[str, Any] = {"error": {"message": "logprobs are not supported"}}
Refusal = Callable[[dict[str, Any]], int]


# Without the names that matter: which of them change what is asked stands below.
MATTER = {
    "n", "tools", "functions", "audio", "response_format", "logprobs", "top_logprobs", "modalities", "prediction",
    "web_search_options",
}  # fmt: skip
OTHERS = st.text().filter(lambda name: name not in MATTER)


@given(st.dictionaries(OTHERS, JSON, max_size=4), st.sampled_from(SPELLINGS), st.booleans())
def test_what_is_spliced_in_is_all_that_changes(more: dict[str, Any], spell: Callable[[Any], bytes], bom: bool) -> None:
    whole = {**more, "model": "m"}
    body = b"\xef\xbb\xbf" * bom + spell(whole)
    asked = ask_for_logprobs(body)
    assert asked is not None
    assert json.loads(asked.body) == {**whole, "logprobs": True, "top_logprobs": 20}
    assert same(body, asked.body) + same(body[::-1], asked.body[::-1]) >= len(body)
    assert asked.kind == KIND


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({}, "none"), ({"response_format": None}, "none"), ({"response_format": {"type": "text"}}, "none"),
        ({"response_format": {"type": "json_object"}}, "json_object"), ({"n": 1, "tools": None}, "none"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "json_schema"), ({"n": None}, "none"),
        ({"response_format": {"type": "yaml"}}, None), ({"response_format": {"type": ["text"]}}, None),
        ({"response_format": "text"}, None), ({"n": 2}, None), ({"n": True}, None), ({"logprobs": False}, None),
        ({"top_logprobs": None}, None), ({"tools": []}, None), ({"functions": [1]}, None), ({"audio": {}}, None),
        ({"modalities": ["text"]}, None), ({"prediction": {}}, None), ({"web_search_options": {}}, None),
        ({"model": None}, None), ({"stream": True, "stream_options": {"include_usage": True}}, "none"),
    ],
)  # fmt: skip
def test_who_asks_and_for_what_a_refusal_would_hold(more: dict[str, Any], kind: str | None) -> None:
    asked = ask_for_logprobs(json.dumps({"model": "m", **more}).encode())
    assert (None if asked is None else asked.kind.response_format) == kind


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        BODY + b"{}",
        b'{"model":"m","a":"\xff"}',
        gzip.compress(BODY, mtime=0),
        b'{"model":' + b"[" * 100_000,
    ],
)
def test_what_is_not_one_object_in_utf8_goes_as_it_came(body: bytes) -> None:
    assert ask_for_logprobs(body) is None


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    check_share(0.0)
    check_share(1.0)
    with pytest.raises(BadInput, match=r"teacher\.logprobs_share must be from 0"):
        check_share(share)


def exchange(number: object = "1", **more: Any) -> Exchange:
    return Exchange(**{"id": f"{number}", "ts": 0.0, "method": "POST", "path": "/v1/chat/completions"} | more)


def test_the_share_is_that_of_the_exchanges_and_the_same_for_each() -> None:
    asking = [Asking(0.3, (), Counters()) for _ in range(2)]
    drawn = [[one.of(exchange(n), BODY) is not None for n in range(2000)] for one in asking]
    assert drawn[0] == drawn[1]
    assert sum(drawn[0]) == pytest.approx(600, abs=100)


@pytest.mark.parametrize("more", [{"path": "/v1/completions"}, {"method": "GET"}, {"capture": False}])
def test_nobody_else_asks(more: dict[str, Any]) -> None:
    assert Asking(1.0, (), Counters()).of(exchange(), BODY) is not None
    assert Asking(1.0, (), Counters()).of(exchange(**more), BODY) is None
    assert Asking(1.0, ("other/", "m"), Counters()).of(exchange(), BODY) is None


def answered(status: int, body: bytes = b"", **more: Any) -> Held:
    return Held(status, tuple(more.get("headers", ())), "application/json", "", 1, body)


ANSWERED = answered(200)


def outcome(asking: Asking, first: Held, then: Held = ANSWERED) -> tuple[object, int]:
    """What the client gets, and how often the teacher was asked again."""
    times = []

    async def again() -> Held:
        times.append(1)
        return then

    return asyncio.run(asking.answer(exchange(), KIND, first, again)), len(times)


@pytest.mark.parametrize(
    ("first", "then", "repeated", "learned"),
    [
        (answered(400), answered(200), True, True),
        (answered(500), answered(200), True, True),
        (answered(400), answered(400, b"again"), True, False),
        (answered(400), answered(429), True, False),
        (answered(403, b"no logprobs"), answered(200), True, True),
        (
            answered(422, gzip.compress(b"logprobs"), headers=[(b"content-encoding", b"gzip")]),
            answered(200),
            True,
            True,
        ),
        (answered(404, b"no such model"), answered(200), False, False),
        (answered(429, b"logprobs"), answered(200), False, False),
        (answered(503), answered(200), False, False),
    ],
)
def test_what_is_refused_is_asked_again_and_learned_from_where_that_helped(
    first: Held, then: Held, repeated: bool, learned: bool
) -> None:
    counters = Counters()
    asking = Asking(1.0, (), counters)
    assert outcome(asking, first, then) == (then if repeated else first, repeated)
    assert (asking.of(exchange(), BODY) is None) == learned
    assert asking.of(exchange(), b'{"model":"m","response_format":{"type":"json_object"}}') is not None
    assert counters.registry.get_sample_value("stillroom_logprobs_total", {"outcome": "refused"}) == learned


def test_after_an_hour_one_is_tried_and_an_answer_is_as_if_nothing_had_been() -> None:
    now = 0.0
    asking = Asking(1.0, (), Counters(), lambda: now)
    outcome(asking, answered(400))
    now = REFUSED_SECONDS - 1
    assert asking.of(exchange(), BODY) is None
    now = REFUSED_SECONDS
    assert [asking.of(exchange(n), BODY) is not None for n in range(3)] == [True, False, False]
    outcome(asking, answered(200, b"{}"))
    assert asking.of(exchange(), BODY) is not None


def test_a_refusal_is_of_the_teacher_that_refused_and_prefixes_are_of_the_usual_one() -> None:
    asking = Asking(1.0, ("claude/",), Counters())
    outcome(asking, answered(400))
    assert asking.of(exchange(), BODY) is None
    question = asking.of(exchange(teacher="german"), BODY)
    assert question is not None
    assert question.kind == KIND._replace(teacher="german")
    translated = BODY.replace(b'"m"', b'"claude/m"')
    assert asking.of(exchange(), translated) is None
    assert asking.of(exchange(teacher="german"), translated) is not None


def test_no_more_than_a_thousand_refusals_are_remembered() -> None:
    asking = Asking(1.0, (), Counters())

    async def again() -> Held:
        return answered(200)

    async def many() -> None:
        for n in range(1500):
            await asking.answer(exchange(), Kind(f"{n}", "none"), answered(400), again)

    asyncio.run(many())
    assert len(asking._until) == 1000
    assert asking.of(exchange(), b'{"model":"1499"}') is None


def test_what_cannot_be_read_passes_and_is_not_asked_again() -> None:
    asking, coded = Asking(1.0, (), Counters()), answered(200, b"?", headers=[(b"Content-Encoding", b"zstd")])
    assert outcome(asking, coded) == (coded, 0)
    assert asking.of(exchange(), BODY) is None
    stream = Held(200, (), "text/event-stream", "", 1, b"")
    assert isinstance(outcome(asking, stream)[0], Withheld)


class Teacher:
    """Speaks as OpenAI does, says the same always, and refuses log-probabilities with what `refuses` gives, if any."""

    def __init__(self, refuses: Refusal = lambda asked: 0, words: list[str] = WORDS) -> None:
        self.asked: list[dict[str, Any]] = []
        self.app = FastAPI()
        self.app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        self._refuses, self._words = refuses, words

    async def chat(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(asked)
        status = self._refuses(asked)
        if status:
            return Response(json.dumps(SAYS), status, media_type="application/json")
        told = [entry(word.encode(), -0.5, (word.encode(), -0.5), (b"x", -2.0)) for word in self._words]
        if not asked.get("logprobs"):
            told = []
        if asked.get("stream"):
            return Response(self._stream(asked, told), media_type="text/event-stream")
        message = {"role": "assistant", "content": "".join(self._words)}
        logprobs = {"content": told, "refusal": None} if told else None
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return Response(json.dumps(whole), media_type="application/json")

    def _stream(self, asked: dict[str, Any], told: list[Any]) -> bytes:
        usage: dict[str, Any] = {"usage": None} if "stream_options" in asked else {}
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        chunks = []
        for place, word in enumerate(self._words):
            logprobs = {"content": [told[place]], "refusal": None} if told else None
            choice = {"index": 0, "delta": {"content": word}, "logprobs": logprobs, "finish_reason": None}
            chunks.append({**head, "choices": [choice], **usage})
        chunks += [{**head, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}] if usage else []
        return b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in chunks) + b"data: [DONE]\n\n"


@contextmanager
def proxied(teacher: Teacher, spool: Path, **more: Any) -> Iterator[Any]:
    with serving(teacher.app) as url, proxying(url, spool, **({"logprobs_share": 1.0} | more)) as proxy:
        yield proxy


def post(proxy: Any, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(
        f"{proxy.url}/chat/completions", json={"model": "m", "messages": ask("hi"), **body}, headers=headers
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stream_usage", [False, True])
def test_the_client_sees_what_it_would_have_seen_and_the_record_has_what_was_told(
    stream: bool, stream_usage: bool, tmp_path: Path
) -> None:
    teacher, unasked = Teacher(), Teacher()
    with proxied(teacher, tmp_path / "a", stream_usage=stream_usage) as proxy:
        through = post(proxy, {"stream": stream})
    with proxied(unasked, tmp_path / "b", stream_usage=stream_usage, logprobs_share=0.0) as other:
        straight = post(other, {"stream": stream})
    assert [(one.get("logprobs"), one.get("top_logprobs")) for one in teacher.asked + unasked.asked] == [
        (True, 20),
        (None, None),
    ]
    assert (through.status_code, through.content) == (straight.status_code, straight.content)
    assert b'"logprobs": null' in through.content
    assert through.headers.get("content-length") == (None if stream else str(len(through.content)))
    (record,), (plain,) = proxy.records(), other.records()
    assert (record["request"], record["response"]) == (plain["request"], plain["response"])
    assert "logprobs" not in json.loads(record["request"])
    assert "logprobs" not in plain
    assert [one.token.decode() for one in kept(record)] == WORDS
    assert kept(record)[0].top == ((b"Good ", -0.5), (b"x", -2.0))


def kept(record: dict[str, Any]) -> tuple[Position, ...]:
    return unpacked(base64.b64decode(record["logprobs"]))


def test_a_teacher_that_refuses_is_asked_again_once_and_then_no_more(tmp_path: Path) -> None:
    teacher = Teacher(lambda asked: 400 if asked.get("logprobs") else 0)
    with proxied(teacher, tmp_path) as proxy:
        answers = [post(proxy, {"stream": stream}) for stream in (True, False, True)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [one.get("logprobs") for one in teacher.asked] == [True, None, None, None]
    assert all("logprobs" not in record for record in proxy.records())


def test_a_clients_own_error_is_its_own_and_is_no_refusal(tmp_path: Path) -> None:
    teacher = Teacher(lambda asked: 400 if asked.get("temperature") else 0)
    with proxied(teacher, tmp_path) as proxy:
        wrong, right = post(proxy, {"temperature": 9}), post(proxy, {})
    assert (wrong.status_code, wrong.json(), right.status_code) == (400, SAYS, 200)
    assert [one.get("logprobs") for one in teacher.asked] == [True, None, True]


def test_who_asks_itself_gets_them_and_who_opts_out_or_has_a_candidate_asks_nothing(tmp_path: Path) -> None:
    teacher = Teacher()
    with proxied(teacher, tmp_path / "a") as proxy:
        own = post(proxy, {"logprobs": True, "top_logprobs": 2})
        post(proxy, {}, {"x-stillroom-capture": "off"})
    assert [one.token.decode() for one in read(own.text)] == WORDS
    assert [one.get("top_logprobs") for one in teacher.asked] == [2, None]
    assert [record.get("logprobs") for record in proxy.records()] == [None]
    with proxied(teacher, tmp_path / "b", decide=deciding(sure)) as proxy:
        assert post(proxy, {}).json() == {"from": "student"}
    assert len(teacher.asked) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_redacted_is_not_spelled_by_its_probabilities(stream: bool, tmp_path: Path) -> None:
    secret = "sk-proj-" + "Ab3" * 12
    with proxied(Teacher(words=["my key is ", secret[:20], secret[20:]]), tmp_path / "a") as proxy:
        assert secret[20:] in post(proxy, {"stream": stream}).text
    with proxied(Teacher(), tmp_path / "b") as other:
        post(other, {"stream": stream, "user": secret})
    for (record,) in (proxy.records(), other.records()):
        assert "logprobs" not in record
        assert secret not in json.dumps(record)


def test_the_openai_client_sees_the_same(tmp_path: Path) -> None:
    with proxied(Teacher(), tmp_path) as proxy, proxy.client() as client:
        assert isinstance(client, openai.OpenAI)
        messages: Any = ask("hi")
        whole = client.chat.completions.create(model="m", messages=messages)
        chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
    assert (whole.choices[0].message.content, whole.choices[0].logprobs) == ("".join(WORDS), None)
    assert [chunk.choices[0].delta.content for chunk in chunks] == WORDS
    assert all(chunk.choices[0].logprobs is None and "usage" not in chunk.model_fields_set for chunk in chunks)
    assert [[one.token.decode() for one in kept(record)] for record in proxy.records()] == [WORDS, WORDS]
