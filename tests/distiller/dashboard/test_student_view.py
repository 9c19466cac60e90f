from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.course import telling
from distiller.dashboard.student_view import EXAMPLES, Part, beside, detail, students, thinned
from distiller.settings import Settings
from proxy.errors import BadInput
from proxy.log import Log
from router.charges import charge
from tests.distiller.dashboard.bundles import sealed
from tests.logs import migrated
from tests.router.conftest import TASK, insert, judged, known


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path))


@pytest.fixture
def log(settings: Settings) -> Iterator[Log]:
    log = migrated(settings.folder)
    yield log
    log.close()


def line(exchange: str, text: str, verdict: float, teacher: str = "billing") -> dict[str, object]:
    return {"exchange": exchange, "teacher": teacher, "text": text, "verdict": verdict}


def test_all_students_are_there_with_their_scores_stage_and_cost(log: Log, settings: Settings) -> None:
    assert students(log, settings) == []
    bundle = sealed(settings, [line("a", "billing", 1.0)])
    known(log, bundle.id, bundle=str(bundle.path))
    known(log, "student-gone")
    unregistered = sealed(settings, weights="other", kind="head", holdout=None, threshold=None)
    charge(log, "training", 0.5, 0.25, "hour", task=TASK, model=bundle.id)
    found = {one.id: one for one in students(log, settings)}
    one = found[bundle.id]
    assert (one.task, one.kind, one.stage, one.base, one.rank) == (TASK, "adapter", "retired", "smol", 16)
    assert (one.score, one.base_score, one.majority, one.coverage) == (0.9, 0.25, 0.5, 0.75)
    assert (one.usd, one.hours, one.snapshot, one.broken) == (0.5, 0.25, 3, "")
    assert one.size is not None
    assert one.size > 100
    other = found[unregistered.id]
    assert (other.stage, other.kind, other.rank, other.score, other.usd) == ("", "head", None, None, None)
    gone = found["student-gone"]
    assert (gone.stage, gone.size) == ("shadow", None)
    assert "cannot be read" in gone.broken


def test_a_changed_manifest_is_told_and_hides_no_other(log: Log, settings: Settings) -> None:
    bundle, other = sealed(settings), sealed(settings, weights="other")
    (bundle.path / "manifest.json").write_text('{"id": "x", "manifest": {}, "sha256": "y"}')
    found = {one.id: one for one in students(log, settings)}
    assert "was changed" in found[bundle.id].broken
    assert found[other.id].broken == ""
    told = detail(log, settings, bundle.id)
    assert (told.origin, told.files, told.manifest) == (None, (), {})


def test_one_student_with_where_it_comes_from(log: Log, settings: Settings) -> None:
    learned = insert(log, ["a", "b", "c"])
    bundle = sealed(settings, [line("gone", "x", 0.0)], learned, losses=[2.0, 1.0, 0.5])
    with telling(settings.courses, TASK, lambda *_: None) as course:
        course("training", 1, 1, 2.0, 9)
        course.write(student=bundle.id)
    candidate = known(log, bundle.id, bundle=str(bundle.path))
    judged(log, candidate, [1.0], answer="x", latency_ms=20.0)
    judged(log, candidate, [1.0], answer="x", latency_ms=40.0)
    found = detail(log, settings, bundle.id)
    assert found.origin is not None
    origin = found.origin
    assert (origin.learned, origin.judged, origin.held, origin.parent, origin.inherited) == (3, 1, 3, None, 0)
    assert origin.until == "2026-11-20T00:00:00+00:00"
    assert origin.first is not None
    assert {file.name: file.size for file in found.files}["weights.bin"] == 1
    assert all(len(file.sha256) == 64 for file in found.files)
    assert found.leaks is not None
    assert (found.leaks["clean"], found.doubted) == (True, None)
    assert found.losses == ((1, 2.0), (2, 1.0), (3, 0.5))
    assert found.course is not None
    assert (found.course.points[0].loss, found.speed) == (2.0, (2, 30.0, pytest.approx(39.0)))


@pytest.mark.parametrize("name", ["", "..", "student-9", "../log", "making"])
def test_only_students_can_be_asked_for(log: Log, settings: Settings, name: str) -> None:
    sealed(settings)
    with pytest.raises(BadInput, match="there is no student"):
        detail(log, settings, name)


def test_two_students_side_by_side(log: Log, settings: Settings) -> None:
    ids = insert(log, ["please where is my order and is it the one", "x"])
    one = sealed(settings, [line(ids[0], "billing", 1.0), line(ids[1], "shipping", 0.0), line("z", "billing", 1.0)])
    other = sealed(
        settings, [line(ids[0], "billing now", 0.5), line(ids[1], "billing", 1.0)], weights="v",
        settings={"rank": 32, "epochs": 3, "seed": 1},
    )  # fmt: skip
    found = beside(log, settings, one.id, other.id)
    assert found.settings == (("rank", 16, 32), ("seed", None, 1))
    assert (found.both, found.differing) == (2, 2)
    assert found.parts[0] == Part("all", "", 2, 0.5, 0.75)
    assert Part("language", "English", 1, 1.0, 0.5) in found.parts
    assert [(one.exchange, one.one.text, one.other.text) for one in found.apart] == [
        (ids[1], "shipping", "billing"), (ids[0], "billing", "billing now"),
    ]  # fmt: skip
    assert found.apart[1].difference.pieces[-1].text == " now"


def test_what_was_said_in_shadow_counts_too(log: Log, settings: Settings) -> None:
    ids = insert(log, [str(number) for number in range(EXAMPLES + 5)])
    one, other = sealed(settings), sealed(settings, weights="v")
    for bundle, verdict in ((one, 1.0), (other, 0.0)):
        candidate = known(log, bundle.id, bundle=str(bundle.path))
        for exchange in ids:
            judged(log, candidate, [verdict], exchange=exchange, answer=f"said by {bundle.id}")
    found = beside(log, settings, one.id, other.id)
    assert (found.both, found.differing, len(found.apart)) == (len(ids), len(ids), EXAMPLES)
    assert (found.parts[0].one, found.parts[0].other) == (1.0, 0.0)
    assert found.apart[0].one.teacher == "billing"
    assert beside(log, settings, one.id, one.id).differing == 0


@given(st.lists(st.floats(0, 9), max_size=300), st.integers(2, 40))
def test_a_long_curve_keeps_its_ends_and_extremes(values: list[float], most: int) -> None:
    points = list(enumerate(values, 1))
    found = thinned(points, most)
    assert len(found) <= most + 2
    assert list(found) == sorted(set(found))
    assert set(found) <= set(points)
    if points:
        assert (found[0], found[-1]) == (points[0], points[-1])
        assert {min(v for _, v in found), max(v for _, v in found)} == {min(values), max(values)}
