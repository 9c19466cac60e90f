import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.curate import (
    EXAMPLES,
    JACCARD,
    Recorded,
    curate,
    is_refusal,
    near_duplicate_groups,
    split,
    together,
    user_text,
)
from distiller.sample_traffic import sample_traffic
from proxy.errors import BadInput

START = datetime(2026, 3, 1, tzinfo=UTC)
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def row(number: int, text: str = "", answer: str = "billing", **changes: Any) -> Recorded:
    messages = ({"role": "system", "content": "Triage."}, {"role": "user", "content": text or f"ticket {number}"})
    asked = START + timedelta(minutes=number)
    made = Recorded(f"e{number:04}", asked, messages, answer, 200, False, "stop", False, None)
    return replace(made, **changes)


def test_a_fit_row_is_kept() -> None:
    assert curate([row(1)]).kept == (row(1),)
    assert curate([row(1)]).dropped == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": 500, "partial": True}, "error"),
        ({"partial": True, "finish_reason": "length"}, "partial"),
        ({"finish_reason": "length", "answer": ""}, "truncated"),
        ({"finish_reason": "content_filter", "answer": ""}, "filtered"),
        ({"tool_calls": True, "answer": ""}, "tool_calls"),
        ({"answer": " \n"}, "empty"),
        ({"answer": "I'm sorry, but I can't help with that."}, "refusal"),
        ({"messages": ({"role": "user", "content": "half \ud800"},)}, "broken_text"),
        ({"answer": "half \ud800"}, "broken_text"),
    ],
)
def test_the_first_reason_counts(changes: dict[str, Any], reason: str) -> None:
    result = curate([row(1), row(2, **changes)])
    assert (result.kept, result.dropped) == ((row(1),), {reason: 1})


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that request.",
        "I\u2019m sorry, I cannot share that.",
        "Sorry, but I am unable to do this.",
        "I am really sorry, but I won't write it.",
        "I cannot help with that.",
        "I can't comply with this.",
        "Unfortunately, I am not able to provide legal advice.",
        "I apologize, but I cannot discuss this.",
        "I'm afraid I can't do that.",
        "As an AI language model, I have no opinion.",
        "As a language model I have no access to it.",
        "I must decline.",
        "This request violates the rules.",
    ],
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "cannot_login",
        "I cannot log in",
        "I can't help but admire it.",
        "Sorry",
        "I'm sorry to hear that your parcel is late. It will be there on Friday.",
        "Unfortunately, we cannot refund a used voucher.",
        "As a language teacher, I would begin with verbs.",
        "refusal",
        '{"reason":"I cannot help with that"}',
        "I can't help with that. " + "But here is the long way round. " * 20,
    ],
)
def test_normal_answers_are_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)


@pytest.mark.parametrize(
    ("answers", "kept", "dropped"),
    [
        ("aa", 0, {"exact_duplicate": 1}),
        ("ab", 1, {"conflict": 1}),
        ("aab", 2, {"exact_duplicate": 1, "conflict": 1}),
        ("aba", 2, {"exact_duplicate": 1, "conflict": 1}),
        ("abc", 2, {"conflict": 2}),
    ],
)
def test_one_prompt_keeps_one_answer(answers: str, kept: int, dropped: dict[str, int]) -> None:
    rows = [row(number, "same", answer) for number, answer in enumerate(answers)]
    result = curate(rows[::-1])
    assert (result.kept, result.dropped) == ((rows[kept],), dropped)


RECORDED = st.builds(
    row,
    st.integers(0, 40),
    st.sampled_from(["", "a", "b", LONG, LONG + " eighteen", LONG + "!", LONG.replace("nine", "neun")]),
    st.sampled_from(["x", "y", "", "I can't help with that."]),
    status=st.sampled_from([200, 200, 200, 500]),
    partial=st.sampled_from([False, False, True]),
    finish_reason=st.sampled_from(["stop", None, "length", "content_filter"]),
    tool_calls=st.sampled_from([False, False, True]),
    conversation=st.sampled_from([None, None, "c1", "c2"]),
)


@given(st.lists(RECORDED, max_size=40), st.randoms())
def test_curation_counts_every_row_and_forgets_the_order(rows: list[Recorded], rng: random.Random) -> None:
    result = curate(rows)
    assert len(result.kept) + sum(result.dropped.values()) == len(rows)
    assert [one.ts for one in result.kept] == sorted(one.ts for one in result.kept)
    assert len({str(one.messages) for one in result.kept}) == len(result.kept)
    again = curate(result.kept)
    assert (again.kept, again.dropped) == (result.kept, {})
    unique = list({one.exchange_id: one for one in rows}.values())
    shuffled = unique.copy()
    rng.shuffle(shuffled)
    assert curate(shuffled) == curate(unique)


@given(st.lists(RECORDED, min_size=2, max_size=40, unique_by=lambda one: one.exchange_id), st.integers(1, 39))
def test_each_reason_names_the_first_exchanges_it_dropped(rows: list[Recorded], holdout: int) -> None:
    curated = curate(rows)
    parts = split(rows, min(holdout, len(rows) - 1))
    order = [one.exchange_id for one in sorted(rows, key=lambda one: (one.ts, one.exchange_id))]
    for result, kept in ((curated, curated.kept), (parts, (*parts.train, *parts.holdout))):
        assert {reason: len(ids) for reason, ids in result.examples.items()} == {
            reason: min(count, EXAMPLES) for reason, count in result.dropped.items()
        }
        named = [one for ids in result.examples.values() for one in ids]
        assert len(set(named)) == len(named)
        assert set(named).isdisjoint(one.exchange_id for one in kept)
        assert all(list(ids) == sorted(ids, key=order.index) for ids in result.examples.values())


def test_of_many_dropped_rows_the_first_are_named() -> None:
    result = curate([row(number, status=500) for number in range(9)][::-1])
    assert result.examples == {"error": tuple(f"e{number:04}" for number in range(EXAMPLES))}


def test_rows_that_must_not_be_parted_share_a_group() -> None:
    rows = [row(1, LONG), row(2), row(3, LONG + "!", conversation="c"), row(4, conversation="c"), row(5)]
    assert together(rows).tolist() == [0, 1, 0, 0, 4]


def test_the_holdout_is_the_latest() -> None:
    rows = [row(number) for number in range(10)]
    result = split(rows[::-1], 0.3)
    assert (result.train, result.holdout, result.dropped) == (tuple(rows[:7]), tuple(rows[7:]), {})
    assert split(rows, 3) == result


@pytest.mark.parametrize("holdout", [0, 2, -1, 0.0, 0.1, 1.0])
def test_a_split_without_two_sides_is_refused(holdout: float) -> None:
    with pytest.raises(BadInput, match="no two sides"):
        split([row(1), row(2)], holdout)


def test_a_late_near_duplicate_leaves_the_holdout_whatever_its_answer() -> None:
    rows = [row(1, LONG), row(2), row(3, LONG + " eighteen", "delivery"), row(4)]
    result = split(rows, 2)
    assert (result.holdout, result.dropped) == ((rows[3],), {"near_duplicate": 1})


def test_a_conversation_stays_on_one_side() -> None:
    rows = [row(1, conversation="c"), row(2), row(3, conversation="c"), row(4, conversation="d")]
    result = split(rows, 2)
    assert (result.holdout, result.dropped) == ((rows[3],), {"conversation": 1})


def test_a_chain_over_text_and_conversation_stays_on_one_side() -> None:
    rows = [row(1, LONG), row(2), row(3, LONG + " eighteen", conversation="c"), row(4, conversation="c"), row(5)]
    result = split(rows, 3)
    assert (result.holdout, result.dropped) == ((rows[4],), {"near_duplicate": 2})


def test_inside_train_near_duplicates_go_only_when_the_answers_agree() -> None:
    rows = [row(1, LONG, "a"), row(2, LONG + ".", "a"), row(3, LONG + " eighteen", "b"), row(4)]
    result = split(rows, 1)
    assert (result.train, result.dropped) == ((rows[1], rows[2]), {"near_duplicate": 1})


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def jaccard(one: str, other: str) -> float:
    """Brute force: the share of common 3-word runs, 0 for short texts."""
    if min(len(words(one)), len(words(other))) < 8:
        return 0.0
    sets = [{tuple(words(text)[at : at + 3]) for at in range(len(words(text)) - 2)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(st.lists(RECORDED, min_size=2, max_size=40), st.integers(1, 39))
def test_nothing_stands_on_both_sides(rows: list[Recorded], holdout: int) -> None:
    count = min(holdout, len(rows) - 1)
    result = split(rows, count)
    assert len(result.train) + len(result.holdout) + sum(result.dropped.values()) == len(rows)
    assert result.train
    assert len(result.holdout) <= count
    for late in result.holdout:
        for early in result.train:
            assert early.ts <= late.ts
            assert user_text(early) != user_text(late)
            assert jaccard(user_text(early), user_text(late)) < JACCARD
            assert early.conversation is None or early.conversation != late.conversation
    assert split(rows, count) == result


@given(st.integers(0, 2**32), st.integers(8, 60), st.integers(0, 6))
def test_groups_agree_with_brute_force(seed: int, length: int, changes: int) -> None:
    rng = random.Random(seed)
    base = [f"w{rng.randrange(500)}" for _ in range(length)]
    other = base.copy()
    for _ in range(changes):
        other[rng.randrange(length)] = f"v{rng.randrange(500)}"
    one, two = " ".join(base), " ".join(other)
    groups = near_duplicate_groups([one, two])
    assert (groups[0] == groups[1]) == (one == two or jaccard(one, two) >= JACCARD)


def test_short_texts_are_near_duplicates_only_when_equal() -> None:
    texts = ["Set a timer for 5 minutes", "set a  timer for 5 minutes.", "set a timer for 6 minutes", "?", "!", ""]
    assert near_duplicate_groups(texts).tolist() == [0, 0, 2, 3, 4, 5]


def test_no_texts_make_no_groups() -> None:
    assert near_duplicate_groups([]).tolist() == []


def test_prompts_without_user_text_are_told_apart_by_the_whole_prompt() -> None:
    images = [({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]},) for url in "ab"]
    first, second = (user_text(row(1, messages=messages)) for messages in images)
    assert first != second


def test_five_thousand_long_texts_are_grouped_right() -> None:
    rng = random.Random(1)
    bases = [[f"w{rng.randrange(3000)}" for _ in range(90)] for _ in range(2500)]
    texts = [" ".join(base) for base in bases] + [" ".join([*base[:-1], "changed"]) for base in bases]
    assert near_duplicate_groups(texts).tolist() == [*range(2500), *range(2500)]


def test_sample_traffic_survives() -> None:
    rows = [row(number, messages=one.messages, answer=one.answer) for number, one in enumerate(sample_traffic(1000, 3))]
    result = curate(rows)
    assert result.dropped == {}
    assert split(result.kept).dropped == {}
