import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Footer, Input, Static

from distiller.frame import Logged, Watcher
from distiller.settings import Settings
from distiller.top import Top
from proxy.settings import AdminSettings
from router.registry import CANARY, move
from tests.distiller.frames import TASKS, frame
from tests.logs import migrated
from tests.router.conftest import TASK, insert, judged, known
from tests.servers import free_port


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    """On a real log with two tasks, the smaller of which has a candidate in canary."""
    log = migrated(tmp_path)
    insert(log, ["a", "b"], ts=datetime.now(UTC) - timedelta(minutes=1), latency_ms=20.0)
    insert(log, ["c"] * 9, task="orders", ts=datetime.now(UTC) - timedelta(minutes=1), latency_ms=90.0)
    candidate = known(log)
    judged(log, candidate, [1.0] * 5)
    move(log, candidate, CANARY, "promoted by the operator", share=0.05)
    log.close()
    watcher = Watcher(Settings(home=str(tmp_path), admin=AdminSettings(port=free_port())))
    yield watcher
    watcher.close()


def top(watcher: Watcher) -> Top:
    return Top(watcher.look, watcher.detail, 60.0)


async def seen(pilot: Pilot[Any]) -> None:
    """Wait for the first look, and until keys go to the list."""
    table = pilot.app.query_one(DataTable)
    while not (table.row_count and table.has_focus):
        await pilot.pause(0.02)


def rows(app: Any) -> list[list[str]]:
    table = app.query_one(DataTable)
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


def text(app: Any, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).content)


async def test_tasks_of_a_real_log_are_listed(watcher: Watcher) -> None:
    async with top(watcher).run_test(size=(85, 30)) as pilot:
        await seen(pilot)
        assert rows(pilot.app) == [
            ["orders", "1.8", "-", "9", "0%", "-", "0"], ["triage", "0.4", "canary 5%", "2", "0%", "-", "0"],
        ]  # fmt: skip
        assert "no controller" in text(pilot.app, "head")
        assert "2.2 exchanges a minute" in text(pilot.app, "figures")
        assert "stillroom serve" in text(pilot.app, "figures")
        await pilot.resize_terminal(45, 20)
        await pilot.pause()
        assert [row[:3] for row in rows(pilot.app)] == rows(pilot.app)


async def test_keys_sort_and_turn_round(watcher: Watcher) -> None:
    async with top(watcher).run_test(size=(85, 30)) as pilot:
        await seen(pilot)
        await pilot.press("r")
        assert [row[0] for row in rows(pilot.app)] == [TASK, "orders"]
        assert "the least first" in text(pilot.app, "caption")
        await pilot.press("r", *"sssss")
        assert "by name" in text(pilot.app, "caption")
        assert [row[0] for row in rows(pilot.app)] == ["orders", TASK]


async def test_a_filter_is_typed_kept_and_cleared(watcher: Watcher) -> None:
    async with top(watcher).run_test(size=(85, 30)) as pilot:
        await seen(pilot)
        await pilot.press("slash", *"ord")  # None of these letters is a key while it is typed.
        assert pilot.app.query_one(Input).has_focus
        assert [row[0] for row in rows(pilot.app)] == ["orders"]
        await pilot.press("enter")
        assert pilot.app.query_one(DataTable).has_focus
        assert "1 of 2 tasks" in text(pilot.app, "caption")
        await pilot.press("escape")
        assert len(rows(pilot.app)) == 2


async def test_the_cursor_stays_with_its_task_and_enter_shows_it(watcher: Watcher) -> None:
    async with top(watcher).run_test(size=(100, 30)) as pilot:
        await seen(pilot)
        await pilot.press("down", "r")
        table = pilot.app.query_one(DataTable)
        assert str(table.get_row_at(table.cursor_row)[0]) == TASK
        await pilot.press("enter")
        while len(pilot.app.screen_stack) == 1:
            await pilot.pause(0.02)
        shown = str(pilot.app.screen.query_one("#detail", Static).content)
        assert "student-1: canary" in shown
        assert "shadow -> canary  promoted by the operator" in shown
        await pilot.press("escape")
        assert len(pilot.app.screen_stack) == 1


async def test_paused_it_looks_no_more_and_says_so() -> None:
    looks: list[datetime] = []

    def look(at: datetime) -> Any:
        looks.append(at)
        return frame(logged=Logged(TASKS))

    async with Top(look, lambda task: "nothing to say of [this]", 0.2).run_test(size=(100, 30)) as pilot:
        await seen(pilot)
        await pilot.press("p")
        async with asyncio.timeout(60):
            before = -1
            while before < len(looks):  # Looks that were under way may still end.
                before = len(looks)
                await pilot.pause(0.6)
        assert "PAUSED" in text(pilot.app, "head")
        await pilot.press("p")
        await more(pilot, looks)


async def more(pilot: Pilot[Any], looks: list[datetime]) -> None:
    """Wait until it has looked twice more, and shown what it saw the first time."""
    before = len(looks)
    while len(looks) < before + 2:
        await pilot.pause(0.05)


async def test_it_goes_on_looking_while_one_task_is_shown() -> None:
    looks: list[datetime] = []

    def look(at: datetime) -> Any:
        looks.append(at)
        return frame(at=at, logged=Logged(TASKS))

    async with Top(look, lambda task: "nothing to say of [this]", 0.2).run_test(size=(100, 30)) as pilot:
        await seen(pilot)
        await pilot.press("enter")
        while len(pilot.app.screen_stack) == 1:
            await pilot.pause(0.05)
        await more(pilot, looks)
        assert str(pilot.app.screen.query_one("#detail", Static).content) == "nothing to say of [this]"
        await pilot.press("escape")
        assert len(rows(pilot.app)) == len(TASKS)


async def test_every_key_is_named_and_q_quits() -> None:
    hostile = replace(TASKS[0], task="[red]x[/nothing]")
    async with Top(lambda at: frame(logged=Logged([hostile])), lambda task: "", 60).run_test(size=(100, 30)) as pilot:
        await seen(pilot)
        assert rows(pilot.app)[0][0] == "[red]x[/nothing]"
        named = {binding.description for _, binding, *_ in pilot.app.screen.active_bindings.values() if binding.show}
        assert named >= {"sort", "reverse", "filter", "pause", "task", "quit"}
        assert pilot.app.query_one(Footer)
        await pilot.press("q")
    assert pilot.app.return_code == 0
