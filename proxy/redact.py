"""Owns the copy of an exchange's bodies that may be persisted: secrets and chosen personal data become placeholders.

Must not know what counts as such data, nor who keeps the copy; what goes over the wire is never touched. One value gets
one placeholder in all of an exchange, so that what a student learns from stays consistent. Names of people are looked
for in the texts only, in none of the keys; one found in any text of an exchange is taken out wherever it stands.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from proxy.glance import Glance
from proxy.patterns import PLACEHOLDERS, SECRET, Finder, Redaction, Span, find, is_secret_name, suspects

Body = bytes | bytearray
People = Callable[[list[str]], Finder]
"""Given all texts of an exchange, what finds in any text the people they name."""

_BLANK = b" \t\r\n\0\xef\xbb\xbf\xff\xfe"  # What may be before JSON: white space and the marks of an encoding.
_OPENS = (b"{", b"[", b'"')
_HIDDEN = (rb"\\u00[2-7]", rb"\x00")  # ASCII that is escaped; and JSON in UTF-16 has zeros.
# An event's data, one line a piece; the name is searched first, then what is before it.
_DATA = re.compile(rb"data:(?<![^\r\n]data:)([^\r\n]*)")
# Where a stream's events carry pieces of one text, as chat, completions, responses and messages spell them.
_PIECE = re.compile(
    rb'"(content|arguments|refusal|text|delta|reasoning|reasoning_content|partial_json|thinking)"\s*:\s*'
    rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
)
# Several texts at once, or tokens of their own: only parsing tells whose piece is whose.
_INTERLEAVED = (rb'"(?:output_|content_)?index"\s*:\s*[1-9]', rb'"top_logprobs"\s*:\s*\[')
_ROUNDS = 8  # more is no text but a riddle
# Strings that each event of a stream has whole: put together they would spell what nobody said.
_WHOLE = frozenset({"id", "object", "model", "type", "role", "system_fingerprint", "service_tier", "item_id"})


class Redactor:
    """Redacts one exchange at a time; holds nothing of it afterwards."""

    def __init__(self, options: Redaction, people: People | None = None) -> None:
        """Secrets are always taken out, personal data by `options`; names only with `people`, or ValueError."""
        if options.names and people is None:
            raise ValueError("names are to be redacted, but nothing finds them")
        self._options, self._people = options, people
        self._may_hold = Glance(suspects(options))
        self._as_it_stands = Glance([*suspects(options), *_HIDDEN])
        self._interleaved = Glance(_INTERLEAVED)

    def exchange(self, request: Body, response: Body) -> tuple[Body, Body]:
        """Both bodies redacted; the very same objects where nothing was found. Bodies are given decoded, not zipped."""
        if _is_json(request) and _is_json(response) and self._harmless(b"\n".join((request, response))):
            return request, response  # Looked at together, as nearly all are: half the cost.
        marks = _Placeholders(request, response)
        if self._people is not None:
            marks.people = self._people(_texts(request) + _texts(response))
        return self._body(request, marks), self._body(response, marks)

    def text(self, text: str) -> str:
        """One short text redacted, such as a query string or an error; the same object where nothing was found."""
        if not text:
            return text
        marks = _Placeholders(text.encode("utf-8", "surrogatepass"))
        people = self._people([text]) if self._people is not None else None
        for _ in range(_ROUNDS):
            spans = find(text, self._options, people)
            if not spans:
                break
            text = _put([text], marks.of(text, spans))[0]
        return text

    def _body(self, body: Body, marks: "_Placeholders") -> Body:
        """Again until nothing is found: only once a value is out may the text around it spell another."""
        for _ in range(_ROUNDS):
            redacted = self._once(body, marks)
            if redacted is body:
                break
            body = redacted
        return body

    def _once(self, body: Body, marks: "_Placeholders") -> Body:
        if self._harmless(body) and (_is_json(body) or not self._spells(body)):
            return body
        if not _is_json(body):
            return self._stream(body, marks)
        try:
            values = [json.loads(body, object_pairs_hook=_object)]
            return _dumps(values[0]) if self._values(values, marks) else body
        except (ValueError, RecursionError):
            return self._stream(body, marks)

    def _harmless(self, body: Body) -> bool:
        """Whether nothing in the body, read as it stands, can be a value to take out."""
        return not self._as_it_stands(body)

    def _spells(self, stream: Body) -> bool:
        """Whether the pieces of a stream may spell what none of them holds. Not parsed: most streams spell nothing."""
        if self._interleaved(stream):
            return True
        texts: dict[bytes, list[bytes]] = {}
        for name, piece in _PIECE.findall(stream):
            texts.setdefault(bytes(name), []).append(piece)  # a bytearray has no hash
        return any(self._may_hold(b"".join(pieces)) for pieces in texts.values())

    def _stream(self, body: Body, marks: "_Placeholders") -> Body:
        """Server-sent events; whatever is between them is plain text, as is all of a body without any."""
        parts, values = _split(body)
        changed = False
        for index in self._values(values, marks) if values else ():
            parts[2 * index + 1], changed = b"data: " + _dumps(values[index]), True
        if self._may_hold(b"\n".join(parts[::2])):
            for index in range(0, len(parts), 2):
                text = parts[index].decode("utf-8", "surrogateescape")
                if not text.isspace() and (spans := find(text, self._options, marks.people)):
                    parts[index] = _put([text], marks.of(text, spans))[0].encode("utf-8", "surrogateescape")
                    changed = True
        return b"".join(parts) if changed else body

    def _values(self, values: list[Any], marks: "_Placeholders") -> set[int]:
        """Redact JSON values in place; which of them changed."""
        strings = _Strings(values)
        texts = strings.texts()
        everything = "\n".join([*texts, *strings.whole, *strings.keys])
        if not self._may_hold(everything.encode("utf-8", "surrogatepass")):
            return set()
        changed: set[int] = set()
        for ((_, name), leaves), text in zip(strings.pieces.items(), texts, strict=True):
            if spans := self._find(str(name), text, marks):
                changed |= _rewrite(leaves, marks.of(text, spans))
        for text, leaves in strings.whole.items():
            if spans := find(text, self._options):
                changed.update(*[_rewrite([leaf], marks.of(text, spans)) for leaf in leaves])
        spans_of = {key: spans for key in strings.keys if (spans := find(key, self._options))}
        if spans_of:
            renamed = {key: _put([key], marks.of(key, spans))[0] for key, spans in spans_of.items()}
            changed.update(index for index, value in enumerate(values) if _rename(value, renamed))
        return changed

    def _find(self, name: str, text: str, marks: "_Placeholders") -> list[Span]:
        if text and is_secret_name(name) and not PLACEHOLDERS.fullmatch(text):
            return [Span(0, len(text), SECRET)]
        return find(text, self._options, marks.people)


def _is_json(body: Body) -> bool:
    return body.startswith(_OPENS) or body[:64].lstrip(_BLANK).startswith(_OPENS)


def _split(body: Body) -> tuple[list[Body], list[Any]]:
    """Server-sent events: text and event in turn, and what the events hold."""
    parts: list[Body] = []
    values: list[Any] = []
    at = 0
    for match in _DATA.finditer(body):
        try:
            values.append(json.loads(match[1]))
        except (ValueError, RecursionError):
            continue
        parts += body[at : match.start()], match[0]
        at = match.end()
    parts.append(body[at:])
    return parts, values


def _texts(body: Body) -> list[str]:
    """All that a body says, each text in one piece; keys and what a stream repeats are left out."""
    if _is_json(body):
        try:
            return _Strings([json.loads(body, object_pairs_hook=_object)]).texts()
        except (ValueError, RecursionError):
            pass  # Then it is redacted as text, too.
    parts, values = _split(body)
    return [*_Strings(values).texts(), *[part.decode("utf-8", "replace") for part in parts[::2]]]


class _Placeholders:
    """The placeholders of one exchange, numbered as their values appear; one that a body already has is left out."""

    def __init__(self, *bodies: Body) -> None:
        self.people: Finder | None = None
        self._bodies = bodies
        self._given: dict[tuple[str, str], str] = {}
        self._last: dict[str, int] = {}

    def of(self, text: str, spans: list[Span]) -> list[tuple[Span, str]]:
        return [(span, self._name(span.kind, text[span.start : span.end])) for span in spans]

    def _name(self, kind: str, value: str) -> str:
        if (kind, value) not in self._given:
            name = self._next(kind)
            while any(name.encode() in body for body in self._bodies):
                name = self._next(kind)
            self._given[kind, value] = name
        return self._given[kind, value]

    def _next(self, kind: str) -> str:
        self._last[kind] = self._last.get(kind, 0) + 1
        return f"[{kind}_{self._last[kind]}]"


# A string in a JSON value: which value it is in, its holder, where there, and the string.
_Leaf = tuple[int, Any, Any, str]


def _rewrite(leaves: list[_Leaf], named: list[tuple[Span, str]]) -> set[int]:
    """Put names into the text the leaves spell together; the values that changed."""
    changed = set()
    for leaf, new in zip(leaves, _put([leaf[3] for leaf in leaves], named), strict=True):
        if new != leaf[3]:
            _replace(leaf, new)
            changed.add(leaf[0])
    return changed


def _replace(leaf: _Leaf, new: str) -> None:
    """What a token list says of the same characters goes too: their bytes, and the tokens that were close."""
    _, holder, at, _ = leaf
    holder[at] = new
    if at != "token":
        return
    near = holder.get("top_logprobs")
    for entry in [holder, *(near if isinstance(near, list) else ())]:
        if isinstance(entry, dict):
            if isinstance(entry.get("bytes"), list):
                entry["bytes"] = [0] * len(entry["bytes"])
            if entry is not holder and isinstance(entry.get("token"), str):
                entry["token"] = ""


class _Strings:
    """The strings of JSON values: those at one place of several values are pieces of one text.

    A place is the keys and positions that lead there, its last key known; `index`, where an item has one, is its
    position. All tokens of a `logprobs` are at one place.
    """

    def __init__(self, values: list[Any]) -> None:
        self.keys: dict[str, Any] = {}  # A set that keeps order.
        self._places: dict[tuple[int, str | int], int] = {}
        self.pieces: dict[tuple[int, str | int], list[_Leaf]] = {}
        self.whole: dict[str, list[_Leaf]] = {}
        for value in range(len(values)):
            self._item(value, values, value, (0, 0), False)

    def texts(self) -> list[str]:
        """What each place says, its pieces put together."""
        return ["".join([leaf[3] for leaf in leaves]) for leaves in self.pieces.values()]

    def _item(self, value: int, holder: Any, at: Any, key: tuple[int, str | int], tokens: bool) -> None:
        item = holder[at]
        if isinstance(item, str):
            self.pieces.setdefault(key, []).append((value, holder, at, item))
        elif isinstance(item, dict):
            self._dict(value, item, self._places.setdefault(key, len(self._places) + 1), tokens)
        elif isinstance(item, list):
            place = self._places.setdefault(key, len(self._places) + 1)
            for position, inner in enumerate(item):
                index = inner.get("index") if isinstance(inner, dict) else None
                named = -1 if tokens else index if isinstance(index, int) else position
                self._item(value, item, position, (place, named), tokens)

    def _dict(self, value: int, holder: dict[str, Any], place: int, tokens: bool) -> None:
        self.keys.update(holder)
        for name, item in holder.items():
            if isinstance(item, str) and name in _WHOLE:
                self.whole.setdefault(item, []).append((value, holder, name, item))
            elif isinstance(item, (str, dict, list)):
                self._item(value, holder, name, (place, name), tokens or name == "logprobs")


def _put(pieces: list[str], named: list[tuple[Span, str]]) -> list[str]:
    """The pieces of one text with names for spans: a name is where its span begins, the rest of the span is gone."""
    if not named:
        return pieces
    new: list[str] = []
    at, done, i = 0, 0, 0  # Where the piece begins, up to where the text is dealt with, and the next span.
    for piece in pieces:
        end = at + len(piece)
        kept: list[str] = []
        while i < len(named) and named[i][0].start < end:
            span, name = named[i]
            kept += piece[done - at : span.start - at], name
            done, i = span.end, i + 1
        kept.append(piece[max(done - at, 0) :] if done < end else "")
        new.append("".join(kept))
        at, done = end, max(done, end)
    return new


def _rename(node: Any, renamed: dict[str, str]) -> bool:
    """Rename keys in place, order kept; whether there were any."""
    if isinstance(node, list):
        return sum([_rename(item, renamed) for item in node]) > 0
    if not isinstance(node, dict):
        return False
    inside = sum([_rename(item, renamed) for item in node.values()]) > 0
    if renamed.keys().isdisjoint(node):
        return inside
    items = [(renamed.get(key, key), item) for key, item in node.items()]
    node.clear()
    node.update(items)
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ValueError where a key is given twice: the value that does not count must not be kept unseen."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _dumps(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # Half a surrogate pair, which only JSON can spell.
        return json.dumps(value, separators=(",", ":")).encode()
