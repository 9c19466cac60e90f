import json
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.quarantine import MOST_SECONDS, Patience, quarantined, sift


def only_digits(file: Path) -> None:
    if not all(line.isdigit() for line in file.read_bytes().split()):
        raise duckdb.InvalidInputException(f"in {file} something is no number")


@settings(deadline=None)
@given(lines=st.lists(st.sampled_from([b"1", b"22", b"x", b"\xff", b"", b" "]), max_size=20))
def test_every_line_is_in_the_copy_or_in_quarantine(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    segment = folder / "segment.ndjson"
    segment.write_bytes(b"\n".join(lines))
    copy, others = sift(segment, only_digits, folder / "work")
    assert copy.read_bytes().split() == [line for line in lines if line.isdigit()]
    assert others == quarantined(folder) == sum(line in (b"x", b"\xff") for line in lines)
    for _ in range(2):  # Again, as after a crash: nothing is doubled.
        sift(segment, only_digits, folder / "work")
    assert quarantined(folder) == others


def test_what_is_set_aside_can_be_made_whole_again(tmp_path: Path) -> None:
    (tmp_path / "segment").write_bytes(b"1\n\nw\xc3\xb6rd\n\xff\n")
    sift(tmp_path / "segment", only_digits, tmp_path / "work")
    entries = [json.loads(line) for line in (tmp_path / "quarantine" / "segment").read_text().splitlines()]
    assert [(e["line"], e["raw"], e["encoding"]) for e in entries] == [(3, "wörd", "utf-8"), (4, "/w==", "base64")]
    assert {(e["reason"], e["segment"]) for e in entries} == {("in  something is no number", "segment")}
    assert (tmp_path / "quarantine" / "segment").stat().st_mode & 0o077 == 0


def test_a_segment_that_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sift(tmp_path / "missing", only_digits, tmp_path / "work")


def test_patience_doubles_up_to_an_hour_and_forgets() -> None:
    now = [0.0]
    patience = Patience(lambda: now[0])
    assert patience.due("a")
    assert [patience.failed("a") for _ in range(3)] == [1.0, 2.0, 4.0]
    assert not patience.due("a")
    assert patience.due("b")
    now[0] = 4.0
    assert patience.due("a")
    assert [patience.failed("a") for _ in range(20)][-1] == MOST_SECONDS
    patience.worked("a")
    assert patience.due("a")
    assert patience.failed("a") == 1.0
