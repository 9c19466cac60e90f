import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.curate import JACCARD, Recorded, split
from distiller.leaks import FILE, SIMILAR, Overlap, leak_report
from tests.distiller.test_curate import LONG, RECORDED, jaccard, row

NONE = Overlap(0, ())


def test_different_rows_in_order_of_time_leak_nothing() -> None:
    found = leak_report([row(1), row(2, LONG)], [row(3), row(4)])
    assert (found.train, found.holdout, found.compared, found.in_order, found.clean) == (2, 2, 0, True, True)
    assert {found.exact, found.near_duplicate, found.conversation, found.similar, found.told} == {NONE}


def test_each_overlap_stands_under_its_gravest_word_with_both_ids() -> None:
    words = LONG.split()
    train = [row(1, LONG), row(2, "short text"), row(3, conversation="c")]
    holdout = [
        row(4, LONG), row(5, "Short  text!"), row(6, f"{LONG} eighteen"), row(7, " ".join([*words[:-2], "a", "b"])),
        row(8, conversation="c"), row(9, "unlike anything here"),
    ]  # fmt: skip
    found = leak_report(train, holdout)
    assert found.exact == Overlap(1, (("e0004", "e0001"),))
    assert found.near_duplicate == Overlap(2, (("e0005", "e0002"), ("e0006", "e0001")))
    assert found.similar == Overlap(1, (("e0007", "e0001"),))
    assert found.conversation == Overlap(1, (("e0008", "e0003"),))
    assert not found.clean


def test_a_holdout_row_before_the_last_train_row_is_seen() -> None:
    assert not leak_report([row(1), row(3)], [row(2)]).in_order
    assert not leak_report([row(1), row(3)], [row(2)]).clean
    assert leak_report([row(2)], [row(3, ts=row(2).ts)]).in_order


@pytest.mark.parametrize("late", [row(2, "ticket 1"), row(2, "Ticket 1."), row(2, "x", conversation="c")])
def test_each_of_the_grave_ones_alone_is_a_leak(late: Recorded) -> None:
    assert leak_report([row(1)], [row(2, "x")]).clean
    assert not leak_report([row(1, conversation="c")], [late]).clean


def test_answers_that_stand_in_their_own_prompt_are_counted_and_instructions_do_not_count() -> None:
    told = row(3, "is this Billing?", "billing")
    instructed = replace(row(4, "my card"), messages=({"role": "system", "content": "billing"}, *row(4).messages[1:]))
    within_a_word = row(5, "rebillings happen", "billing")
    found = leak_report([row(1)], [told, instructed, within_a_word, row(6, "?", "...")])
    assert found.told == Overlap(1, (("e0003", "e0003"),))
    assert found.clean


@given(st.lists(RECORDED, min_size=2, max_size=30), st.integers(1, 29))
def test_what_a_split_returns_is_clean(rows: list[Recorded], holdout: int) -> None:
    parts = split(rows, min(holdout, len(rows) - 1))
    found = leak_report(parts.train, parts.holdout)
    assert found.clean
    assert found.holdout == len(parts.holdout)


TEXTS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=14).map(" ".join) | st.sampled_from(
    [LONG, LONG + " eighteen", LONG + "!", LONG.upper(), LONG.replace("nine", "neun"), "a", "A.", "?", "!"]
)


@given(st.lists(TEXTS, max_size=8), st.lists(TEXTS, max_size=8))
def test_similarities_agree_with_brute_force(learned: list[str], judging: list[str]) -> None:
    found = leak_report([row(1, text) for text in learned], [row(2, text) for text in judging])

    def plain(text: str) -> str:
        return text.casefold().rstrip(".!?") or text

    left = [text for text in judging if text not in learned]
    likeness = {text: max((jaccard(text, one) for one in learned), default=0.0) for text in left}
    near = [text for text in left if likeness[text] >= JACCARD or plain(text) in map(plain, learned)]
    similar = [text for text in left if likeness[text] >= SIMILAR and text not in near]
    assert found.exact.rows == len(judging) - len(left)
    assert (found.near_duplicate.rows, found.similar.rows) == (len(near), len(similar))
    assert found.compared == sum(len(text.split()) >= 8 for text in judging)


def test_the_report_is_a_file_of_ids_without_texts(tmp_path: Path) -> None:
    found = leak_report([row(1, LONG)], [row(2, LONG)])
    path = found.write(tmp_path)
    told = json.loads(path.read_text())
    assert path == tmp_path / FILE
    assert (told["exact"], told["clean"]) == ({"rows": 1, "examples": [["e0002", "e0001"]]}, False)
    assert "eight" not in path.read_text()
    first = path.read_bytes()
    assert leak_report([row(1, LONG)], [row(2, LONG)]).write(tmp_path).read_bytes() == first


def test_many_holdout_rows_are_compared_in_parts() -> None:
    train = [row(number, f"{LONG} w{number % 7} x{number}") for number in range(300)]
    holdout = [row(1000 + number, f"{LONG} w{number % 7} x{number}") for number in range(600)]
    found = leak_report(train, holdout)
    assert (found.exact.rows, found.near_duplicate.rows + found.similar.rows) == (300, 300)
