"""Nothing is lost and nothing doubled while processes are killed under load."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.traffic_file import Row
from tests.deployment import Deployment, deployed
from tests.servers import eventually

SETTINGS = "[proxy]\nworkers = 2\n[spool]\nrotate_seconds = 0.2\n[serving]\nport = 1\n"
REQUESTS, CONCURRENCY = 2000, 32


def row(number: int) -> Row:
    messages = ({"role": "system", "content": "Count."}, {"role": "user", "content": f"number {number}"})
    return Row(messages, f"answer {number} " * 20, None, "gpt-4o", None)


ROWS = [row(number) for number in range(REQUESTS)]


async def storm(url: str, killed: dict[int, Any]) -> tuple[set[str], int]:
    """Ask everything once, killing on the way; returns ids of exchanges whose last byte arrived, and failures."""
    whole: set[str] = set()
    failed = 0
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(client: httpx.AsyncClient, number: int) -> None:
        nonlocal failed
        async with gate:
            if number in killed:
                await asyncio.to_thread(killed[number])
            stream = number % 2 == 1
            payload = {"model": "gpt-4o", "messages": list(ROWS[number].messages), "stream": stream}
            try:
                async with client.stream("POST", f"{url}/chat/completions", json=payload) as response:
                    body = b"".join([part async for part in response.aiter_bytes()])
            except httpx.TransportError:
                failed += 1
                return
            assert response.status_code == 200
            assert body.endswith(b"data: [DONE]\n\n" if stream else b"}")
            whole.add(response.headers["x-stillroom-exchange"])

    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(one(client, number) for number in range(REQUESTS)))
    return whole, failed


def kill(deployment: Deployment, name: str) -> None:
    """Kill one; after the last kill its successor may still be on the way."""
    os.kill(eventually(lambda: deployment.children(name), 60)[0], signal.SIGKILL)


def logged(deployment: Deployment, ids: set[str]) -> list[str]:
    """Ids in the log, once everything the client saw has arrived there."""

    def arrived() -> list[str] | None:
        rows = [found["id"] for found in deployment.json("sql", "select id from exchanges where path like '%chat%'")]
        return rows if ids <= set(rows) else None

    found: list[str] = eventually(arrived, 60)
    return found


@pytest.mark.timeout(300)
def test_a_killed_controller_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with deployed(tmp_path, ROWS, SETTINGS) as deployment:
        kills = {number: lambda: kill(deployment, "controller") for number in (300, 900, 1500)}
        whole, failed = asyncio.run(storm(deployment.url, kills))
        found = logged(deployment, whole)
    assert failed == 0
    assert len(whole) == len(found) == len(set(found)) == REQUESTS


@pytest.mark.timeout(300)
def test_a_killed_worker_loses_no_exchange_a_client_saw_whole(tmp_path: Path) -> None:
    with deployed(tmp_path, ROWS, SETTINGS) as deployment:
        kills = {number: lambda: kill(deployment, "worker") for number in (400, 1200)}
        whole, failed = asyncio.run(storm(deployment.url, kills))
        found = logged(deployment, whole)
    assert len(found) == len(set(found))
    assert whole <= set(found)
    assert 0 < len(whole) == REQUESTS - failed
    assert failed <= 4 * CONCURRENCY
