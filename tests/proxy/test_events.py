from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.events import Events, Part, payload

SCRAPS = [b"\n", b"\r", b"\r\n", b"\n\n", b"data: {}", b": ping", b"x" * 9, "ü\u2028".encode(), b"\xff"]
BREAKS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def parts(stream: bytes, cuts: list[int], largest: int = 1 << 20) -> list[Part]:
    events = Events(largest)
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    found = [part for start, end in pairwise(bounds) for part in events.feed(stream[start:end])]
    rest = events.end()
    assert events.between
    return [*found, Part(rest, False)]


@given(st.lists(st.sampled_from(SCRAPS)).map(b"".join), st.lists(st.integers(0, 80), max_size=9), st.integers(0, 40))
def test_the_parts_are_the_stream_and_the_events_are_the_same_however_it_is_cut(
    stream: bytes, cuts: list[int], largest: int
) -> None:
    found, uncut = parts(stream, cuts, largest), parts(stream, [], largest)
    assert b"".join(part.data for part in found) == stream
    assert [part.data for part in found if part.whole] == [part.data for part in uncut if part.whole]
    assert all(len(part.data) <= largest for part in found if part.whole)


@given(BREAKS, st.lists(st.integers(0, 80), max_size=9))
def test_an_event_is_whole_with_its_blank_line_and_what_is_between_is_not(brk: bytes, cuts: list[int]) -> None:
    events = [b"event: a" + brk + b"data: 1" + brk * 2, b"data: 2" + brk * 2, b"data: 3" + brk]
    found = parts(brk + events[0] + brk + events[1] + events[2], cuts)
    assert [part.data for part in found if part.whole] == events[:2]
    assert b"".join(part.data for part in found if not part.whole) == brk * 2 + events[2]


def test_the_payload_stands_where_it_stood() -> None:
    event = b'event: x\ndata: {"a":\r\n: no\ndata:"\xc3\xbc"}\n\n'
    text = payload(event)
    assert len(text) == len(event)
    assert text.split() == ['{"a":', '"Ã¼"}']
    assert text.index('"a"') == event.index(b'"a"')
