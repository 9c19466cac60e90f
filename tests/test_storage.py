"""Traffic does not depend on storage, and stopping does not cut it off: real processes, real damage, real signals."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.log import open_log
from proxy.settings import LogSettings
from tests.deployment import PROGRAM, ROOT, up
from tests.logs import migrated
from tests.proxy.test_spool import small_disk
from tests.servers import eventually, free_port, serving

CHUNK = b'data: {"model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
PAUSES = 100
ASKED = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


def streaming(pauses: int) -> Any:
    """A teacher that takes some seconds for a stream, if there are many pauses in it."""

    async def teacher(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(pauses):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return teacher


@contextmanager
def served(folder: Path, pauses: int = PAUSES) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`stillroom serve` over such a teacher; the process and the URL of its proxy."""
    port, config = free_port(), folder / "stillroom.toml"
    with serving(streaming(pauses)) as teacher:
        config.write_text(
            f'home = "home"\n[teacher]\nurl = "{teacher.removesuffix("/v1")}"\n[proxy]\nport = {port}\n'
            f"[admin]\nport = {free_port()}\n[spool]\nrotate_seconds = 0.2\n[serving]\nport = 1\n"
        )
        with (folder / "serve.log").open("w") as out:
            process = subprocess.Popen([*PROGRAM, "serve", "--config", str(config)], cwd=ROOT, stdout=out, stderr=out)
        try:
            eventually(lambda: up(f"http://127.0.0.1:{port}/healthz"), 60)
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def recorded(folder: Path) -> list[dict[str, Any]]:
    """All that is in the spool, ingested or not."""
    files = [path for path in (folder / "home" / "spool").rglob("*") if path.suffix in (".open", ".ndjson")]
    return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]


def refused(url: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=1):
            return False
    except ConnectionRefusedError:
        return True


def test_a_stream_under_way_ends_whole_and_recorded_after_sigterm(tmp_path: Path) -> None:
    with served(tmp_path) as (process, url):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=ASKED, timeout=60) as answer:
            pieces = answer.iter_raw()
            body = next(pieces)
            process.send_signal(signal.SIGTERM)
            body += b"".join(pieces)
        assert body == CHUNK * PAUSES + b"data: [DONE]\n\n"
        assert process.wait(60) == 0
        assert refused(url)
    (record,) = recorded(tmp_path)
    assert (record["status"], record["partial"], record["error"]) == (200, False, None)
    assert record["id"] == answer.headers["x-stillroom-exchange"]


def test_no_connection_is_taken_while_a_stream_drains(tmp_path: Path) -> None:
    with (
        served(tmp_path) as (process, url),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=ASKED, timeout=60) as answer,
    ):
        pieces = answer.iter_raw()
        next(pieces)
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: refused(url))
        assert recorded(tmp_path) == []  # The stream is still under way.
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("damage", ["garbage", "newer", "a folder"])
def test_traffic_flows_whatever_the_log_is_like(tmp_path: Path, damage: str) -> None:
    home, catalog = tmp_path / "home", tmp_path / "home" / "log" / "catalog.sqlite"
    log = migrated(home)
    if damage == "newer":
        log.query("INSERT INTO migrations VALUES (999, now())")
    log.close()
    if damage == "garbage":
        catalog.write_bytes(os.urandom(1 << 16))
    if damage == "a folder":
        catalog.unlink()
        (catalog / "folder").mkdir(parents=True)
    said = {"garbage": "so a new log begins", "newer": "update Stillroom", "a folder": "cannot be looked at"}
    with served(tmp_path) as (_, url):
        answer = httpx.post(f"{url}/v1/chat/completions", json=ASKED, timeout=60)
        assert answer.content.endswith(b"data: [DONE]\n\n")
        assert eventually(lambda: said[damage] in (tmp_path / "serve.log").read_text(), 60)
        if damage == "garbage":
            assert eventually(lambda: list((home / "spool" / "ingested").glob("*.ndjson")), 60)
    assert [record["id"] for record in recorded(tmp_path)] == [answer.headers["x-stillroom-exchange"]]
    if damage == "garbage":
        rows = open_log(LogSettings(), home, read_only=True).query("SELECT id FROM exchanges")
        assert rows == [(answer.headers["x-stillroom-exchange"],)]


def test_a_start_on_a_disk_that_is_full_by_now_serves_and_records_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "home", "24m") as home:
        with served(tmp_path, pauses=1) as (_, url):
            assert httpx.post(f"{url}/v1/chat/completions", json=ASKED, timeout=60).status_code == 200
        before, ballast = len(recorded(tmp_path)), home / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        with served(tmp_path, pauses=1) as (process, url):
            for _ in range(20):
                assert httpx.post(f"{url}/v1/chat/completions", json=ASKED, timeout=60).status_code == 200
            assert len(recorded(tmp_path)) == before
            ballast.unlink()
            ids = set()

            def kept() -> bool:
                ids.add(httpx.post(f"{url}/v1/chat/completions", json=ASKED).headers["x-stillroom-exchange"])
                return len(recorded(tmp_path)) > before

            eventually(kept, 60)
            assert process.poll() is None
        assert len({record["id"] for record in recorded(tmp_path)} & ids) == len(recorded(tmp_path)) - before
        assert not re.search(r"worker 1 ended", (tmp_path / "serve.log").read_text())
