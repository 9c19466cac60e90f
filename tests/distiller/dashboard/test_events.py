import asyncio
from typing import Any

import httpx
import pytest

from distiller.dashboard import events
from distiller.dashboard.events import Changes
from tests.distiller.dashboard.houses import MakeHouse
from tests.servers import eventually, serving


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(events, "_STEP_SECONDS", 0.01)


async def test_what_changes_is_named_and_nothing_else() -> None:
    marks = {"log": 1, "training": 1}
    changes = Changes({"log": lambda: marks["log"], "training": lambda: marks["training"]}, lambda: False)
    stream = changes.stream()
    assert await anext(stream) == ": hello\n\n"
    assert changes.listening == 1
    marks["training"] = 2
    assert await anext(stream) == "event: training\ndata:\n\n"
    marks |= {"log": 2, "training": 3}
    assert await anext(stream) == "event: log\ndata:\n\nevent: training\ndata:\n\n"
    await stream.aclose()
    assert changes.listening == 0


async def test_a_stream_shows_that_it_is_alive_and_ends_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "ALIVE_SECONDS", 0.02)
    closing = False
    stream = Changes({"log": lambda: 1}, lambda: closing).stream()
    assert [await anext(stream), await anext(stream)] == [": hello\n\n", ": still here\n\n"]
    closing = True
    assert [each async for each in stream] == []


async def test_what_cannot_be_told_just_now_has_not_changed() -> None:
    marks: dict[str, object] = {"log": 1, "training": 1}
    stream = Changes({"log": lambda: marks["log"], "training": lambda: marks["training"]}, lambda: False).stream()
    assert await anext(stream) == ": hello\n\n"
    marks |= {"log": None, "training": 2}
    assert await anext(stream) == "event: training\ndata:\n\n"
    marks |= {"log": 1, "training": 3}
    assert await anext(stream) == "event: training\ndata:\n\n"
    marks["log"] = 2
    assert await anext(stream) == "event: log\ndata:\n\n"
    await stream.aclose()


async def test_what_was_said_is_said_again_when_no_page_shows_what_was_before() -> None:
    marks = {"log": 1}
    stream = Changes({"log": lambda: marks["log"]}, lambda: False, (0.05, 0.1)).stream()
    said = [await anext(stream) for _ in range(3)]
    assert said == [": hello\n\n", *["event: log\ndata:\n\n"] * 2]  # What a page showed at first may be old, too.
    marks["log"], began = 2, asyncio.get_running_loop().time()
    assert [await anext(stream) for _ in range(3)] == ["event: log\ndata:\n\n"] * 3
    assert asyncio.get_running_loop().time() - began >= 0.1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.3)


async def test_however_many_listen_it_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 1000.0)
    looked: list[int] = []
    changes = Changes({"log": lambda: looked.append(1)}, lambda: False)
    streams = [changes.stream() for _ in range(5)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    assert len(looked) == 1
    for stream in streams:
        await stream.aclose()


def test_a_page_in_a_browser_hears_of_the_log_and_not_more_than_a_few_listen(
    house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_CLIENTS", 1)
    made = house()
    assert made.log is not None
    with serving(made.app) as url:
        address = url.replace("/v1", "/ui/events")
        with httpx.stream("GET", address) as first:
            assert first.headers["content-type"].startswith("text/event-stream")
            assert first.headers["cache-control"] == "no-store"
            lines = first.iter_lines()
            assert next(lines) == ": hello"
            assert httpx.get(address).status_code == 503
            made.log.query("INSERT INTO segments VALUES ('a', 1, now())")
            assert next(line for line in lines if line.startswith("event:")) == "event: log"
        eventually(lambda: _listens(address))  # Who went away makes room.
        with httpx.stream("GET", address) as last:
            made.closing = True
            assert "event: log" not in "".join(last.iter_text())  # It ends by itself.


def _listens(address: str) -> Any:
    with httpx.stream("GET", address) as answer:
        return answer.status_code == 200
