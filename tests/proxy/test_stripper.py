import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.stripper import UsageStripper
from proxy.usage import ask_for_usage

USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}}
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


def openai_stream(contents: list[str], asked: bool, spell: Callable[[Any], bytes], brk: bytes = b"\n") -> bytes:
    """The stream of OpenAI's API; usage stands between two members, as it does there."""
    chunks = [piece(content, **({"usage": None} if asked else {}), obfuscation="x") for content in contents]
    if asked:
        chunks.append(piece("") | {"choices": [], "usage": USAGE, "obfuscation": ""})
    events = [spell(chunk).strip().replace(b"\n", b"\ndata:").replace(b"\n", brk) for chunk in chunks]
    return b"".join(b"data: " + event + brk * 2 for event in [*events, b"[DONE]"])


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


FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop","stop_reason":null}]%s}\n\n'
WORD = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"c","choices":[],"usage":{"n":1}%s}\n\n'
MARK = b',"system_fingerprint":"fp_\xc3\xbc"'
NAMELESS = (FINISH % b"").replace(b'"index":0,', b"")


def other(event: bytes, index: int = 1) -> bytes:
    return event.replace(b'"index":0', b'"index":%d' % index)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (FINISH % b"" + LAST % MARK, FINISH % MARK),
        (FINISH % MARK + LAST % MARK, FINISH % MARK),
        (FINISH % b"" + LAST % b"", FINISH % b""),
        (FINISH % b',"usage":null' + LAST % MARK, FINISH % MARK),
        (FINISH % b"" + other(FINISH % b"") + LAST % MARK, FINISH % MARK + other(FINISH % MARK)),
        (FINISH % b"" + other(WORD) + LAST % MARK, other(WORD) + FINISH % MARK),
        (FINISH % b"" + other(WORD) + b": ping\n\n" + LAST % MARK, other(WORD) + FINISH % b"" + b": ping\n\n"),
        (FINISH % b"" * 2 + LAST % MARK, FINISH % b"" + FINISH % MARK),
        (NAMELESS + LAST % MARK, NAMELESS),
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


@settings(deadline=None)
@given(order=st.lists(st.integers(0, 3), max_size=20), cuts=st.lists(st.integers(0, 2000), max_size=9))
def test_each_choice_is_as_if_usage_had_not_been_asked_for(order: list[int], cuts: list[int]) -> None:
    """The last event of each of four choices ends it; which choices end while others go on is drawn."""
    turns = [*order, 0, 1, 2, 3]
    ends = [index not in turns[at + 1 :] for at, index in enumerate(turns)]
    sent = [other(FINISH if end else WORD, index) for index, end in zip(turns, ends, strict=True)]
    asked = b"".join(event.replace(b"%s", b"") for event in sent) + LAST % MARK
    for index in range(4):
        unasked = [event.replace(b"%s", MARK) for event in sent if b'"index":%d' % index in event]
        out = fed(asked, cuts).split(b"\n\n")
        assert [event + b"\n\n" for event in out if b'"index":%d' % index in event] == unasked


def test_no_more_than_the_possible_choices_wait() -> None:
    stripper = UsageStripper()
    finishes = [other(FINISH % b"", index) for index in range(129)]
    assert [stripper.feed(finish) for finish in finishes[:128]] == [b""] * 128
    assert stripper.feed(finishes[128]) == b"".join(finishes[:128])
    assert stripper.end() == finishes[128]


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
            ["Größe ", '"usage":null', ""],
            json.loads(asked)["stream_options"] == {"include_usage": True},
            SPELLINGS[1],
            brk,
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
