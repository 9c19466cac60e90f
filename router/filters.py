"""Owns the language in which people look for exchanges: conditions as in SQL, turned into SQL with parameters.

    task = 'triage' and latency_ms > 2000 and (answer like '%refund%' or status in (429, 500)) and not partial

It is read by a parser of its own: what comes out is put together from the fixed words in this module and from numbers
of parameters, never from the text that came in. So whatever somebody writes is a condition on a row of `exchanges`, or
BadInput with the place of what is wrong. Must not know the log, nor who asks.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from proxy.errors import BadInput

TEXT, NUMBER, FLAG, TIME = "text", "number", "flag", "time"
COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "id", "task", "model", "answered_model", "method", "path", "query", "served_by", "reason", "fallback",
            "error", "usage_source", "answer", "tool_calls", "finish_reason", "request", "response", "tenant",
            "deployment", "teacher", "lang", "service_tier",
        ),
        TEXT,
    ),
    **dict.fromkeys(
        (
            "status", "confidence", "first_byte_ms", "latency_ms", "prompt_tokens", "cached_tokens",
            "completion_tokens", "request_bytes", "response_bytes", "attempts",
        ),
        NUMBER,
    ),
    "stream": FLAG,
    "partial": FLAG,
    "ts": TIME,
}  # fmt: skip
"""What can be asked about, and what kind of value it has."""
FUNCTIONS: Mapping[str, tuple[str, str]] = {"length": (TEXT, NUMBER), "lower": (TEXT, TEXT), "upper": (TEXT, TEXT)}
"""Of a column: what it takes, and what it gives."""
LONGEST = 2000  # characters
MOST_PARTS = 100  # conditions, and values in one list
DEEPEST = 30  # parentheses and negations in each other
_COMPARES = ("=", "<>", "<", "<=", ">", ">=")
_WORDS = ("and", "or", "not", "like", "ilike", "in", "is", "null", "between", "true", "false")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?)(?![\w.])|(?P<text>'(?:[^']|'')*')"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign><>|!=|<=|>=|[=<>(),]))",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition in SQL with its parameters by name; everything holds where nothing is asked."""

    sql: str = "true"
    parameters: Mapping[str, Any] = field(default_factory=dict)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def condition(text: str) -> Condition:
    """The condition that `text` asks for; BadInput where it is none."""
    if len(text) > LONGEST:
        raise BadInput(f"the filter has {len(text):,} characters: {LONGEST:,} are read, so ask for less at once")
    tokens = _tokens(text)
    return _Parser(tokens).whole() if tokens else Condition()


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    while text[at:].strip():
        matched = _TOKEN.match(text, at)
        if matched is None or matched.lastgroup is None:
            rest = text[at:].lstrip()
            hint = ": a text ends with a single quote" if rest.startswith("'") else ""
            raise BadInput(f"the filter cannot be read from {rest[:20]!r} on{hint}")
        found.append(_Token(matched.lastgroup, matched[matched.lastgroup], matched.start(matched.lastgroup)))
        at = matched.end()
    return found


class _Parser:
    """Reads one filter from its first token to its last; each method takes what it reads."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens, self._at = tokens, 0
        self._parameters: dict[str, Any] = {}
        self._parts = 0

    def whole(self) -> Condition:
        sql = self._either(0)
        if self._at < len(self._tokens):
            raise self._wrong("and, or, or the end")
        return Condition(sql, self._parameters)

    def _either(self, depth: int) -> str:
        return self._joined("or", lambda: self._joined("and", lambda: self._negated(depth)))

    def _joined(self, word: str, part: Callable[[], str]) -> str:
        parts = [part()]
        while self._takes(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else f"({f' {word.upper()} '.join(parts)})"

    def _negated(self, depth: int) -> str:
        if depth > DEEPEST:
            raise BadInput(f"the filter is nested deeper than {DEEPEST} times")
        if self._takes("not"):
            return f"(NOT {self._negated(depth + 1)})"
        if self._takes("("):
            inner = self._either(depth + 1)
            self._needs(")")
            return inner
        return self._part()

    def _part(self) -> str:
        """One condition on one column."""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise BadInput(f"the filter has more than {MOST_PARTS} conditions")
        sql, kind = self._operand()
        if self._takes("is"):
            word = "IS NOT" if self._takes("not") else "IS"
            self._needs("null")
            return f"({sql} {word} NULL)"
        negated = "NOT " if self._takes("not") else ""
        for word, read in (("like", self._like), ("ilike", self._ilike), ("in", self._in), ("between", self._between)):
            if self._takes(word):
                return f"({negated}{read(sql, kind)})"
        if negated:
            raise self._wrong("like, ilike, in or between")
        sign = self._sign()
        if sign is None and kind == FLAG:
            return sql
        if sign is None:
            raise self._wrong("=, <>, <, <=, >, >=, like, in, between or is")
        return f"({sql} {sign} {self._value(kind)})"

    def _operand(self) -> tuple[str, str]:
        token = self._next()
        name = token.text.lower() if token and token.kind == "name" else ""
        if not name or name in _WORDS:
            raise self._wrong("a column", back=token is not None)
        if name in FUNCTIONS and self._takes("("):
            takes, gives = FUNCTIONS[name]
            sql, kind = self._column(self._next())
            if kind != takes:
                raise BadInput(f"{name}() is of a {takes}, and {sql} is a {kind}")
            self._needs(")")
            return f"{name}({sql})", gives
        return self._column(token)

    def _column(self, token: _Token | None) -> tuple[str, str]:
        name = token.text.lower() if token and token.kind == "name" else ""
        for known, kind in COLUMNS.items():
            if name == known:
                return f'"{known}"', kind
        near = difflib.get_close_matches(name, COLUMNS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COLUMNS)}"
        raise BadInput(f"there is no column {name[:40]!r} to filter by: {hint}")

    def _sign(self) -> str | None:
        for sign in _COMPARES:
            if self._takes(sign) or (sign == "<>" and self._takes("!=")):
                return sign
        return None

    def _like(self, sql: str, kind: str, flags: str = "") -> str:
        """As LIKE says it, by functions whose time grows with the text and no faster, whatever the pattern."""
        if kind != TEXT:
            raise BadInput(f"like is for texts, and {sql} is a {kind}")
        pattern = self._text()
        inner = pattern.strip("%")
        plain = not flags and "%" not in inner and "_" not in inner
        if plain and pattern in (f"%{inner}%", f"{inner}%", f"%{inner}"):
            ends = pattern.startswith("%"), pattern.endswith("%")
            function = {(True, True): "contains", (False, True): "starts_with", (True, False): "ends_with"}[ends]
            return f"{function}({sql}, {self._kept(inner)})"
        if plain and pattern == inner:
            return f"{sql} = {self._kept(inner)}"
        wild = {"%": ".*", "_": "."}
        expression = "".join(wild.get(letter) or re.escape(letter) for letter in pattern)
        return f"regexp_full_match({sql}, {self._kept(expression)}, '{flags}s')"

    def _ilike(self, sql: str, kind: str) -> str:
        return self._like(sql, kind, "i")

    def _in(self, sql: str, kind: str) -> str:
        self._needs("(")
        values = [self._value(kind)]
        while self._takes(","):
            values.append(self._value(kind))
            if len(values) > MOST_PARTS:
                raise BadInput(f"a list in the filter has more than {MOST_PARTS} values")
        self._needs(")")
        return f"{sql} IN ({', '.join(values)})"

    def _between(self, sql: str, kind: str) -> str:
        low = self._value(kind)
        self._needs("and")
        return f"{sql} BETWEEN {low} AND {self._value(kind)}"

    def _value(self, kind: str) -> str:
        """A value of the column's kind, as the place of a parameter."""
        token = self._next()
        if token is None:
            raise self._wrong("a value")
        if kind == FLAG and token.text.lower() in ("true", "false"):
            return self._kept(token.text.lower() == "true")
        if kind == NUMBER and token.kind == "number":
            return self._kept(float(token.text))
        if kind in (TEXT, TIME) and token.kind == "text":
            text = _unquoted(token)
            return self._kept(_moment(text) if kind == TIME else text)
        wanted = {TEXT: "a text in single quotes", TIME: "a time in single quotes", FLAG: "true or false"}
        raise self._wrong(wanted.get(kind, "a number"), back=True)

    def _text(self) -> str:
        token = self._next()
        if token is None or token.kind != "text":
            raise self._wrong("a text in single quotes", back=token is not None)
        return _unquoted(token)

    def _kept(self, value: Any) -> str:
        name = f"filter_{len(self._parameters)}"
        self._parameters[name] = value
        return f"${name}"

    def _next(self) -> _Token | None:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        self._at += token is not None
        return token

    def _takes(self, text: str) -> bool:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        taken = token is not None and token.kind in ("name", "sign") and token.text.lower() == text
        self._at += taken
        return taken

    def _needs(self, text: str) -> None:
        if not self._takes(text):
            raise self._wrong(repr(text))

    def _wrong(self, wanted: str, back: bool = False) -> BadInput:
        place = self._at - back
        if place >= len(self._tokens):
            return BadInput(f"the filter ends where {wanted} is missing")
        token = self._tokens[place]
        return BadInput(f"the filter has {token.text[:40]!r} at character {token.at + 1}, where {wanted} is missing")


def _unquoted(token: _Token) -> str:
    return token.text[1:-1].replace("''", "'")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadInput(f"{text[:40]!r} is no time: write for example '2026-11-28 09:30', in UTC") from None
