"""Owns the wiring of one worker: FastAPI app around the relay, spool rotation, clean start and stop.

Must not know how decisions are made, nor where the log is.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from fastapi import FastAPI, Response

from proxy.admitting import Admit, admit_everybody
from proxy.apart import Apart
from proxy.asking import Asking
from proxy.choosing import choosing
from proxy.counters import FLUSH_SECONDS, Counters
from proxy.deciding import Decide, always_teacher
from proxy.keeping import Keeper
from proxy.patterns import SECRETS_ONLY, Redaction
from proxy.receiving import Receive
from proxy.redact import Redactor
from proxy.relay import Relay, RelayOptions, Scope, Send
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.spool import SpoolWriter
from proxy.sunset import Succession
from proxy.teachers import Teachers, connect_teachers
from proxy.translate import close_litellm


class ProxyApp(FastAPI):
    """A FastAPI app whose /v1 paths go straight to the relay, past routing and request models."""

    relay: Relay | None = None
    draining: Callable[[], bool] = staticmethod(lambda: False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay /v1; everything else is ordinary FastAPI."""
        if self.relay is not None and scope["type"] == "http" and _is_relayed(scope["path"]):
            await self.relay(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(
    proxy: ProxySettings,
    teacher: TeacherSettings,
    spool: SpoolSettings,
    spool_folder: Path,
    decide: Decide = always_teacher,
    running: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext,
    redaction: Redaction = SECRETS_ONLY,
    admit: Admit = admit_everybody,
) -> ProxyApp:
    """Build a worker's app; `decide` is asked for every request and must not wait.

    `running` is open while the app serves: what `decide` needs besides.
    """
    counters, choose = Counters(), choosing(teacher)
    redactor = Apart(redaction) if redaction.names else Redactor(redaction)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert isinstance(app, ProxyApp)
        writer = SpoolWriter(spool_folder, spool.rotate_mb << 20, spool.rotate_seconds, spool.min_free_mb << 20)
        teachers = connect_teachers(teacher)
        succession = Succession(teacher.sunsets)
        share = teacher.logprobs_share
        asking = Asking(share, teacher.translate, counters) if share else None
        options = RelayOptions(
            proxy.max_body_mb << 20, proxy.drain_seconds, teacher.stream_usage, succession, asking,
            choose, teachers.named,
        )  # fmt: skip
        keeper = Keeper(writer, redactor, counters)
        await keeper.open()
        app.relay = Relay(teachers.usual, keeper, counters, decide, options, admit)
        rotating = asyncio.create_task(_rotate(writer, spool.rotate_seconds))
        flushing = asyncio.create_task(_flush(counters, teachers))
        try:
            async with running():
                yield
        finally:
            for task in (rotating, flushing):
                task.cancel()
            await keeper.close()
            counters.flush()
            teachers.close()
            if teacher.translate:
                await close_litellm()
            writer.rotate()

    app = ProxyApp(title="Stillroom", lifespan=lifespan, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        """Neither the teacher nor the log matters: with all workers unready, nobody would be helped."""
        ready = app.relay is not None and not app.draining()
        response.status_code = 200 if ready else 503
        return {"status": "ready" if ready else "stopping"}

    return app


def _is_relayed(path: str) -> bool:
    """Whether a decoded path lies under /v1, also once the teacher has resolved its dots."""
    return path.startswith("/v1/") and ".." not in path.split("/")


async def _flush(counters: Counters, teachers: Teachers) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        if health := teachers.health():
            counters.deployments(health)
        counters.flush()


async def _rotate(writer: SpoolWriter, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds / 2)
        writer.rotate_if_old()
