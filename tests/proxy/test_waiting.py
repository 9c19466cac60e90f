import asyncio
import time

from proxy.waiting import pause


async def test_a_pause_lasts_as_long_as_asked() -> None:
    started = time.monotonic()
    await pause(asyncio.Event(), 0.05)
    assert time.monotonic() - started >= 0.05


async def test_a_pause_ends_when_told_to_stop() -> None:
    stop = asyncio.Event()
    waiting = asyncio.create_task(pause(stop, 3600))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    stop.set()
    await waiting
