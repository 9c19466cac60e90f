"""The benchmark's fuzzer, shortly: `make bench-fuzz` does the same for minutes."""

from pathlib import Path

import pytest

from tests.bench.fuzz import fuzz
from tests.hostile import BROKEN, FRAMING, STREAM, chunked, post
from tests.mutations import make_case
from tests.strict import read_all


def test_a_real_deployment_stands_a_few_hundred_changed_requests(tmp_path: Path) -> None:
    tally, wrong = fuzz(seed=20, requests=400, first=0, folder=tmp_path)
    assert wrong == []
    assert tally.requests >= 400
    assert len(tally.kept) > 100
    assert {name.partition(" ")[0] for name in tally.answers} == {"teacher", "Stillroom"}


def test_a_case_is_the_same_every_time_and_others_are_not() -> None:
    cases = [make_case(1, number) for number in range(200)]
    assert cases == [make_case(1, number) for number in range(200)]
    assert len({case.data for case in cases}) > 190


@pytest.mark.parametrize("cut", range(0, len(post(STREAM) * 2), 7))
def test_the_oracle_takes_what_is_whole_and_waits_for_the_rest(cut: int) -> None:
    reading = read_all((post(STREAM) * 2)[:cut])
    assert not reading.broken
    assert len(reading.requests) == cut // len(post(STREAM))


def test_the_oracle_reads_chunks_and_takes_no_liberties() -> None:
    (request,) = read_all(chunked(b"2;a=b\r\n{}\r\n0\r\nX-T: a\r\n\r\n")).requests
    assert request.body == b"{}"
    taken = {name for name, (data, _) in FRAMING.items() if read_all(data).requests}
    assert taken & {name for name, (_, expected) in FRAMING.items() if expected == BROKEN} == set()
    assert "chunk extension" in taken
