"""Owns what a fuzzer sends: valid requests of all kinds and known attacks, changed at random, and how they arrive.

A case is a function of seed and number alone. Must not know what is to come of it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from tests.hostile import ATTACKS, NESTED

Headers = list[tuple[bytes, bytes]]
LARGE = 1 << 15  # attacks of this size come rarely: they take a hundred times as long

_ATTACKS = [data for group in ATTACKS.values() for data, _ in group.values()] + list(NESTED)
_SMALL = [data for data in _ATTACKS if len(data) < LARGE]
_RAW = [
    "1e400", "-0", "NaN", "-Infinity", "1E-400", "tru", "", "'a'", "/**/1", "\ufeff1", "01", "0x1", "[1,]",
    "9" * 5000, "0." + "1" * 3000, "[" * 600 + "]" * 600, '{"a":' * 400 + "1" + "}" * 400, "[" * 300,
    '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x"', '"\0"', '"\n"', '"\u202e\u0000\U0001f600\ufffe"',
    '{"a":1,"a":2}', '"' + "\\\\" * 2000 + '"', '"' + "\u00e9" * 3000 + '"', "null", "true", "{}", "[]", "-1",
    '"data: [DONE]\\n\\n"', '"sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"', '"\\u0064ata"',
]  # fmt: skip
_TWICE = ('"model":1,', '"stream":true,', '"stream":"yes",', '"messages":[],', '"stream_options":[],', '"a":1,"a":2,')
_HEADERS = [
    (b"Content-Length", b"5"), (b"Content-Length", b"99999999999999999999"), (b"Content-Length", b"+3"),
    (b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"gzip, chunked"), (b"Transfer-Encoding", b"\tchunked"),
    (b"Transfer_Encoding", b"chunked"), (b"transfer-encoding ", b"chunked"), (b"Connection", b"close"),
    (b"Connection", b"keep-alive, content-length"), (b"Connection", b"x-stillroom-exchange"), (b"TE", b"trailers"),
    (b"Expect", b"100-continue"), (b"Expect", b"200-ok"), (b"Upgrade", b"h2c"), (b"Trailer", b"Content-Length"),
    (b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"br"), (b"Content-Encoding", b"zstd, gzip, x"),
    (b"Content-Type", b"application/json; charset=utf-16"), (b"Content-Type", b"multipart/form-data"),
    (b"x-stillroom-task", b"a\xff\xe9b"), (b"x-stillroom-task", b"t" * 3000), (b"x-stillroom-capture", b"off"),
    (b"x-stillroom-exchange", b"01ARZ3NDEKTSV4RRFFQ69G5FAV"), (b"x-stillroom-served-by", b"me"),
    (b"Authorization", b"Bearer \xff"), (b"Authorization", b""), (b"Host", b"evil.example"), (b"X-A", b"b\r\n c"),
    (b"X-A", b"\x00"), (b"X-A", b"b\nX-B: c"), (b"X-Long", b"l" * 20_000), (b"", b"v"), (b"X-\xe9", b"v"),
    (b"Accept-Encoding", b"gzip, br, zstd"), (b"Range", b"bytes=0-1"), (b"Cookie", b"a=b; c"), (b"X-A", b"\x0b"),
]  # fmt: skip
_TARGETS = [
    b"%00", b"/../../healthz", b"/%2e%2e/x", b"?a=%0d%0aX: y", b"#x", b"??", b"\xe9", b"%ff", b"//", b"\\", b"/.", b" ",
]  # fmt: skip
_BYTES = [b"\r\n", b"\n", b"\r", b"\0", b"\r\n\r\n", b" ", b"\t", b":", b"\xff", b"0\r\n\r\n", b"{", b'"', b"\\", b";"]
_METHODS = [b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"PUT", b"PATCH", b"TRACE", b"CONNECT", b"get", b"PRI", b"X-Y"]


@dataclass(slots=True)
class Draft:
    """A request in the making."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Case:
    """What goes over one connection: pieces, seconds between them, and how the client leaves (empty: it waits).

    `mutated` counts the requests in it that were changed, attacks among them.
    """

    pieces: tuple[bytes, ...]
    pause: float
    leave: str
    mutated: int

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)


def make_case(seed: int, number: int) -> Case:
    """The case of this number: one to five requests, of which at least one was changed."""
    rng = Random(f"{seed}:{number}")
    count = rng.choice((1, 1, 1, 2, 3, 5))
    changed = {rng.randrange(count)} | {each for each in range(count) if rng.random() < 0.6}
    parts = [_changed(rng, number) if each in changed else _written(_draft(rng, number)) for each in range(count)]
    data = b"".join(parts)
    leave = rng.choice(("close", "reset", "half", "early")) if rng.random() < 0.12 else ""
    if leave and rng.random() < 0.5:
        data = data[: rng.randrange(len(data)) + 1]
    return Case(_pieces(rng, data), rng.choice((0.0, 0.0, 0.001, 0.005)), leave, len(changed))


def _changed(rng: Random, number: int) -> bytes:
    if rng.random() < 0.12:
        data = rng.choice(_ATTACKS if rng.random() < 0.05 else _SMALL)
        return data if rng.random() < 0.5 else _bytes(rng, data)
    draft = _draft(rng, number)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_CHANGES)(rng, draft)
    data = _written(draft) if rng.random() < 0.7 else _framed(rng, draft)
    return _bytes(rng, data) if rng.random() < 0.25 else data


def _draft(rng: Random, number: int) -> Draft:
    """A valid request; `number` and a random word in it make it different from all others."""
    user = f"f{number}-{rng.getrandbits(40):x}"
    message = [{"role": "system", "content": "Answer shortly."}, {"role": "user", "content": f"Where is {user}?"}]
    common = {"model": "gpt-4o", "user": user}
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
    bodies: list[tuple[str, Any]] = [
        ("chat/completions", {**common, "messages": message, "temperature": 0.5}),
        ("chat/completions", {**common, "messages": message, "stream": True}),
        (
            "chat/completions",
            {**common, "messages": message, "stream": True, "stream_options": {"include_usage": True}},
        ),
        ("chat/completions", {**common, "messages": message, "tools": [tool], "response_format": {"type": "text"}}),
        ("responses", {**common, "input": message, "max_output_tokens": 20}),
        ("responses", {**common, "input": f"Where is {user}?", "stream": True}),
        ("completions", {**common, "prompt": f"{user} is", "max_tokens": 5, "stream": rng.random() < 0.5}),
        ("embeddings", {**common, "input": [user, "b"]}),
        ("batches", {"input_file_id": user, "endpoint": "/v1/chat/completions", "completion_window": "24h"}),
    ]
    kind = rng.randrange(len(bodies) + 3)
    headers = [(b"Host", b"stillroom"), (b"Authorization", b"Bearer sk-fuzz"), (b"User-Agent", b"fuzz")]
    if kind < len(bodies):
        path, body = bodies[kind]
        text = json.dumps(body, ensure_ascii=rng.random() < 0.5, separators=rng.choice(((",", ":"), (", ", ": "))))
        return Draft(
            b"POST", b"/v1/" + path.encode(), [*headers, (b"Content-Type", b"application/json")], text.encode()
        )
    if kind == len(bodies):
        return _upload(headers, user)
    method = b"GET" if kind == len(bodies) + 1 else b"DELETE"
    return Draft(method, f"/v1/{'models' if method == b'GET' else 'files'}/{user}?limit=2".encode(), headers, b"")


def _upload(headers: Headers, user: str) -> Draft:
    part = '--{0}\r\nContent-Disposition: form-data; name="{1}"{2}\r\n\r\n{3}\r\n'
    body = part.format(user, "purpose", "", "batch") + part.format(user, "file", '; filename="b.jsonl"', '{"a":1}\n')
    kind = f"multipart/form-data; boundary={user}".encode()
    return Draft(b"POST", b"/v1/files", [*headers, (b"Content-Type", kind)], f"{body}--{user}--\r\n".encode())


def _json(rng: Random, draft: Draft) -> None:
    """One value becomes another, of any type, or a key is there twice."""
    try:
        body = json.loads(draft.body if draft.body.count(b"[") + draft.body.count(b"{") < 200 else b"")
    except ValueError:
        return
    if not isinstance(body, dict) or rng.random() < 0.25:
        draft.body = draft.body.replace(b"{", b"{" + rng.choice(_TWICE).encode(), 1)
        return
    places: list[tuple[Any, Any]] = []
    _places(body, places)
    container, key = rng.choice(places)
    container[key] = "@raw@"
    raw = rng.choice(_RAW) if rng.random() < 0.97 else rng.choice(("[", '{"a":')) * 50_000
    draft.body = json.dumps(body).replace('"@raw@"', raw).encode("utf-8", "surrogatepass")


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        _places(inner, found)


def _header(rng: Random, draft: Draft) -> None:
    where = rng.randrange(len(draft.headers) + 1)
    what = rng.random()
    if what < 0.75 or not draft.headers:
        draft.headers.insert(where, rng.choice(_HEADERS))
    elif what < 0.85:
        del draft.headers[where - 1]
    else:
        name, value = draft.headers[where - 1]
        draft.headers[where - 1] = (rng.choice((name.upper(), name + b" ", b" " + name, name)), value[::-1])


def _target(rng: Random, draft: Draft) -> None:
    what = rng.random()
    if what < 0.3:
        draft.method = rng.choice(_METHODS)
    elif what < 0.5:
        draft.target = rng.choice((b"http://evil.example", b"//evil.example", b"", b"*")) + draft.target
    else:
        draft.target += rng.choice(_TARGETS)


def _body(rng: Random, draft: Draft) -> None:
    cut = rng.randrange(len(draft.body) + 1)
    draft.body = rng.choice((draft.body[:cut], _bytes(rng, draft.body), draft.body * 2, b"", draft.body[:cut] * 3))


_CHANGES: Sequence[Callable[[Random, Draft], None]] = (_json, _json, _json, _header, _header, _target, _body)


def _written(draft: Draft) -> bytes:
    length = [(b"Content-Length", str(len(draft.body)).encode())] if draft.body else []
    return _head(draft, length) + draft.body


def _framed(rng: Random, draft: Draft) -> bytes:
    """In chunks, rightly or not, or with a length that is not the body's."""
    what = rng.random()
    if what < 0.25:
        wrong = max(0, len(draft.body) + rng.choice((-20, -1, 1, 30)))
        return _head(draft, [(b"Content-Length", b"%d" % wrong)]) + draft.body
    chunks, start = [], 0
    while start < len(draft.body):
        size = rng.randrange(1, 2 * len(draft.body))
        piece = draft.body[start : start + size]
        odd = rng.random() < 0.15
        line = rng.choice((b"0%x", b"%x;a=b", b"%x ", b"%X", b"+%x", b"%x;\n", b"0x%x")) if odd else b"%x"
        chunks.append(line % len(piece) + b"\r\n" + piece + (b"\r\n" if rng.random() < 0.97 else b""))
        start += size
    last = rng.choice(
        (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\n\r\n", b"00\r\nX-T: a\r\n\r\n", b"0\r\nContent-Length: 9\r\n\r\n")
    )
    return _head(draft, [(b"Transfer-Encoding", b"chunked")]) + b"".join(chunks) + (last if what < 0.95 else b"0\r\n")


def _head(draft: Draft, more: Headers) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (draft.method, draft.target)]
    return b"\r\n".join([*lines, *(b"%b: %b" % each for each in [*draft.headers, *more]), b"", b""])


def _bytes(rng: Random, data: bytes) -> bytes:
    """A few bytes changed, gone, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(min(len(changed), rng.choice((60, 400, 1 << 20))) + 1)
        what = rng.randrange(4)
        if what == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            del changed[at : at + rng.choice((1, 2, 8))]
        elif what == 2:
            changed[at:at] = changed[at : at + rng.choice((1, 4, 40))]
        else:
            changed[at:at] = rng.choice(_BYTES)
    return bytes(changed)


def _pieces(rng: Random, data: bytes) -> tuple[bytes, ...]:
    if rng.random() < 0.6:
        return (data,)
    cuts = sorted({0, *(rng.randrange(len(data) + 1) for _ in range(rng.choice((1, 2, 5)))), len(data)})
    if rng.random() < 0.05:
        cuts = [*range(min(len(data), 120)), len(data)]
    return tuple(data[start:end] for start, end in pairwise(cuts))
