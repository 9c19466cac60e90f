from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.champion import Duel, compare, compared, duel, in_words
from distiller.dataset import Dataset, dataset
from distiller.distill import distill
from distiller.incumbent import incumbent
from distiller.scoring import Answered, Score
from distiller.settings import Settings
from proxy.log import Log
from router.evaluators import JUDGE
from router.parity import lower_bound
from tests.distiller.test_curate import row
from tests.distiller.toy_task import head_settings, toy_log
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
    assert (lost.low, lost.high) == (-1.0, pytest.approx(1 - 2 * lower_bound([1.0] * 20, 0.05 / 3)))
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
    rows = [(row(number), *pair) for number, pair in enumerate(pairs)]
    one = compared(("all", ""), rows, 0.05)
    other = compared(("all", ""), [(each, old, new) for each, new, old in rows], 0.05)
    assert one.difference == pytest.approx(one.challenger - one.champion, abs=1e-9)
    assert one.low - 1e-6 <= one.difference <= one.high + 1e-6
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-6)
    assert one.worse == (one.high < 0)


def test_harmless_students_are_rarely_called_worse_and_clearly_worse_ones_mostly() -> None:
    """Of students whose verdicts differ from the older one's in a tenth of the rows, by chance in either direction."""
    pick = np.random.default_rng(0)

    def share(lost: float) -> float:
        found = []
        for _ in range(300):
            new, old = np.ones(100), np.ones(100)
            changed, worse = pick.random(100) < 0.1, pick.random(100) < lost
            new[changed & worse], old[changed & ~worse] = 0, 0
            pairs = [(row(number), *pair) for number, pair in enumerate(zip(new.tolist(), old.tolist(), strict=True))]
            found.append(compared(("all", ""), pairs, 0.05).worse)
        return float(np.mean(found))

    assert share(0.5) <= 0.05
    assert share(0.95) >= 0.5


@pytest.fixture
def taught(tmp_path: Path) -> tuple[Log, Settings]:
    """A task with a student."""
    log, settings = toy_log(tmp_path), head_settings(tmp_path)
    distill(log, settings, TASK, lambda *_: None)
    return log, settings


def of(log: Log, settings: Settings, score: Score, evaluator: str = "") -> tuple[Dataset, Duel | None]:
    """What a new student that is wrong everywhere comes to."""
    data = dataset(log, TASK, settings)
    data = replace(data, evaluator=evaluator or data.evaluator)
    return data, duel(log, data, [0.0] * len(data.holdout), settings, score, lambda *_: None)


def exact(answers: Sequence[Answered]) -> list[float]:
    return [float(one.teacher == one.other) for one in answers]


def test_the_older_student_is_asked_what_neither_learned(taught: tuple[Log, Settings]) -> None:
    log, settings = taught
    before = incumbent(log, TASK)
    assert before is not None
    for number in range(150, 165):
        insert(log, [f"lamp {number} is red"], "stop")
    data, found = of(log, settings, exact)
    assert found is not None
    whole = found.table[0]
    fair = {one.exchange_id for one in data.holdout} - before.learned
    assert (found.champion, whole.rows) == (before.id, len(fair))
    assert whole.champion > 0.9
    assert whole.worse
    assert in_words(found).endswith("kept, but no candidate")
    _, few = of(log, settings, exact, JUDGE)
    assert few is not None
    assert few.table[0].rows == settings.distiller.control_rows


def test_why_there_was_nothing_to_compare_is_told(taught: tuple[Log, Settings], tmp_path: Path) -> None:
    log, settings = taught
    before = incumbent(log, TASK)
    assert before is not None
    (before.path / "lineage.json").write_text("{}")
    _, found = of(log, settings, exact)
    assert found is not None
    assert (found.table, found.lost) == ((), ())
    assert "lineage.json was changed" in in_words(found)
    log.query("UPDATE candidates SET bundle = 'nowhere'")
    _, found = of(log, settings, exact)
    assert found is not None
    assert "nowhere is not a finished student" in found.why
    log.query("DELETE FROM candidates")
    assert of(log, settings, exact)[1] is None


def test_an_older_student_that_learned_the_whole_holdout_is_not_compared(taught: tuple[Log, Settings]) -> None:
    log, settings = taught
    data = dataset(log, TASK, settings)
    assert data.incumbent is not None
    everything = replace(data.incumbent, learned=frozenset(one.exchange_id for one in data.holdout))
    found = duel(log, replace(data, incumbent=everything), [0.0] * 30, settings, exact, lambda *_: None)
    assert found is not None
    assert found.why == "it has learned every row of the holdout"
