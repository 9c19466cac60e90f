import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from proxy.app import create_app
from proxy.deciding import Answer, Asked, CandidateFailed, Decide, Decision, always_teacher
from proxy.derive import CHAT
from proxy.errors import BadInput
from proxy.replay import create_replay
from proxy.settings import (
    NamedTeacherSettings,
    ProxySettings,
    SpoolSettings,
    SunsetSettings,
    TaskTeachersSettings,
    TeacherSettings,
)
from proxy.tasks import task_of
from proxy.teachers import Teachers, connect_teachers
from proxy.traffic_file import Row
from tests.proxies import Proxy
from tests.servers import eventually, free_port, serving

TASK = "support"
KEYS = {"USUAL_KEY": "sk-usual-0123456789abcdef", "GERMAN_KEY": "sk-german-0123456789abcdef"}
GERMAN, ENGLISH = "Wo ist meine Bestellung geblieben?", "Where has my order gone to?"
FRENCH = "Je voudrais savoir où est ma commande."
BY_LANGUAGE = TaskTeachersSettings("language", {"de": "german", "fr": "french"})


@dataclass
class Seen:
    """A replay teacher that keeps what came to it."""

    app: Any
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.heads.append({name.decode(): value.decode() for name, value in scope["headers"]})
        self.targets.append(scope["raw_path"].decode() + "?" + scope["query_string"].decode())

        async def seen() -> Any:
            message = await receive()
            if message.get("body"):
                self.bodies.append(json.loads(message["body"]))
            return message

        await self.app(scope, seen, send)


def messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Answer."}, {"role": "user", "content": text}]


def tutor(answer: str, key: str | None = None) -> Seen:
    rows = [Row(tuple(messages(text)), answer, None, "gpt-4o", None) for text in (GERMAN, ENGLISH, FRENCH)]
    return Seen(create_replay(rows, key=key))


@dataclass(frozen=True)
class School:
    proxy: Proxy
    usual: Seen
    german: Seen
    french: Seen

    def ask(self, text: str, headers: Mapping[str, str] | None = None, query: str = "", **more: Any) -> httpx.Response:
        own = {"x-stillroom-task": TASK, "authorization": "Bearer sk-client-0123456789", "cookie": "a=b"}
        body = {"model": "gpt-4o", "messages": messages(text), **more}
        return httpx.post(f"{self.proxy.url}/chat/completions{query}", json=body, headers={**own, **(headers or {})})

    def records(self, number: int) -> list[dict[str, Any]]:
        found = eventually(lambda: some if len(some := self.proxy.records()) == number else None)
        return sorted(found, key=lambda one: str(one["id"]))


@contextlib.contextmanager
def school(
    folder: Path,
    rule: TaskTeachersSettings = BY_LANGUAGE,
    decide: Decide = always_teacher,
    task: str = TASK,
    **more: Any,
) -> Iterator[School]:
    usual, german, french = tutor("usual", KEYS["USUAL_KEY"]), tutor("deutsch", KEYS["GERMAN_KEY"]), tutor("francais")
    with serving(usual) as a, serving(german) as b, serving(french) as c:
        named = {
            "german": NamedTeacherSettings(b.removesuffix("/v1"), "GERMAN_KEY", "german-large"),
            "french": NamedTeacherSettings(c),
        }
        settings = TeacherSettings(url=a, key_env="USUAL_KEY", named=named, tasks={task: rule}, **more)
        app = create_app(ProxySettings(), settings, SpoolSettings(rotate_seconds=0.05), folder, decide)
        with serving(app) as url:
            yield School(Proxy(url, folder), usual, german, french)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_each_language_gets_its_teacher_with_its_key_and_model(tmp_path: Path) -> None:
    with school(tmp_path) as at:
        answers = [at.ask(text, query="?api-key=sk-query") for text in (GERMAN, ENGLISH, FRENCH)]
        records = at.records(3)
    assert [said(answer) for answer in answers] == ["deutsch", "usual", "francais"]
    assert [answer.headers.get("x-stillroom-teacher") for answer in answers] == ["german", None, "french"]
    assert [answer.json()["model"] for answer in answers] == ["german-large", "gpt-4o", "gpt-4o"]
    assert [(one["teacher"], one["lang"]) for one in records] == [("german", "de"), (None, "en"), ("french", "fr")]
    assert [json.loads(one["request"])["model"] for one in records] == ["german-large", "gpt-4o", "gpt-4o"]
    assert [seen.heads[0].get("authorization") for seen in (at.usual, at.german, at.french)] == [
        f"Bearer {KEYS['USUAL_KEY']}", f"Bearer {KEYS['GERMAN_KEY']}", None,
    ]  # fmt: skip
    assert [seen.targets for seen in (at.usual, at.german, at.french)] == [
        [f"{CHAT}?api-key=sk-query"], [f"{CHAT}?"], [f"{CHAT}?"],
    ]  # fmt: skip
    for seen in (at.german, at.french):
        assert "sk-client" not in json.dumps(seen.heads)
        assert "cookie" not in seen.heads[0]
        assert len(seen.bodies) == 1


def test_other_tasks_and_paths_go_to_the_usual_teacher_as_they_came(tmp_path: Path) -> None:
    with school(tmp_path) as at:
        assert said(at.ask(GERMAN, {"x-stillroom-task": "other"})) == "usual"
        httpx.post(f"{at.proxy.url}/completions", json={"model": "m", "prompt": GERMAN})
        records = at.records(2)
    assert [(one["teacher"], one["lang"]) for one in records] == [(None, None)] * 2
    assert (at.german.heads, at.french.heads) == ([], [])


def test_a_task_without_a_header_is_known_by_its_instructions(tmp_path: Path) -> None:
    with school(tmp_path, task=task_of({"messages": messages(GERMAN)}, None)) as at:
        body = {"model": "gpt-4o", "messages": messages(GERMAN)}
        assert said(httpx.post(f"{at.proxy.url}/chat/completions", json=body)) == "deutsch"
        assert said(at.ask(GERMAN, {"x-stillroom-task": "answer"})) == "usual"


@pytest.mark.parametrize(
    ("by", "headers", "more", "wanted"),
    [
        ("header.X-Region", {"x-region": "DACH"}, {}, "german"),
        ("header.X-Region", {"x-region": "dach"}, {}, None),
        ("header.X-Region", {}, {}, None),
        ("metadata.region", {}, {"metadata": {"region": "DACH"}}, "german"),
        ("metadata.region", {}, {"metadata": {"region": ["DACH"]}}, None),
        ("metadata.region", {}, {"metadata": "DACH"}, None),
        ("metadata.region", {}, {}, None),
    ],
)
def test_an_attribute_chooses_the_teacher(
    tmp_path: Path, by: str, headers: dict[str, str], more: dict[str, Any], wanted: str | None
) -> None:
    with school(tmp_path, TaskTeachersSettings(by, {"DACH": "german"})) as at:
        answer = at.ask(ENGLISH, headers, **more)
        (record,) = at.records(1)
    assert answer.headers.get("x-stillroom-teacher") == wanted
    assert (record["teacher"], record["lang"]) == (wanted, None)


def test_a_student_answers_in_the_name_of_the_exchanges_teacher(tmp_path: Path) -> None:
    """So that audits know whom to ask, and what it would have cost."""
    seen: list[Asked] = []

    def decide(asked: Asked) -> Decision:
        async def answer() -> Answer:
            return Answer(b"application/json", b'{"choices": []}', False, 0.9)

        seen.append(asked)
        return Decision("student-1", "live", answer)

    with school(tmp_path, decide=decide) as at:
        answer = at.ask(GERMAN)
        (record,) = at.records(1)
    assert (answer.headers["x-stillroom-served-by"], answer.headers.get("x-stillroom-teacher")) == ("student-1", None)
    assert (record["served_by"], record["teacher"], record["lang"]) == ("student-1", "german", "de")
    assert json.loads(record["request"])["model"] == json.loads(seen[0].body)["model"] == "german-large"
    assert at.german.heads == []


def test_a_student_that_fails_is_replaced_by_the_exchanges_teacher(tmp_path: Path) -> None:
    def decide(asked: Asked) -> Decision:
        async def answer() -> Answer:
            raise CandidateFailed("unsure", 0.1)

        return Decision("student-1", "live", answer)

    with school(tmp_path, decide=decide) as at:
        answer = at.ask(GERMAN)
    assert (said(answer), answer.headers["x-stillroom-teacher"]) == ("deutsch", "german")


def test_sunsets_are_of_the_usual_teachers_models(tmp_path: Path) -> None:
    with school(tmp_path, sunsets=(SunsetSettings("gpt-4o", date(2020, 1, 1), "gpt-5"),)) as at:
        assert [at.ask(text).json()["model"] for text in (ENGLISH, FRENCH)] == ["gpt-5", "gpt-4o"]


@pytest.mark.parametrize("stream", [False, True])
def test_streams_and_log_probabilities_are_the_named_teachers_too(tmp_path: Path, stream: bool) -> None:
    with school(tmp_path, logprobs_share=1.0) as at:
        answer = at.ask(GERMAN, stream=stream)
        (record,) = at.records(1)
    assert answer.status_code == 200
    assert "german-large" in answer.text
    (body,) = at.german.bodies
    assert (body["logprobs"], body.get("stream_options")) == (True, {"include_usage": True} if stream else None)
    assert json.loads(record["request"]).keys().isdisjoint({"logprobs", "stream_options"})


def test_a_teacher_that_fails_is_not_replaced_by_another(tmp_path: Path) -> None:
    with school(tmp_path) as at:
        failed = at.ask(GERMAN, {"x-replay-status": "503"})
        assert failed.status_code == 503
    assert (len(at.german.heads), at.usual.heads) == (1, [])


def test_one_that_cannot_be_reached_is_said_by_its_name(tmp_path: Path) -> None:
    dead = NamedTeacherSettings(f"http://127.0.0.1:{free_port()}")
    settings = TeacherSettings(named={"german": dead}, tasks={TASK: TaskTeachersSettings("header.x", {"1": "german"})})
    app = create_app(ProxySettings(), settings, SpoolSettings(), tmp_path)
    with serving(app) as url:
        headers = {"x-stillroom-task": TASK, "x": "1"}
        answer = httpx.post(f"{url}/chat/completions", json={"model": "m", "messages": []}, headers=headers)
    assert answer.status_code == 502
    assert "teacher.named.german.url" in answer.json()["error"]["message"]


async def test_a_named_teacher_is_retried_as_the_usual_one_is() -> None:
    declined = FastAPI()
    got: list[Mapping[str, str]] = []

    @declined.post(CHAT)
    async def chat(request: Request) -> Response:
        got.append(request.headers)
        return Response("{}", 429 if len(got) == 1 else 200, {"retry-after": "0"})

    with serving(declined) as url:
        settings = TeacherSettings(named={"other": NamedTeacherSettings(url)}, retries=1)
        teachers = connect_teachers(settings)
        other = teachers.of("other")
        assert other is not None
        answer = await other.forward("POST", CHAT, [(b"x-api-key", b"sk-client")], b"{}")
        assert (answer.status, answer.attempts) == (200, 2)
        assert [one.deployment.partition(":")[0] for one in teachers.health()] == ["api.openai.com", "other 127.0.0.1"]
        teachers.close()
    assert all("x-api-key" not in headers for headers in got)


def test_a_missing_key_is_said_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TeacherSettings(key_env="USUAL_KEY", named={"german": NamedTeacherSettings("http://x", "GERMAN_KEY")})
    assert connect_teachers(settings).of("german") is not None
    monkeypatch.delenv("GERMAN_KEY")
    with pytest.raises(BadInput, match=r"teacher.named.german.key_env names GERMAN_KEY, which is not set.*no key"):
        connect_teachers(settings)
    assert connect_teachers(replace(settings, named={})).of("german") is None


def test_nobodys_name_is_the_usual_teacher() -> None:
    usual = connect_teachers(TeacherSettings())
    assert usual.of(None) is usual.usual
    assert Teachers(usual.usual).of("gone") is None
