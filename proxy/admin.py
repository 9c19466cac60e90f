"""Owns the admin port: `/metrics` for Prometheus, `/healthz` and `/readyz`, for operators and never on the public port.

Must not know what is counted: workers write their counters into a shared folder, here they are added up and joined by
the controller's own. Whoever may reach the port from another machine must show a token.
"""

import asyncio
import hmac
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import BaseModel

from proxy.errors import BadInput
from proxy.settings import AdminSettings
from proxy.vitals import Vitals

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_OPEN = ("/healthz", "/readyz")  # Probes bring no token, and without one learn no more than a word.


class Exposition(Response):
    """Prometheus' text format."""

    media_type = CONTENT_TYPE_LATEST


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """In a word; `detail` only for who may see it."""

    status: Literal["starting", "ready", "degraded"]
    detail: dict[str, Any] | None = None


def create_admin(settings: AdminSettings, metrics: Path, vitals: Vitals) -> FastAPI:
    """Build the app; `metrics` is the workers' PROMETHEUS_MULTIPROC_DIR. BadInput where the token is missing."""
    token = admin_token(settings)
    refused: dict[int | str, dict[str, Any]] = {
        401: {"description": "The token is missing or wrong", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
    scheme = [Security(HTTPBearer(auto_error=False))] if token else []
    app = FastAPI(title="Stillroom admin", openapi_url="/openapi.json", docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def authorised(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        request.state.known = not token or hmac.compare_digest(given.encode(), token.encode())
        if not request.state.known and request.url.path not in _OPEN:
            return PlainTextResponse("the admin token is missing or wrong", 401, {"www-authenticate": "Bearer"})
        return await answer(request)

    @app.get("/healthz")
    async def healthz() -> Health:
        return Health()

    @app.get("/readyz", response_model_exclude_none=True, responses={503: {"model": Readiness}})
    async def readyz(request: Request, response: Response) -> Readiness:
        """503 until a first round has succeeded; afterwards 200, also when something is degraded."""
        report = vitals.report()
        response.status_code = 503 if report["status"] == "starting" else 200
        return Readiness(status=report["status"], detail=report if request.state.known else None)

    @app.get("/metrics", response_class=Exposition, responses=refused if token else {}, dependencies=scheme)
    def scrape() -> Response:
        registry = CollectorRegistry()
        if metrics.is_dir():  # Without workers beside it a controller has only its own.
            MultiProcessCollector(registry, path=str(metrics))  # type: ignore[no-untyped-call]
        registry.register(vitals)
        return Exposition(generate_latest(registry))

    return app


async def serve_admin(app: FastAPI, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until `stop`, in a thread of its own: it takes no signals there, and a scrape delays nobody."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", log_config=None, access_log=False, server_header=False)
    )
    serving = asyncio.create_task(asyncio.to_thread(server.run, [listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:  # Also where the rest of the process fails: it could not end while the thread runs.
        stopping.cancel()
        server.should_exit = True
    await serving


def admin_token(settings: AdminSettings) -> str:
    """The token from the environment, or "" on loopback without one; BadInput where one is needed and not there."""
    token = os.environ.get(settings.token_env, "") if settings.token_env else ""
    if settings.token_env and not token:
        raise BadInput(f"admin.token_env names {settings.token_env}, which is not set: export it")
    if not token and settings.host not in LOOPBACK:
        raise BadInput(
            f"admin.host = {settings.host!r} can be reached from elsewhere: name the environment variable of a token "
            "in admin.token_env, or bind to 127.0.0.1"
        )
    return token
