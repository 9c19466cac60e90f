from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.base import base_identity
from distiller.curate import Recorded
from distiller.dataset import Dataset
from distiller.incumbent import Incumbent
from distiller.settings import DistillerSettings
from distiller.train import TrainSettings as Training
from distiller.train import learning_model, save_weights
from distiller.warm_start import drawn, misfit, needed, start_of
from router.settings import TaskSettings
from tests.distiller.test_curate import row
from tests.distiller.toy import build_toy

ON = DistillerSettings(init="previous", rank=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    build_toy(folder, ["any text will do"])
    return folder


@pytest.fixture(scope="module")
def student(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's folder, as far as it matters here."""
    folder = tmp_path_factory.mktemp("student")
    shape = Training(rank=8, alpha=16, threads=1)
    save_weights(learning_model(base, shape), base, shape, folder / "adapter")
    return folder


def before(student: Path, base: Path, learned: frozenset[str]) -> Incumbent:
    return Incumbent("student-1", "live", student, {"kind": "adapter", "base_sha256": base_identity(base)}, learned)


def window(rows: list[Recorded], incumbent: Incumbent | None) -> Dataset:
    return Dataset("t", 1, 9, {}, rows, [], frozenset(), "label", TaskSettings(), ("a", "b"), incumbent=incumbent)


def test_new_rows_are_trained_with_a_share_of_older_ones(base: Path, student: Path) -> None:
    rows = [row(number, answer="a" if number % 4 else "b") for number in range(100)]
    learned = frozenset(one.exchange_id for one in rows[:60]) | {"long gone"}
    start = start_of(window(rows, before(student, base, learned)), base, ON)
    assert (start.adapter, start.why) == (student / "adapter", "")
    assert [one for one in start.rows if one.exchange_id not in learned] == rows[60:]
    assert (len(start.rows), len(start.replayed)) == (50, 10)  # A fifth of them are older,
    again = [one for one in start.rows if one.exchange_id in learned]
    assert {one.exchange_id for one in again} == start.replayed
    assert Counter(one.answer for one in again)["a"] in (7, 8)  # and of those as many of each label as there are.
    assert [one.exchange_id for one in start.rows] == sorted(one.exchange_id for one in start.rows)
    more = start_of(window(rows, before(student, base, learned)), base, replace(ON, replay_share=0.5))
    assert len(more.replayed) == 40


def test_by_default_all_rows_are_trained_from_the_base(base: Path, student: Path) -> None:
    rows = [row(number) for number in range(9)]
    start = start_of(window(rows, before(student, base, frozenset(["e0001"]))), base, DistillerSettings())
    assert (start.rows, start.parent, start.adapter, start.why) == (rows, None, None, "")


def test_why_a_student_is_not_gone_on_from_is_told(base: Path, student: Path, tmp_path: Path) -> None:
    rows = [row(number) for number in range(10)]
    old = frozenset(one.exchange_id for one in rows[:8])
    fit = before(student, base, old)
    few = before(student, base, frozenset(["e0000"]))
    for incumbent, said in (
        (None, "no student to go on from"),
        (replace(fit, broken="weights was changed"), "student-1 cannot be gone on from: weights was changed"),
        (replace(fit, learned=frozenset(one.exchange_id for one in rows)), "has learned every row already"),
        (few, "within distiller.max_rows are 1 older rows, and 3 are needed beside 9 new ones"),
    ):
        start = start_of(window(rows, incumbent), base, ON)
        assert said in start.why
        assert (start.rows, start.adapter) == (rows, None)
    other = tmp_path / "other"
    build_toy(other, ["another tokenizer altogether"])
    head = Incumbent("student-2", "live", tmp_path, {"kind": "head"}, old)
    assert misfit(fit, base, ON) == ""
    assert "its base model or tokenizer is not the one in" in misfit(fit, other, ON)
    assert "its rank is 8, and distiller.rank is 16" in misfit(fit, base, replace(ON, rank=16))
    assert "other layers than the 1 uppermost" in misfit(fit, base, replace(ON, layers=1))
    assert "of kind 'head', without an adapter" in misfit(head, base, ON)


@given(st.integers(1, 5000), st.floats(0.2, 0.9))
def test_no_fewer_older_rows_than_the_share_and_no_more_than_it_takes(new: int, share: float) -> None:
    count = needed(new, share)
    assert count / (count + new) >= share - 1e-9
    assert (count - 1) / (count - 1 + new) < share + 1e-9


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=80), st.integers(0, 9), st.data())
def test_each_stratum_has_its_share_to_within_one_row(strata: list[str], seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(strata)))
    found = drawn(strata, count, seed)
    assert len(set(found)) == len(found) == count
    assert found == drawn(strata, count, seed) == sorted(found)
    taken = Counter(strata[index] for index in found)
    for label, size in Counter(strata).items():
        assert abs(taken[label] - count * size / len(strata)) < 1 + 1e-9
