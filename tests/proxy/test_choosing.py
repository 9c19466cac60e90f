import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import languages
from proxy.choosing import Choose, Chosen, check_choosing, check_teachers, choosing, last_said, require_choosing
from proxy.derive import CHAT
from proxy.errors import BadInput
from proxy.settings import NamedTeacherSettings, TaskTeachersSettings, TeacherSettings
from tests.proxy.test_usage import JSON

GERMAN = "Wo ist meine Bestellung geblieben?"
NAMED = {"german": NamedTeacherSettings("http://g", "", "german-large"), "french": NamedTeacherSettings("http://f")}
SETTINGS = TeacherSettings(
    named=NAMED,
    tasks={
        "said": TaskTeachersSettings("language", {"de": "german", "fr": "french"}),
        "told": TaskTeachersSettings("metadata.region", {"DACH": "german"}),
        "sent": TaskTeachersSettings("header.X-Region", {"DACH": "german"}),
    },
)
HEADERS = st.lists(st.tuples(st.sampled_from([b"x-region", b"X-Stillroom-Task", b"a"]), st.binary(max_size=5)))
TASKS = st.sampled_from(["said", "told", "sent", "other"]).map(lambda task: [(b"x-stillroom-task", task.encode())])


def chooser(settings: TeacherSettings = SETTINGS) -> Choose:
    found = choosing(settings)
    assert found is not None
    return found


CHOOSE = chooser()


def body(content: Any = GERMAN, **more: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": content}], **more}).encode()


def chosen(sent: bytes, task: str = "said", *headers: tuple[bytes, bytes]) -> Chosen | None:
    return CHOOSE(CHAT, [(b"x-stillroom-task", task.encode()), *headers], sent)


def test_settings_that_map_nothing_choose_nothing() -> None:
    assert choosing(TeacherSettings(named=NAMED)) is None


def test_a_process_that_maps_no_language_loads_no_model() -> None:
    program = """
import sys
from proxy.choosing import choosing
from proxy.settings import *
named = {"g": NamedTeacherSettings("http://g")}
assert choosing(TeacherSettings(named=named, tasks={"t": TaskTeachersSettings("header.a", {"b": "g"})}))
print([name for name in ("py3langid", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout == "[]\n"


def test_the_teacher_is_chosen_and_its_model_asked() -> None:
    assert chosen(body()) == Chosen("german", "de", body().replace(b"gpt-4o", b"german-large"))
    assert chosen(body("Je voudrais savoir où est ma commande.")) == Chosen(
        "french", "fr", body("Je voudrais savoir où est ma commande.")
    )
    assert chosen(body("Where has my order gone to?")) == Chosen(None, "en", body("Where has my order gone to?"))
    assert chosen(body("ok")) == Chosen(None, None, body("ok"))


def test_other_tasks_are_not_read() -> None:
    assert chosen(b"\xff not JSON", "other") is None
    assert CHOOSE("/v1/embeddings", [(b"x-stillroom-task", b"said")], body()) is None
    assert chosen(body(), "/not a name/") is None


def test_only_the_last_message_of_a_user_is_looked_at() -> None:
    turns = [
        {"role": "user", "content": "Where has my order gone to?"},
        {"role": "user", "content": [{"type": "text", "text": GERMAN}, {"type": "image_url", "image_url": {}}, 7]},
        {"role": "assistant", "content": "Je voudrais savoir où est ma commande."},
    ]
    assert last_said(turns) == GERMAN
    found = chosen(json.dumps({"messages": turns}).encode())
    assert found is not None
    assert (found.teacher, found.lang) == ("german", "de")


@pytest.mark.parametrize("content", [None, 7, {}, [], [None], [{"text": 7}], "", [{"type": "input_audio"}], "\ud800"])
def test_a_content_without_text_is_for_the_usual_teacher(content: Any) -> None:
    assert chosen(body(content)) == Chosen(None, None, body(content))


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"{", b"7", b"null", b"[]", b'{"messages":7}', b'{"messages":[7]}', b"{}", b"\xff", b'{"a":' * 100_000,
        b'{"metadata":{"region":["DACH"]}}', b'{"metadata":{"region":1' + b"0" * 5000 + b"}}", b'{"metadata":null}',
        '{"metadata":{"region":"DACH"}}'.encode("utf-16"), b'{"metadata":"DACH"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", ["said", "told", "sent"])
def test_what_cannot_be_read_is_for_the_usual_teacher_as_it_came(sent: bytes, task: str) -> None:
    found = chosen(sent, task)
    assert found is None or found == Chosen(None, None, sent)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()), HEADERS, TASKS)
def test_whatever_comes_it_is_for_one_teacher_the_same_each_time(
    sent: bytes, headers: list[tuple[bytes, bytes]], task: list[tuple[bytes, bytes]]
) -> None:
    for some in (headers, [*task, *headers]):
        found = CHOOSE(CHAT, some, sent)
        assert found == CHOOSE(CHAT, some, sent)
        assert found is None or found.teacher in (None, *NAMED)


@given(st.text(max_size=400), st.sampled_from(["DACH", "dach", "", "US"]), st.dictionaries(st.text(), JSON, max_size=3))
def test_a_mapped_value_always_and_no_other_leads_to_the_teacher(text: str, region: str, more: dict[str, Any]) -> None:
    mapped = {**more, "model": "a", "messages": [{"role": "user", "content": text}], "metadata": {"region": region}}
    sent = json.dumps(mapped).encode()
    for found in (chosen(sent, "told"), chosen(sent, "sent", (b"X-REGION", region.encode()))):
        assert found is not None
        assert found.teacher == ("german" if region == "DACH" else None)
        assert json.loads(found.body) == {**mapped, "model": "german-large" if region == "DACH" else "a"}


def rules(**said: Any) -> TeacherSettings:
    given: dict[str, Any] = {"by": "language", "teachers": {"de": "german"}} | said
    return TeacherSettings(key_env="K", named=NAMED, tasks={"my": TaskTeachersSettings(**given)})


def one(**said: Any) -> TeacherSettings:
    return TeacherSettings(named={said.pop("name", "german"): NamedTeacherSettings(**{"url": "http://g"} | said)})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (one(url="g.example.com"), r"teacher.named.german.url must be an OpenAI-compatible server"),
        (one(url="https://key@g"), r"german.url must not carry a key or a query.*key_env"),
        (one(url="https://g/?key=1"), "must not carry a key"),
        (one(key_env="K"), r"german.key_env would let clients without a key.*set teacher.key_env"),
        (one(name="a b"), "name it with at most 40"),
        (rules(by="language.de"), r'teacher.tasks.my.by must be "language", "header.NAME" or "metadata.KEY"'),
        (rules(by="header."), "by must be"),
        (rules(by="header.a b"), "by must be"),
        (rules(by="metadata."), "by must be"),
        (rules(teachers={}), r"teacher.tasks.my needs teachers = "),
        (rules(teachers={"de": "dutch"}), r"names 'dutch': declare \[teacher.named.dutch\]; there are french, german"),
        (replace(rules(), named={}), "there are none"),
        (rules(teachers={"DE": "german"}), "code in lower case.*'DE'"),
        (rules(usual=("english",)), "code in lower case.*'english'"),
        (rules(usual=("de",)), "usual has 'de', which teachers has too"),
        (rules(by="header.a", usual=("en",)), 'usual is for by = "language" only'),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: TeacherSettings, said: str) -> None:
    check_teachers(SETTINGS)
    check_teachers(rules())
    with pytest.raises(BadInput, match=said):
        check_teachers(settings)


def test_a_language_that_cannot_be_told_is_refused() -> None:
    check_choosing(rules())
    for refuse in (choosing, check_choosing):
        with pytest.raises(BadInput, match=r"teacher.tasks.my has languages that cannot be told: xx; there are .*de,"):
            refuse(rules(teachers={"xx": "german"}))


def test_without_the_library_only_who_maps_languages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "_LIBRARY", "no_such_library")
    require_choosing(rules(by="header.a"))
    with pytest.raises(BadInput, match="pip install"):
        require_choosing(rules())
