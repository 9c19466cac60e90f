import json
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.usage import ask_for_usage

ASKED = {"include_usage": True}
KEYS = (
    st.sampled_from(["stream", "stream_options", "include_usage", "usage", "choices", "größe", "a\n\\", ""]) | st.text()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
SPELLINGS: list[Callable[[Any], bytes]] = [
    lambda value: json.dumps(value).encode(),
    lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(),
    lambda value: b"\n" + json.dumps(value, indent="\t", separators=(" ,", " : ")).encode() + b" \r\n",
]


def same(one: bytes, other: bytes) -> int:
    """How many bytes they begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"stream":true}', '{"stream":true,"stream_options":{"include_usage":true}}'),
        ('{ "stream" : true }\n', '{ "stream" : true ,"stream_options":{"include_usage":true}}\n'),
        ('{"stream_options": null, "stream":true}', '{"stream_options": {"include_usage":true}, "stream":true}'),
        ('{"stream":true,"stream_options":{}}', '{"stream":true,"stream_options":{"include_usage":true}}'),
        ('{"stream_options": { }, "stream":true}', '{"stream_options": { "include_usage":true}, "stream":true}'),
        (
            '{"stream_options":{"x": [1] },"stream":true}',
            '{"stream_options":{"x": [1] ,"include_usage":true},"stream":true}',
        ),
        (
            '{"stream_options":{"include_usage":false ,"x":1},"stream":true}',
            '{"stream_options":{"include_usage":true ,"x":1},"stream":true}',
        ),
        (
            '{"stream":true,"stream_options":{"include_usage": null}}',
            '{"stream":true,"stream_options":{"include_usage": true}}',
        ),
        (  # Of duplicates, the last.
            '{"stream":false,"stream_options":{"include_usage":true},"stream":true,"stream_options":null}',
            '{"stream":false,"stream_options":{"include_usage":true},"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            '{"stream":true,"stream_options":{"include_usage":true,"include_usage":false}}',
            '{"stream":true,"stream_options":{"include_usage":true,"include_usage":true}}',
        ),
        (  # Positions are bytes; spelling survives.
            '{"a":"ü😀\\u00fc\\ud83d","n":1.0e400,"m":123456789012345678901234567890,"stream_options":null,"stream":true}',
            '{"a":"ü😀\\u00fc\\ud83d","n":1.0e400,"m":123456789012345678901234567890,'
            '"stream_options":{"include_usage":true},"stream":true}',
        ),
        (  # The same words further down, or in text, are something else.
            '{"m":[{"stream_options":null}],"t":"\\"stream_options\\":null}","stream":true}',
            '{"m":[{"stream_options":null}],"t":"\\"stream_options\\":null}","stream":true,'
            '"stream_options":{"include_usage":true}}',
        ),
        (
            '{"stream":true,"stream\\u005foptions":null}',
            '{"stream":true,"stream\\u005foptions":{"include_usage":true}}',
        ),
        ('\ufeff{"stream":true}', '\ufeff{"stream":true,"stream_options":{"include_usage":true}}'),
    ],
)
def test_usage_is_asked_for_by_a_splice(body: str, expected: str) -> None:
    assert (ask_for_usage(body.encode()) or b"").decode() == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"stream":false}',
        b'{"stream":true,"stream":false}',
        b'{"stream":1}',
        b'{"a":{"stream":true}}',
        b'{"a":"\\"stream\\":true"}',
        b'[{"stream":true}]',
        b'"stream"',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":false,"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":"no"}}',
        b'{"stream":true,"stream_options":{"include_usage":0}}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream_options":false}',
        b'{"stream":true',
        b'{"stream":true,}',
        b'{"stream":true}}',
        b'{"stream":true} {}',
        b'{"stream":true "a":1}',
        b'{,"stream":true}',
        b'{"stream":true,1:2}',
        b'{"stream":true,"\\q":2}',
        b'{"stream":true,"a\n":2}',
        b'{"stream":true,"a":"\n"}',
        b'{"stream":true,"a":"\xff"}',
        b'{"stream":true,"a":"\xed\xa0\x80"}',
        '{"stream":true}'.encode("utf-16"),
        b'{"stream":true,"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"stream":true,"a":' + b'{"a":' * 100_000,
    ],
)
def test_nothing_is_injected(body: bytes) -> None:
    assert ask_for_usage(body) is None


@settings(deadline=None)
@given(body=st.dictionaries(KEYS, JSON, max_size=5), spell=st.sampled_from(SPELLINGS), options=JSON)
def test_a_body_gains_usage_and_keeps_every_byte(
    body: dict[str, Any], spell: Callable[[Any], bytes], options: Any
) -> None:
    body["stream"] = True
    if options != 0:
        body["stream_options"] = options
    before = body.get("stream_options")
    raw = spell(body)
    out = ask_for_usage(raw)
    if before is not None and (not isinstance(before, dict) or before.get("include_usage") not in (None, False)):
        assert out is None
        return
    if isinstance(before, dict) and type(before.get("include_usage")) in (int, float):
        assert out is None  # A zero equals False, and is not it.
        return
    assert out is not None
    assert json.loads(out) == body | {"stream_options": (before or {}) | ASKED}
    assert ask_for_usage(out) is None
    kept = same(raw, out)
    kept += same(raw[kept:][::-1], out[kept:][::-1])
    assert len(raw) - kept <= len(b"false")


@settings(deadline=None)
@given(
    scraps=st.lists(
        st.sampled_from([b'"stream"', b":", b"true", b",", b"{", b"}", b'"stream_options"', b" ", b'"', b"\\"])
    ),
    body=st.sampled_from([b"", b'{"stream":true}', b'{"stream":true,"stream_options":null}']),
    at=st.integers(0, 40),
)
def test_what_json_does_not_accept_is_left_alone(scraps: list[bytes], body: bytes, at: int) -> None:
    raw = body[:at] + b"".join(scraps) + body[at:]
    try:
        asked = json.loads(raw)
    except ValueError:
        assert ask_for_usage(raw) is None
        return
    out = ask_for_usage(raw)
    if out is None:
        assert not (isinstance(asked, dict) and asked.get("stream") is True and asked.get("stream_options") is None)
    else:
        assert json.loads(out) == asked | {"stream_options": (asked.get("stream_options") or {}) | ASKED}
