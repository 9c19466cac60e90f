import asyncio
import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.answers import Held
from proxy.client import UpstreamBroke
from proxy.logprobs import Position, read
from proxy.stripper import UsageStripper
from proxy.withholding import LogprobsStripper, Taken, Withheld, withheld
from tests.proxy.test_answers import Answer
from tests.proxy.test_logprobs import entry
from tests.proxy.test_stripper import SCRAPS, SPELLINGS

TEXTS = st.text(max_size=5) | st.sampled_from(['"logprobs":null', '"logprobs":{"content":[]}', "\n\n", "ü", "\u2028"])
MORE = [b'"logprobs":{"content":[]}', b'{"choices":[{"logprobs":{"content":[]}}]}', b'"logprobs"', b'{"logprobs":1}']


class Times:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def fed(stream: bytes, cuts: Sequence[int] = (), largest: int = 1 << 20) -> tuple[bytes, Taken, int]:
    first = Times()
    taken = Taken(first)
    stripper = LogprobsStripper(taken, largest)
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    passed = b"".join([stripper.feed(stream[start:end]) for start, end in pairwise(bounds)])
    return passed + stripper.end(), taken, first.times


def told(text: str) -> dict[str, Any]:
    token = text.encode("utf-8", "replace")
    return {"content": [entry(token, -0.5, (token, -0.5), (b"\xff", -2.0))], "refusal": None}


def chunk(text: str, logprobs: bool, **more: Any) -> dict[str, Any]:
    """One of OpenAI's and vLLM's, which say null of what was not asked for."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": told(text) if logprobs else None}
    return {"id": "c1", "model": "m", "choices": [{**choice, "finish_reason": None}], **more}


def stream(texts: list[str], logprobs: bool, spell: Callable[[Any], bytes], brk: bytes, usage: bool = False) -> bytes:
    more: dict[str, Any] = {"usage": None} if usage else {}
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    chunks = [{"id": "c1", "choices": [role], **more}, *[chunk(text, logprobs, **more) for text in texts]]
    chunks += [{"id": "c1", "choices": [], "usage": {"total_tokens": 3}}] if usage else []
    events = [spell(one).strip().replace(b"\n", b"\ndata:").replace(b"\n", brk) for one in chunks]
    return b": ping" + brk * 2 + b"".join(b"data: " + event + brk * 2 for event in [*events, b"[DONE]"])


@settings(deadline=None)
@given(
    texts=st.lists(TEXTS, max_size=4),
    spell=st.sampled_from(SPELLINGS),
    brk=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts=st.lists(st.integers(0, 2000), max_size=30),
)
def test_a_stream_is_as_if_it_had_not_been_asked_for_and_what_was_taken_is_all_it_told(
    texts: list[str], spell: Callable[[Any], bytes], brk: bytes, cuts: list[int]
) -> None:
    asked = stream(texts, True, spell, brk)
    passed, taken, times = fed(asked, cuts)
    assert passed == stream(texts, False, spell, brk)
    assert [position.token for position in taken.positions] == [text.encode("utf-8", "replace") for text in texts]
    assert times == bool(texts)
    if brk == b"\n" and spell is SPELLINGS[0]:
        assert tuple(taken.positions) == read(asked.decode())


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=4), cuts=st.lists(st.integers(0, 2000), max_size=9))
def test_it_goes_with_the_taking_out_of_usage(texts: list[str], cuts: list[int]) -> None:
    passed, _, _ = fed(stream(texts, True, SPELLINGS[1], b"\n", usage=True), cuts)
    usage = UsageStripper()
    assert usage.feed(passed) + usage.end() == stream(texts, False, SPELLINGS[1], b"\n")


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SCRAPS, *MORE])), st.randoms(use_true_random=False), st.integers(0, 80))
def test_cuts_make_no_difference(scraps: list[bytes], seed: random.Random, largest: int) -> None:
    whole = b"".join(scraps)
    cuts = [seed.randint(0, len(whole)) for _ in range(seed.randint(0, 9))]
    assert fed(whole, cuts, largest)[0] == fed(whole, largest=largest)[0] == fed(whole, range(len(whole)), largest)[0]


@settings(deadline=None)
@given(st.lists(st.sampled_from(SCRAPS) | st.binary(max_size=3)), st.lists(st.integers(0, 200)))
def test_a_stream_without_log_probabilities_passes_byte_for_byte(scraps: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(scraps)
    assert fed(whole, cuts)[0] == whole


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{"content":"\\"logprobs\\":{"},"logprobs":null}]}',
        b'data: {"logprobs":{"content":[]}}',
        b'data: {"choices":{"logprobs":{"content":[]}}}',
        b'data: {"choices":[{"delta":{"logprobs":{"content":[]}}}]}',
        b'data: {"choices":[{"logprobs":{"content":[]}}',
        b'data: {"choices":[{"logprobs":{"content":[]}}]} {}',
        b'data: ["logprobs"]',
        b': "logprobs"',
        b'data: {"choices":[{"logprobs":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    ],
)
def test_what_is_no_choice_or_cannot_be_read_passes(event: bytes) -> None:
    assert fed(event + b"\n\n")[0] == event + b"\n\n"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b'data: {"choices":[{"index":0, "logprobs" : {"content":[]} , "a":1}]}', b'"logprobs" : null , "a":1}]}'),
        (b'data: {"choices":[{"logprobs":1},{"logprobs":[2]}]}', b'[{"logprobs":null},{"logprobs":null}]}'),
        (b'data: {"choices":[\ndata: {"logprobs":{\ndata: }}]}', b'data: {"logprobs":null}]}'),
        (b'data: {"choices":[{"logprobs":2,"logprobs":null}]}', b'{"logprobs":null,"logprobs":null}]}'),
    ],
)
def test_the_value_becomes_null_and_nothing_else_changes(event: bytes, expected: bytes) -> None:
    passed = fed(event + b"\n\n")[0]
    assert passed.endswith(expected + b"\n\n")
    assert event.startswith(passed.removesuffix(expected + b"\n\n"))


def test_an_event_that_is_there_for_them_only_goes_whole() -> None:
    held = {"index": 0, "delta": {}, "logprobs": told("<think>"), "finish_reason": None}
    last = {**held, "finish_reason": "stop"}
    events = [b"data: " + json.dumps({"choices": [one]}).encode() + b"\n\n" for one in (held, last)]
    passed, taken, _ = fed(b"".join(events))
    assert passed == b"data: " + json.dumps({"choices": [{**last, "logprobs": None}]}).encode() + b"\n\n"
    assert len(taken.positions) == 2


def test_where_a_piece_is_not_read_nothing_is_kept() -> None:
    good = b"data: " + json.dumps(chunk("a", True)).encode() + b"\n\n"
    odd = b'data: {"choices":[{"delta":{"content":"b"},"logprobs":{"content":[{"token":"b"}]}}]}\n\n'
    assert len(fed(good * 2)[1].positions) == 2
    for wrong in (good + odd + good, good + b'data: {"logprobs"}\n\n' + good, good + good[:-1]):
        passed, taken, times = fed(wrong)
        assert (taken.positions, times) == ([], 1)
        assert b'"bytes"' not in passed.removesuffix(good[:-1])
    assert fed(good + good, largest=20)[:1] == (good + good,)
    assert fed(good + good, largest=20)[1].positions == []


def plain(logprobs: bool, text: str = "ü", spell: Callable[[Any], bytes] = SPELLINGS[0]) -> bytes:
    choice = {"index": 0, "message": {"content": text}, "logprobs": told(text) if logprobs else None}
    return spell({"id": "c1", "choices": [{**choice, "finish_reason": "stop"}], "usage": {"total_tokens": 3}})


@settings(deadline=None)
@given(text=TEXTS, spell=st.sampled_from(SPELLINGS))
def test_a_whole_answer_is_as_if_it_had_not_been_asked_for_and_as_long_as_it_says(
    text: str, spell: Callable[[Any], bytes]
) -> None:
    body, expected, taken = plain(True, text, spell), plain(False, text, spell), Taken(Times())
    headers = ((b"X-A", b"1"), (b"Content-Length", b"%d" % len(body)), (b"x-b", b"2"))
    found = withheld(Held(200, headers, "application/json", "here", 2, body), taken)
    length = (b"Content-Length", b"%d" % len(expected))
    assert found == Held(200, (headers[0], length, headers[2]), "application/json", "here", 2, expected)
    token = text.encode("utf-8", "replace")
    assert taken.positions == [Position(token, -0.5, ((token, -0.5), (b"\xff", -2.0)))]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"choices":1}', plain(False), b'{"choices":[1,{"a":1}]}'])
def test_a_whole_answer_that_tells_nothing_stays_as_it_is(body: bytes) -> None:
    first = Times()
    taken, answer = Taken(first), Held(200, ((b"content-length", b"%d" % len(body)),), "", "", 1, body)
    assert (withheld(answer, taken), taken.positions, first.times) == (answer, [], 0)


def test_of_a_whole_answer_that_broke_off_nothing_is_shown() -> None:
    found = withheld(Held(200, (), "", "", 1, plain(True)[:-5], UpstreamBroke("gone")), Taken(Times()))
    assert (found.body, str(found.error)) == (b"", "gone")


def test_a_stream_that_breaks_off_has_its_rest_passed_on_before_the_error() -> None:
    good = b"data: " + json.dumps(chunk("a", True)).encode() + b"\n\n"
    upstream = Answer(good, good[:20], error=UpstreamBroke("gone"))
    answer, got = Withheld(upstream, Taken(Times())), []

    async def listen() -> None:
        async for piece in answer.pieces():
            got.append(piece)

    with pytest.raises(UpstreamBroke, match="gone"):
        asyncio.run(listen())
    assert b"".join(got) == b"data: " + json.dumps(chunk("a", False)).encode() + b"\n\n" + good[:20]
    answer.close()
    assert upstream.closed == 1
