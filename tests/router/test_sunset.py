import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from proxy.log import Log
from proxy.replay import create_replay
from proxy.settings import SunsetSettings
from proxy.teachers import Teachers
from router.registry import LIVE, SHADOW
from router.shadow import audit, waiting
from router.sunset import Ended, Sunset, in_words, sunsets
from tests.router.conftest import Engine, add_rows, insert, judged, known
from tests.router.test_shadow import RECORDED, compared, teacher_at, verdicts
from tests.servers import serving

NOW = datetime(2026, 3, 19, 12, tzinfo=UTC)
LATER = datetime(2027, 1, 1, tzinfo=UTC)
MIDDLE = "2026-01-02T00:00:00+00:00"
GONE = json.dumps({"error": {"message": "no such model", "code": "model_not_found"}})


def missing(log: Log, count: int, minute: int = 0, response: str = GONE, **columns: str) -> None:
    """Clients' requests that the teacher answered with a 404."""
    when = NOW + timedelta(minutes=minute)
    insert(log, ["?"] * count, answer=None, status=404, finish_reason=None, response=response, ts=when, **columns)


def answering(log: Log, minute: int, **columns: str) -> list[str]:
    return insert(log, ["?"], ts=NOW + timedelta(minutes=minute), **columns)


def found(log: Log, *declared: SunsetSettings, now: datetime = NOW) -> list[Sunset]:
    return sunsets(log, declared, now)


def test_the_day_that_was_set_comes_at_its_start(log: Log) -> None:
    declared = SunsetSettings("gpt-4o", date(2026, 3, 31), "gpt-5")
    day = datetime(2026, 3, 31, tzinfo=UTC)
    assert found(log, declared, SunsetSettings("gpt-4")) == [Sunset("gpt-4o", day, False, "gpt-5", 0)]
    assert not found(log, declared, now=day - timedelta(seconds=1))[0].come
    assert found(log, declared, now=day)[0].come


def test_a_model_that_answered_and_then_is_missed_three_times_in_a_row_has_ended(log: Log) -> None:
    answering(log, -5)
    missing(log, 2)
    assert found(log) == []
    missing(log, 1, 3)
    assert found(log) == [Sunset("gpt-4o", NOW, True, "", 3)]
    declared = SunsetSettings("gpt-4o", date(2026, 12, 31), "gpt-5")
    assert found(log, declared) == [Sunset("gpt-4o", NOW, True, "gpt-5", 3)]
    answering(log, 4)
    assert found(log) == []
    missing(log, 2, 5)
    assert found(log) == []


def test_nothing_else_is_an_end(log: Log) -> None:
    missing(log, 9, model="gpt-typo")  # Never answered.
    answering(log, -5)
    missing(log, 9, response="<h1>Not Found</h1>")
    insert(log, ["?"] * 9, answer=None, status=500, response=GONE, ts=NOW)
    assert found(log) == []


def test_a_named_teachers_models_are_its_own(log: Log) -> None:
    answering(log, -5)
    missing(log, 3, teacher="german")
    assert found(log) == []
    missing(log, 3, 1)
    answering(log, 5, teacher="german")
    assert [one.model for one in found(log)] == ["gpt-4o"]


def test_another_models_answers_say_nothing_of_it(log: Log) -> None:
    answering(log, -5)
    missing(log, 3)
    answering(log, 1, model="gpt-5")
    answering(log, 1, served_by="student-1")
    assert [one.model for one in found(log)] == ["gpt-4o"]


def test_audits_tell_too_where_a_candidate_answers_everything(log: Log) -> None:
    candidate = known(log)
    served = insert(log, ["?"] * 4, served_by=candidate.id)
    for exchange in served[:3]:
        judged(log, candidate, [0.0], kind="audit", covered=False, error="the teacher answered 410", exchange=exchange)
    assert [(one.model, one.missed) for one in found(log)] == [("gpt-4o", 3)]
    judged(log, candidate, [1.0], kind="audit", exchange=served[3])
    assert found(log) == []


def test_a_request_that_its_successor_answered_tells_only_where_the_model_was_asked_first(log: Log) -> None:
    answering(log, -5)
    for minute in range(9):
        answering(log, minute, model="gpt-5", reason="successor gpt-5 for gpt-4o; no candidate")
    assert found(log) == []
    for minute in range(3):
        answering(log, minute, model="gpt-5", reason="successor gpt-5 for missing gpt-4o; no candidate")
    assert [(one.model, one.missed) for one in found(log)] == [("gpt-4o", 3)]


def test_what_has_ended_is_looked_for_again_when_the_log_changes(log: Log) -> None:
    ended = Ended(log, [SunsetSettings("gpt-3", date(2020, 1, 1)), SunsetSettings("gpt-9", date(2999, 1, 1))])
    assert set(ended.now()) == {"gpt-3"}
    answering(log, -5)
    missing(log, 3)
    assert set(ended.now()) == {"gpt-3", "gpt-4o"}


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (
            Sunset("m", NOW + timedelta(days=12), False, "n", 0),
            "m shuts down in 12 days, on 2026-03-31: then n is asked",
        ),
        (Sunset("m", NOW + timedelta(days=1), False, "", 0), "in 1 day, on 2026-03-20: then no successor is named"),
        (Sunset("m", NOW, True, "n", 0), "m has ended, on 2026-03-19: golden sets take the place of its audits; n is"),
        (Sunset("m", NOW, True, "n", 3), "3 requests in a row found no such model since 2026-03-19 12:00"),
        (Sunset("m", NOW, True, "n", 3), "golden sets take the place of its audits; n is asked in its place"),
        (Sunset("m", NOW, True, "", 3), "golden sets take the place of its audits; no successor is named"),
    ],
)
def test_it_is_told_in_words(one: Sunset, words: str) -> None:
    assert words in in_words(one, NOW)


def test_rows_without_a_model_are_no_trouble(log: Log) -> None:
    rows = [{"id": str(n), "ts": NOW, "path": "/v1/files", "served_by": "teacher", "status": 404} for n in range(5)]
    add_rows(log, "exchanges", rows)
    assert found(log) == []


@pytest.mark.usefixtures("ingest")
async def test_nothing_of_a_model_that_has_ended_is_audited(log: Log) -> None:
    candidate = known(log)
    insert(log, ["mine?"], served_by=candidate.id)
    (other,), (unnamed,) = (insert(log, ["mine?"], served_by=candidate.id, model=model) for model in ("gpt-5", None))
    with serving(create_replay(RECORDED)) as url:
        async with teacher_at(url) as teacher:
            assert await audit(log, Teachers(teacher), candidate, 1.0, 100, ended=["gpt-4o"]) == 2
    assert set(verdicts(log)) == {other, unnamed}


@pytest.mark.parametrize("stage", [SHADOW, LIVE])
async def test_a_successors_answers_are_no_measure_of_who_never_saw_one(log: Log, engine: Engine, stage: str) -> None:
    first, later = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)
    reason = "successor gpt-5 for gpt-4o; live: held back"
    insert(log, ["a"], reason=reason, ts=first)
    (new,) = insert(log, ["b"], reason=reason, ts=later)
    older, younger = known(log), known(log, "student-2", card=known(log, "student-0").card | {"data_until": MIDDLE})
    older, younger = replace(older, stage=stage), replace(younger, stage=stage)
    assert await compared(log, engine, older) == waiting(log, older) == 0
    assert waiting(log, younger) == 1
    assert await compared(log, engine, younger) == 1
    assert set(verdicts(log)) == {new}
