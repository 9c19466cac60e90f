import asyncio
from pathlib import Path

import pytest

from distiller import upkeep
from distiller.settings import Settings
from distiller.upkeep import keep_backups, opened
from proxy.backup import backups
from proxy.errors import BadInput
from proxy.log import Log, catalog_file
from proxy.migrations import MIGRATIONS
from proxy.settings import LogSettings
from tests.logs import migrated
from tests.router.conftest import known


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(upkeep, "LOG_SECONDS", 0.05)
    monkeypatch.setattr(upkeep, "LOOK_SECONDS", 0.05)
    return Settings(home=str(tmp_path))


@pytest.fixture
def log(settings: Settings) -> Log:
    log = migrated(settings.folder)
    return log


async def becomes(check: object) -> None:
    async with asyncio.timeout(20):
        while not check():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_a_log_that_cannot_be_used_yet_is_waited_for(
    log: Log, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    newer = len(MIGRATIONS) + 1
    log.query("INSERT INTO migrations VALUES (?, now())", [newer])
    opening = asyncio.create_task(opened(settings, asyncio.Event()))
    await becomes(lambda: "update Stillroom" in caplog.text)
    await asyncio.sleep(0.2)
    assert not opening.done()
    assert len(caplog.records) == 1  # Said once, however often it is tried.
    log.query("DELETE FROM migrations WHERE number = ?", [newer])
    found = await asyncio.wait_for(opening, 20)
    assert found is not None
    assert found.query("SELECT count(*) FROM exchanges") == [(0,)]
    found.close()


async def test_waiting_for_a_log_ends_with_stop(log: Log, settings: Settings) -> None:
    log.query("INSERT INTO migrations VALUES (?, now())", [len(MIGRATIONS) + 1])
    stop = asyncio.Event()
    opening = asyncio.create_task(opened(settings, stop))
    await asyncio.sleep(0.1)
    stop.set()
    assert await asyncio.wait_for(opening, 20) is None


async def test_settings_that_are_wrong_are_not_waited_for() -> None:
    with pytest.raises(BadInput, match="sqlite: or postgres:"):
        await opened(Settings(log=LogSettings(catalog="mysql:x")), asyncio.Event())


async def test_a_new_candidate_is_soon_in_a_backup(log: Log, settings: Settings) -> None:
    catalog, stop = catalog_file(settings.log, settings.folder), asyncio.Event()
    assert catalog is not None
    keeping = asyncio.create_task(keep_backups(log, settings, stop))
    await becomes(lambda: len(backups(catalog)) == 1)
    await asyncio.sleep(0.3)
    assert len(backups(catalog)) == 1
    known(log)
    await becomes(lambda: len(backups(catalog)) == 2)
    stop.set()
    await asyncio.wait_for(keeping, 20)
