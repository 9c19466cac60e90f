import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller import notifier
from distiller.channels import Channel, PartlyTaken
from distiller.notice import Notice
from distiller.notices import by_key
from distiller.notifier import Notifier
from proxy.errors import Unavailable
from proxy.log import Log
from tests.logs import migrated

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LOST = Notice("parity_lost", "01", "The teacher answers", NOW)
DOWN = Notice("student_down", "engine", "An engine is down", NOW)


class Inbox:
    def __init__(self, name: str) -> None:
        self.channel, self.got, self.broken = Channel(name, self.take), list[str](), False

    async def take(self, notice: Notice) -> None:
        if self.broken:
            raise Unavailable("nobody at home")
        self.got.append(notice.event)


class World:
    def __init__(self, log: Log) -> None:
        self.log, self.hook, self.mail = log, Inbox("webhook"), Inbox("mail")
        self.moments, self.states = list[Notice](), list[Notice]()
        self.notifier = self.again()

    def again(self) -> Notifier:
        """As after a restart."""
        return Notifier(
            self.log, [self.hook.channel, self.mail.channel],
            lambda _: (by_key(iter(self.moments), ()), by_key(iter(self.states), ())), lambda: NOW,
        )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    log = migrated(tmp_path)
    yield World(log)
    log.close()


async def test_a_moment_is_told_once_on_every_channel_whoever_restarts(world: World) -> None:
    world.moments = [LOST]
    await world.notifier.step()
    await world.notifier.step()
    await world.again().step()
    world.moments = []
    await world.again().step()
    assert world.hook.got == world.mail.got == ["parity_lost"]


async def test_a_state_is_told_again_when_it_comes_back(world: World) -> None:
    for there in (True, True, False, False, True):
        world.states = [DOWN] if there else []
        await world.again().step()
    assert world.hook.got == ["student_down", "student_down"]
    assert [row[0] for row in world.log.query("SELECT outcome FROM notices WHERE channel = 'mail' ORDER BY id")] == [
        "sent", "cleared", "sent",
    ]  # fmt: skip


async def test_what_a_channel_does_not_take_is_told_there_later_and_on_the_other_now(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.moments, world.mail.broken = [LOST, Notice("rollback", "02", "And again", NOW)], True
    await world.notifier.step()
    assert (world.hook.got, world.mail.got) == (["parity_lost", "rollback"], [])
    assert caplog.text.count("mail did not take a notice of parity_lost") == 1
    world.mail.broken = False
    await world.notifier.step()
    assert world.mail.got == []  # It is left alone for a while.
    monkeypatch.setattr(notifier, "SULK_SECONDS", 0.0)
    fresh = world.again()
    await fresh.step()
    assert world.mail.got == ["parity_lost", "rollback"]
    assert world.hook.got == ["parity_lost", "rollback"]


async def test_one_that_cannot_be_taken_does_not_keep_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "SULK_SECONDS", 0.0)
    got: list[str] = []

    async def take(notice: Notice) -> None:
        if notice.key == "01":
            raise Unavailable("it answered 400")
        got.append(notice.key)

    world.moments = [LOST, Notice("rollback", "02", "And again", NOW)]
    told = Notifier(world.log, [Channel("webhook", take)], lambda _: (by_key(iter(world.moments), ()), {}), lambda: NOW)
    await told.step()
    assert got == []
    await told.step()
    assert got == ["02"]


async def test_who_was_reached_is_not_told_again_because_another_was_not(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[str] = []

    async def take(notice: Notice) -> None:
        got.append(notice.key)
        raise PartlyTaken("1 of the addresses was refused")

    told = Notifier(world.log, [Channel("mail", take)], lambda _: (by_key(iter([LOST]), ()), {}), lambda: NOW)
    await told.step()
    await told.step()
    assert got == ["01"]
    assert "did not reach everybody: 1 of the addresses was refused" in caplog.text


async def test_many_are_told_a_few_at_a_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "MOST", 2)
    world.moments = [Notice("rollback", str(number), "so", NOW) for number in range(5)]
    for told in (2, 4, 5):
        await world.notifier.step()
        assert len(world.hook.got) == told


async def test_stop_does_not_wait_for_a_channel_that_hangs(world: World) -> None:
    hangs = asyncio.Event()

    async def take(notice: Notice) -> None:
        hangs.set()
        await asyncio.sleep(3600)

    stop = asyncio.Event()
    slow = Notifier(world.log, [Channel("webhook", take)], lambda _: (by_key(iter([LOST]), ()), {}), lambda: NOW)
    running = asyncio.create_task(slow.run(stop))
    await asyncio.wait_for(hangs.wait(), 30)
    stop.set()
    await asyncio.wait_for(running, 30)
    assert world.log.query("SELECT count(*) FROM notices") == [(0,)]


async def test_without_a_channel_nobody_looks(world: World) -> None:
    def look(now: datetime) -> tuple[dict[tuple[str, str], Notice], dict[tuple[str, str], Notice]]:
        raise AssertionError

    await asyncio.wait_for(Notifier(world.log, [], look, lambda: NOW).run(asyncio.Event()), 30)
