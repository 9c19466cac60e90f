import json
from datetime import UTC, datetime

from distiller.notice import LASTING, TEST, Notice, trial
from distiller.schedule_settings import EVENTS

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_it_is_the_same_for_machines() -> None:
    notice = Notice("rollback", "01", "The teacher answers", NOW, {"task": "a"})
    assert json.loads(notice.body()) == {
        "event": "rollback", "key": "01", "at": "2026-03-01T00:00:00+00:00", "text": "The teacher answers",
        "facts": {"task": "a"},
    }  # fmt: skip


def test_a_trial_is_no_event() -> None:
    assert trial(NOW).event == TEST
    assert TEST not in EVENTS


def test_what_lasts_is_an_event() -> None:
    assert set(LASTING) < set(EVENTS)
