import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from distiller import chores
from distiller.chores import Damaged, backup, certificates, compaction, retention, wanted_backup, works
from distiller.runs import FAILED, OK, REFUSED, SKIPPED, End, Run
from distiller.schedule_settings import ScheduleSettings
from distiller.settings import Settings
from proxy.backup import backups
from proxy.errors import Unavailable
from proxy.freeing import maintaining
from proxy.log import Log
from proxy.settings import LogSettings
from proxy.spool import Room
from router.lifecycle import advance
from router.settings import RouterSettings
from router.signing import signed
from tests.logs import migrated
from tests.router.conftest import insert, judged, known, now

NOW = datetime.now(UTC)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path), log=LogSettings(keep_days=90))


def test_retention_drops_what_is_too_old_and_compaction_nothing(log: Log, settings: Settings) -> None:
    insert(log, ["old"], ts=NOW - timedelta(days=91))
    fresh = insert(log, ["fresh"], ts=NOW - timedelta(days=89))
    assert compaction(settings, NOW).outcome == OK
    assert len(log.query("SELECT id FROM exchanges")) == 2
    end = retention(settings, NOW)
    assert (end.outcome, end.detail.startswith("1 exchanges were older than 90 days")) == (OK, True)
    assert log.query("SELECT id FROM exchanges") == [(fresh[0],)]
    assert retention(replace(settings, log=LogSettings()), NOW).outcome == SKIPPED


async def test_what_cannot_be_has_failed_and_the_controller_goes_on(log: Log, settings: Settings) -> None:
    work = works(settings, lambda now: "nothing new")
    with maintaining(settings.folder, 0):
        assert (await work["compaction"](run(), "")).outcome == FAILED
    assert await work["prices"](run(), "") == End(OK, "nothing new")


def test_a_backup_is_made_where_there_is_room(log: Log, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    end = backup(settings, NOW)
    assert [path.name for path in backups(settings.folder / "log" / "catalog.sqlite")] == [end.detail]
    assert backup(replace(settings, log=LogSettings(catalog="postgres:x")), NOW).outcome == SKIPPED
    monkeypatch.setattr(Room, "short", lambda room: True)
    assert backup(settings, NOW).outcome == SKIPPED


def test_a_damaged_catalog_ends_the_controller(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(catalog: Path) -> Path:
        raise Unavailable("the log's catalog is damaged")

    monkeypatch.setattr(chores, "back_up", damaged)
    with pytest.raises(Damaged, match="is damaged"):
        asyncio.run(works(settings, lambda now: "")["backup"](run(), ""))


def test_a_backup_is_wanted_for_each_new_stage(log: Log) -> None:
    assert wanted_backup(log, NOW) == []
    known(log)
    (first,) = wanted_backup(log, NOW)
    assert wanted_backup(log, NOW) == [first]
    known(log, "student-2")
    (second,) = wanted_backup(log, NOW)
    assert first.cause != second.cause


def promoted(log: Log, settings: Settings) -> str:
    student = known(log)
    ids = insert(log, [f"question {number}" for number in range(200)])
    judged(log, student, [1.0] * 200)
    for number, exchange in enumerate(ids):
        log.query("UPDATE verdicts SET exchange = ? WHERE exchange = ?", [exchange, f"{number:06}"])
    assert advance(log, student, RouterSettings(), partial(signed, key_file=settings.certificate_key))
    return student.id


def test_a_certificate_in_time_is_not_looked_at_and_an_old_one_has_to_be_borne_out(
    log: Log, settings: Settings
) -> None:
    student = promoted(log, settings)
    assert certificates(settings, NOW) == End(OK, "1 certificates in use, 0 of them old and renewed")
    later = NOW + timedelta(days=91)
    end = certificates(settings, later)
    assert end.outcome == REFUSED
    assert f"the certificate of {student} of triage is older than 90 days, and only 0 of its answers" in end.detail
    judged(log, now(log), [1.0] * 30, first=1000, kind="audit", ts=later - timedelta(days=1))
    assert certificates(settings, later) == End(OK, "1 certificates in use, 1 of them old and renewed")
    log.query("UPDATE verdicts SET verdict = 0.0 WHERE kind = 'shadow' AND verdict = 1.0")
    assert "does not hold" in certificates(settings, later).detail
    never = replace(settings, schedule=ScheduleSettings(certificate_days=0))
    assert certificates(never, later).outcome == SKIPPED


def run() -> Run:
    return Run(
        "01", "compaction", "compaction", None, "cron 1", "", 1, False, NOW, NOW, NOW, None, "started", None, None,
        None, None, None,
    )  # fmt: skip
