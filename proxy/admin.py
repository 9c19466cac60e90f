"""Owns the admin port: `/metrics` for Prometheus and `/healthz`, for operators and never on the public port.

Must not know what is counted: workers write their counters into a shared folder, here they are added up. Whoever may
reach the port from another machine must show a token.
"""

import asyncio
import hmac
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from proxy.errors import BadInput
from proxy.settings import AdminSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_OPEN = "/healthz"  # says nothing, and load balancers bring no token


def create_admin(settings: AdminSettings, metrics: Path) -> FastAPI:
    """Build the app; `metrics` is the workers' PROMETHEUS_MULTIPROC_DIR. BadInput where the token is missing."""
    token = admin_token(settings)
    app = FastAPI(title="Stillroom admin", openapi_url=None)

    @app.middleware("http")
    async def authorised(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and request.url.path != _OPEN and not hmac.compare_digest(given.encode(), token.encode()):
            return Response("the admin token is missing or wrong", 401, {"www-authenticate": "Bearer"})
        return await answer(request)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def scrape() -> Response:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(metrics))  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def serve_admin(app: FastAPI, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until `stop`, in a thread of its own: it takes no signals there, and a scrape delays nobody."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
    serving = asyncio.create_task(asyncio.to_thread(server.run, [listener]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
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
