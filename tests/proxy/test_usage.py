import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.usage import UsageStripper, ask_for_usage

ASKED = {"include_usage": True}
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}}
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
# What streams are made of, and what could be mistaken for it.
SCRAPS = [
    b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"data: ", b": ping", b"event: x", b'{"usage":null}', b'"usage"', b"{",
    b'{"choices":[],"usage":{"n":1}}', b'{"choices":[{"usage":1}],"usage":{"n":1}}', b"}", b",", b":", b"null", b"\\",
    b'{"a":"\\"usage\\":null"}', b"[DONE]", "ü\u2028".encode(), b"\xff", b'","stop_reason":',
]  # fmt: skip


def fed(stream: bytes, cuts: Sequence[int] = (), largest: int = 1 << 20) -> bytes:
    stripper = UsageStripper(largest)
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    parts = [stripper.feed(stream[start:end]) for start, end in pairwise(bounds)]
    return b"".join(parts) + stripper.end()


def piece(content: str, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]} | fields


def same(one: bytes, other: bytes) -> int:
    """How many bytes they begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def openai_stream(contents: list[str], asked: bool, spell: Callable[[Any], bytes], brk: bytes = b"\n") -> bytes:
    """The stream of OpenAI's API; usage stands between two members, as it does there."""
    chunks = [piece(content, **({"usage": None} if asked else {}), obfuscation="x") for content in contents]
    if asked:
        chunks.append(piece("") | {"choices": [], "usage": USAGE, "obfuscation": ""})
    events = [spell(chunk).strip().replace(b"\n", b"\ndata:").replace(b"\n", brk) for chunk in chunks]
    return b"".join(b"data: " + event + brk * 2 for event in [*events, b"[DONE]"])


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


@settings(deadline=None)
@given(
    contents=st.lists(
        st.text() | st.sampled_from(['"usage":null', ',"usage":null}', "\n\n", '{"usage":{}}']), max_size=4
    ),
    spell=st.sampled_from(SPELLINGS),
    brk=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts=st.lists(st.integers(0, 900), max_size=30),
)
def test_stripped_is_as_if_it_had_not_been_asked_for(
    contents: list[str], spell: Callable[[Any], bytes], brk: bytes, cuts: list[int]
) -> None:
    stream = openai_stream(contents, True, spell, brk)
    assert b'"usage"' in stream
    assert fed(stream, cuts) == openai_stream(contents, False, spell, brk)


@settings(deadline=None)
@given(scraps=st.lists(st.sampled_from(SCRAPS)), seed=st.randoms(use_true_random=False), largest=st.integers(0, 60))
def test_cuts_make_no_difference(scraps: list[bytes], seed: random.Random, largest: int) -> None:
    stream = b"".join(scraps)
    cuts = [seed.randint(0, len(stream)) for _ in range(seed.randint(0, 9))]
    assert fed(stream, cuts, largest) == fed(stream, largest=largest)
    assert fed(stream, range(len(stream)), largest) == fed(stream, largest=largest)


@settings(deadline=None)
@given(scraps=st.lists(st.sampled_from(SCRAPS) | st.binary(max_size=3)), cuts=st.lists(st.integers(0, 200)))
def test_a_stream_without_usage_passes_byte_for_byte(scraps: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(scraps).replace(b'"usage"', b'"usages"')
    assert fed(stream, cuts) == stream


@settings(deadline=None)
@given(seed=st.randoms(use_true_random=False), brk=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_nothing_waits_for_more_than_its_event(seed: random.Random, brk: bytes) -> None:
    stripper, texts = UsageStripper(), ["a", "ü", '"usage"']
    for event in (b": ping", b"data: " + json.dumps(piece(seed.choice(texts))).encode(), b"data: [DONE]"):
        whole = event + brk * 2
        cut = seed.randint(0, len(whole) - 1)
        assert stripper.feed(whole[:cut]) == b""
        assert stripper.feed(whole[cut:]) == whole
    assert stripper.end() == b""


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ('data: {"choices":[1],"usage":null}', 'data: {"choices":[1]}'),
        ('data: {"usage":null, "choices":[1]}', 'data: {"choices":[1]}'),
        ('data:{ "choices" : [1] , "usage" : null , "z":1 }', 'data:{ "choices" : [1] , "z":1 }'),
        ('data: {"choices":[1],"usage":null,"obfuscation":"xY1"}', 'data: {"choices":[1],"obfuscation":"xY1"}'),
        ('data: {"a":{"usage":null},"usage":null}', 'data: {"a":{"usage":null}}'),
        ('data: {"usage":null}', "data: {}"),
        ('data: {"usage":1,"usage":null,"choices":[1],"usage":null }', 'data: {"choices":[1] }'),
        (
            'data: {"choices":[],"usage":null,"prompt_filter_results":[]}',
            'data: {"choices":[],"prompt_filter_results":[]}',
        ),
        ('event: x\nid: 7\ndata: {"choices":[1],"usage":null}', 'event: x\nid: 7\ndata: {"choices":[1]}'),
        ('data: {"choices":[1],\ndata: "usage":\ndata: null}', 'data: {"choices":[1]}'),
        ('data: {\n: {"usage":null}\ndata: "a":[1],"usage":null}', 'data: {\n: {"usage":null}\ndata: "a":[1]}'),
    ],
)
def test_the_usage_member_goes_and_nothing_else(event: str, expected: str) -> None:
    assert fed(event.encode() + b"\n\n").decode() == expected + "\n\n"


@pytest.mark.parametrize("choices", ['"choices":[],', '"choices":null,', ""])
@pytest.mark.parametrize("brk", [b"\n", b"\r\n", b"\r"])
def test_the_event_that_only_reports_usage_goes_whole(choices: str, brk: bytes) -> None:
    usage = [b"event: x", b"data: {%s" % choices.encode(), b'data: "usage":{"n":1}}', b""]
    ping, done = [b": ping", b""], [b"data: [DONE]", b"", b""]
    assert fed(brk.join(ping + usage + done)) == brk.join(ping + done)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"message":"busy"},"usage":{"n":1}}',
        b'data: {"choices":[{"delta":{"content":"\\"usage\\":null, \\\\"}}]}',
        b'data: {"choices":["usage"]}',
        b'data: {"choices":[1],"usage":{"n":1}}',
        b'data: {"choices":[],"x_groq":{"usage":{"n":1}}}',
        b'data: {"choices":[],"usage":null',
        b'data: {"choices":[],"usage":null} {}',
        b'data: {"choices":[],"usage":{"a":"\ndata: "}}',
        b'data: [{"usage":null}]',
        b'data: "usage"',
        b': {"usage":null}',
        b'dat: {"usage":null}',
        b'data: {"usage":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_chunk_or_has_no_usage_passes(event: bytes) -> None:
    assert fed(event + b"\n\n") == event + b"\n\n"


FINISH = b'data: {"id":"c","choices":[{"delta":{},"finish_reason":"stop","stop_reason":null}]%s}\n\n'
WORD = b'data: {"id":"c","choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"c","choices":[],"usage":{"n":1}%s}\n\n'
MARK = b',"system_fingerprint":"fp_\xc3\xbc"'


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (FINISH % b"" + LAST % MARK, FINISH % MARK),
        (FINISH % MARK + LAST % MARK, FINISH % MARK),
        (FINISH % b"" + LAST % b"", FINISH % b""),
        (FINISH % b',"usage":null' + LAST % MARK, FINISH % MARK),
        (FINISH % b"" * 2 + LAST % MARK, FINISH % MARK * 2),
        (FINISH % b"" + WORD + FINISH % b"" + LAST % MARK, FINISH % b"" + WORD + FINISH % MARK),
        (FINISH % b"" + b": ping\n\n" + LAST % MARK, FINISH % b"" + b": ping\n\n"),
        (FINISH % b"" + b"\n" + LAST % MARK, FINISH % b"" + b"\n"),
        (FINISH % b"", FINISH % b""),
    ],
)
def test_a_fingerprint_that_moved_to_the_usage_moves_back(sent: bytes, expected: bytes) -> None:
    stream, whole = sent + b"data: [DONE]\n\n", expected + b"data: [DONE]\n\n"
    assert fed(stream) == fed(stream, range(len(stream))) == whole
    assert fed(sent) == fed(sent, range(len(sent))) == expected


def test_what_ends_a_choice_waits_for_one_event_and_nothing_of_others_does() -> None:
    stripper = UsageStripper()
    assert stripper.feed(FINISH % b"") == b""
    assert stripper.feed(WORD[:5]) == b""
    assert stripper.feed(WORD[5:]) == FINISH % b"" + WORD
    others = (FINISH % b"").replace(b',"stop_reason":null', b"")
    assert stripper.feed(others) == others
    said = WORD.replace(b"a", rb"\",\"stop_reason\":")
    assert stripper.feed(said) == said


def test_an_upstream_that_dies_within_an_event_has_its_rest_passed_on() -> None:
    stripper = UsageStripper()
    assert stripper.feed(WORD + FINISH % b"" + LAST[:20]) == WORD
    assert stripper.end() == FINISH % b"" + LAST[:20]
    assert stripper.end() == b""


def test_an_event_that_is_too_large_passes_as_it_comes() -> None:
    event, small = b'data: {"choices":["%s"],"usage":null}\n\n', b'data: {"choices":[1],"usage":null}\n\n'
    large = event % (b"x" * (1 << 20))
    stripper = UsageStripper()
    held, now = large[: 1 << 20], large[1 << 20 :]
    assert stripper.feed(held) == b""
    assert stripper.feed(now[:1]) == held + now[:1]
    assert stripper.feed(now[1:-1]) == now[1:-1]
    assert stripper.feed(now[-1:] + small) == now[-1:] + b'data: {"choices":[1]}\n\n'
    assert fed(large + small) == large + b'data: {"choices":[1]}\n\n'
    fits = event % (b"x" * ((1 << 20) - len(event) + 2))
    assert len(fits) == 1 << 20
    assert fed(fits) == fits.replace(b',"usage":null', b"")


@pytest.mark.parametrize("brk", [b"\n", b"\r\n", b"\r"])
def test_the_end_of_a_too_large_event_is_seen_however_it_is_cut(brk: bytes) -> None:
    large, small = (
        b'data: {"choices":[1234567890],"usage":null}' + brk * 2,
        b'data: {"choices":[1],"usage":null}' + brk * 2,
    )
    stream = large + small
    expected = large + b'data: {"choices":[1]}' + brk * 2
    assert fed(stream, largest=len(small)) == fed(stream, range(len(stream)), len(small)) == expected


class Pieces(httpx.SyncByteStream):
    def __init__(self, stream: bytes, size: int) -> None:
        self.stream, self.size = stream, size

    def __iter__(self) -> Iterator[bytes]:
        stripper = UsageStripper()
        for start in range(0, len(self.stream), self.size):
            yield stripper.feed(self.stream[start : start + self.size])
        yield stripper.end()


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
@pytest.mark.parametrize("brk", [b"\n", b"\r\n", b"\r"])
def test_the_openai_client_sees_the_text_and_no_usage(size: int, brk: bytes) -> None:
    requests: list[bytes] = []

    def teacher(request: httpx.Request) -> httpx.Response:
        asked = ask_for_usage(request.content)
        assert asked is not None
        requests.append(asked)
        stream = openai_stream(
            ["Größe ", '"usage":null', ""], json.loads(asked)["stream_options"] == ASKED, SPELLINGS[1], brk
        )
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces(stream, size))

    with openai.OpenAI(
        api_key="k", base_url="http://teacher/v1", http_client=httpx.Client(transport=httpx.MockTransport(teacher))
    ) as client:
        chunks = list(
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "ü"}], stream=True)
        )
    assert len(requests) == 1
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Größe ", '"usage":null', ""]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)
