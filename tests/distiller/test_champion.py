from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.champion import Duel, compare, duel, in_words
from distiller.dataset import Dataset, dataset
from distiller.distill import distill
from distiller.incumbent import incumbent
from distiller.scoring import Answered, Score
from distiller.settings import DistillerSettings, Settings
from proxy.log import Log
from router.evaluators import JUDGE
from router.parity import parity
from tests.distiller.test_curate import row
from tests.distiller.toy_task import toy_log, toy_settings
from tests.logs import migrated
from tests.router.conftest import TASK, insert


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def recorded(log: Log, tenant: str, count: int) -> list[str]:
    return insert(log, [f"{tenant} {number}" for number in range(count)], tenant=tenant)


def test_a_slice_that_became_surely_worse_is_found_though_the_whole_became_better(log: Log) -> None:
    exchanges = [*recorded(log, "many", 80), *recorded(log, "few", 20)]
    rows = [row(number, exchange_id=exchange) for number, exchange in enumerate(exchanges)]
    champion = [0.5] * 80 + [1.0] * 20
    table = compare(log, rows, [1.0] * 80 + [0.0] * 20, champion, 0.05)
    whole, *slices = table
    assert (whole.facet, whole.rows, whole.worse) == ("all", 100, False)
    assert whole.difference == pytest.approx(0.2)
    assert {(one.value, one.rows) for one in slices} == {("many", 80), ("few", 20)}  # Other facets are all of them.
    found = Duel("student-1", "live", table)
    (lost,) = found.lost
    assert (lost.facet, lost.value, lost.difference) == ("tenant", "few", -1.0)
    bound = parity([0.0] * 20, 0.5, 0.05 / 3).upper
    assert (lost.low, lost.high) == (-1.0, pytest.approx(2 * bound - 1))
    assert "worse: tenant few by 1.000 (at least" in in_words(found)
    again = compare(log, rows, champion, champion, 0.05)
    assert not Duel("student-1", "live", again).lost
    assert all(one.low < 0 < one.high for one in again)


def test_a_conversation_counts_once(log: Log) -> None:
    exchanges = recorded(log, "one", 30)
    talk = [row(number, exchange_id=exchange, conversation="a") for number, exchange in enumerate(exchanges)]
    (whole,) = compare(log, talk, [0.0] * 30, [1.0] * 30, 0.05)
    assert (whole.rows, whole.conversations, whole.difference, whole.worse) == (30, 1, -1.0, False)
    (whole,) = compare(log, [replace(one, conversation=None) for one in talk], [0.0] * 30, [1.0] * 30, 0.05)
    assert (whole.conversations, whole.worse) == (30, True)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_bounds_hold_the_difference_and_swapping_the_two_mirrors_them(pairs: list[tuple[float, float]]) -> None:
    rows = [row(number) for number in range(len(pairs))]
    new, old = zip(*pairs, strict=True)
    (one,), (other,) = compare(EMPTY, rows, new, old, 0.05), compare(EMPTY, rows, old, new, 0.05)
    assert one.difference == pytest.approx(one.challenger - one.champion, abs=1e-9)
    assert one.low - 1e-6 <= one.difference <= one.high + 1e-6
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-6)
    assert one.worse == (one.high < 0)


class _Empty:
    """A log without exchanges: then there are no slices, and only the whole is compared."""
