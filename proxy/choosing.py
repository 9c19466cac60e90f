"""Owns which teacher a request is for: by its task, and by its language or an attribute, as the settings map them.

Must not know how a teacher is reached. It never fails on what a client sent: what is not mapped, of the wrong type or
unreadable is for the usual teacher. The same request is always for the same teacher. A request whose
`x-stillroom-task` names a task that maps nothing is not read; without that header it has to be, to know its task.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from proxy.derive import CHAT
from proxy.errors import BadInput
from proxy.headers import Headers, header
from proxy.languages import load_languages, require_languages
from proxy.renaming import renamed
from proxy.settings import NamedTeacherSettings, TaskTeachersSettings, TeacherSettings
from proxy.tasks import task_of

LANGUAGE = "language"
_HEADER, _METADATA = "header", "metadata"
_ENGLISH = ("en",)
# What reading a client's JSON as a chat request may raise; the teacher is the one to say what is wrong with it.
_SHAPE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError, BadInput)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}")
_CODE = re.compile(r"[a-z]{2,3}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Chosen(NamedTuple):
    """The named teacher, None for the usual one; the language where that was looked at; the request as it is asked."""

    teacher: str | None
    lang: str | None
    body: bytes


# Given the path, the headers and the body of a POST: None where the task maps nothing. Must return at once.
Choose = Callable[[str, Headers, bytes], Chosen | None]
# From headers and request to the value that teachers are mapped by, None for none.
_Value = Callable[[Headers, Mapping[str, Any]], str | None]


def choosing(settings: TeacherSettings) -> Choose | None:
    """What chooses by these settings, None where they map nothing; loads the model of languages where they need it."""
    if not settings.tasks:
        return None
    rules = {task: _Rule(_value(task, said), said, settings.named) for task, said in settings.tasks.items()}
    return lambda path, headers, body: _choose(rules, path, headers, body)


def require_choosing(settings: TeacherSettings) -> None:
    """BadInput where the settings map languages, and what tells them is not installed."""
    if any(said.by == LANGUAGE for said in settings.tasks.values()):
        require_languages()


def check_choosing(settings: TeacherSettings) -> None:
    """BadInput for what only the model of languages can tell; it is let go again, for a process that needs it no more.

    `choosing` says the same, but in workers, one after the other.
    """
    choosing(settings)
    load_languages.cache_clear()


class _Rule:
    def __init__(self, value: _Value, said: TaskTeachersSettings, named: Mapping[str, NamedTeacherSettings]) -> None:
        self._value, self._is_language = value, said.by == LANGUAGE
        self._models = {name: named[name].model for name in said.teachers.values()}
        self._teachers = said.teachers

    def __call__(self, headers: Headers, request: Mapping[str, Any], body: bytes) -> Chosen:
        value = self._value(headers, request)
        teacher = None if value is None else self._teachers.get(value)
        model = self._models[teacher] if teacher is not None else ""
        other = renamed(body, lambda _: model) if model else None
        return Chosen(teacher, value if self._is_language else None, body if other is None else other.body)


def _choose(rules: Mapping[str, _Rule], path: str, headers: Headers, body: bytes) -> Chosen | None:
    if path != CHAT:
        return None
    told = header(headers, b"x-stillroom-task")
    task = None if told is None else told.decode("latin-1")
    if task is not None and task not in rules:
        return None
    try:
        request = json.loads(body.decode("utf-8-sig"))
        rule = rules.get(task_of(request, task))
        return None if rule is None else rule(headers, request, body)
    except _SHAPE_ERRORS:
        return None


def _value(task: str, said: TaskTeachersSettings) -> _Value:
    if said.by == LANGUAGE:
        return _language(task, said)
    kind, _, name = said.by.partition(".")
    if kind == _HEADER:
        wanted = name.lower().encode()
        return lambda headers, _: None if (found := header(headers, wanted)) is None else found.decode("latin-1")
    return lambda _, request: _text(_member(request.get("metadata"), name))


def _language(task: str, said: TaskTeachersSettings) -> _Value:
    languages, among = load_languages(), frozenset((*said.teachers, *(said.usual or _ENGLISH)))
    unknown = sorted(among - languages.known)
    if unknown:
        raise BadInput(
            f"teacher.tasks.{task} has languages that cannot be told: {', '.join(unknown)}; there are "
            f"{', '.join(sorted(languages.known))}"
        )
    return lambda _, request: languages(last_said(request.get("messages")), among)


def last_said(messages: Any) -> str:
    """The text of the last message a user sent; empty where it has none."""
    if not isinstance(messages, list):
        return ""
    last = next((one for one in reversed(messages) if isinstance(one, dict) and one.get("role") == "user"), {})
    content = last.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return _text(content) or ""


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def check_teachers(settings: TeacherSettings) -> None:
    """BadInput for named teachers, or tasks that map to them, that make no sense."""
    for name, teacher in settings.named.items():
        _check_named(f"teacher.named.{name}", name, teacher, settings)
    for task, said in settings.tasks.items():
        _check_task(f"teacher.tasks.{task}", said, settings.named)


def _check_named(place: str, name: str, teacher: NamedTeacherSettings, settings: TeacherSettings) -> None:
    """Its name goes out in a header, and its URL is shown."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"{place}: name it with at most 40 letters, digits, dots, dashes and underscores")
    if not teacher.url.startswith(("http://", "https://")):
        raise BadInput(f"{place}.url must be an OpenAI-compatible server, such as https://api.example.com")
    if any(sign in teacher.url for sign in "@?#"):
        raise BadInput(f"{place}.url must not carry a key or a query: name the key's variable in key_env")
    if teacher.key_env and not settings.key_env:
        raise BadInput(f"{place}.key_env would let clients without a key of their own in: set teacher.key_env too")


def _check_task(place: str, said: TaskTeachersSettings, named: Mapping[str, NamedTeacherSettings]) -> None:
    kind, _, name = said.by.partition(".")
    if said.by != LANGUAGE and not (kind == _METADATA and name) and not (kind == _HEADER and _TOKEN.fullmatch(name)):
        raise BadInput(f'{place}.by must be "language", "header.NAME" or "metadata.KEY", not {said.by!r}')
    if not said.teachers:
        raise BadInput(f'{place} needs teachers = {{ ... }}, such as {{ de = "german" }}')
    unknown = sorted(set(said.teachers.values()) - named.keys())
    if unknown:
        there = f"there are {', '.join(sorted(named))}" if named else "there are none"
        raise BadInput(f"{place}.teachers names {unknown[0]!r}: declare [teacher.named.{unknown[0]}]; {there}")
    if said.by != LANGUAGE and said.usual:
        raise BadInput(f'{place}.usual is for by = "language" only')
    if said.by == LANGUAGE:
        _check_codes(place, said)


def _check_codes(place: str, said: TaskTeachersSettings) -> None:
    wrong = next((code for code in (*said.teachers, *said.usual) if not _CODE.fullmatch(code)), None)
    if wrong is not None:
        raise BadInput(f'{place}: a language is a code in lower case, such as "de", not {wrong!r}')
    both = next((code for code in said.usual if code in said.teachers), None)
    if both is not None:
        raise BadInput(f"{place}.usual has {both!r}, which teachers has too: keep one of them")
