"""Owns the admin port: `/metrics` for Prometheus, `/healthz` and `/readyz`, for operators and never on the public port.

Must not know what is counted: workers write their counters into a shared folder, here they are added up and joined by
the controller's own. Whoever may reach the port from another machine must show a token. What is mounted beside them,
such as the dashboard, is handed in whole and decides by itself whom it answers.
"""

import asyncio
import hmac
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import PlainTextResponse, RedirectResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.errors import BadInput
from proxy.settings import AdminSettings
from proxy.vitals import Vitals

LOOPBACK = ("127.0.0.1", "::1", "localhost")
GRACE_SECONDS = 5  # for answers that are under way when the process ends
_OPEN = ("/healthz", "/readyz")  # Probes bring no token, and without one learn no more than a word.


@dataclass(frozen=True, slots=True)
class Tokens:
    """Who shows which is what; "" is nobody's. Without an operator's, whoever reaches the port is the operator."""

    operator: str = ""
    viewer: str = ""


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


def create_admin(
    settings: AdminSettings, metrics: Path, vitals: Vitals, mounted: Mapping[str, ASGIApp] = MappingProxyType({})
) -> FastAPI:
    """Build the app; `metrics` is the workers' PROMETHEUS_MULTIPROC_DIR. BadInput where the token is missing.

    `mounted` are whole applications by their path, the first of which `/` leads to; no token is asked for them here.
    """
    token = admin_tokens(settings).operator
    refused: dict[int | str, dict[str, Any]] = {
        401: {"description": "The token is missing or wrong", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
    scheme = [Security(HTTPBearer(auto_error=False))] if token else []
    app = FastAPI(title="Stillroom admin", openapi_url="/openapi.json", docs_url=None, redoc_url=None)

    app.add_middleware(_Bearer, token=token, beside=tuple(mounted))

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

    for path, beside in mounted.items():
        app.add_route(path, _leads_to(path), include_in_schema=False)
        app.mount(path, beside)
    if mounted:
        app.add_route("/", _leads_to(next(iter(mounted))), include_in_schema=False)
    return app


def _leads_to(path: str) -> Callable[[Request], Response]:
    """To what is mounted there, by its path alone: the scheme is not known behind a proxy that speaks TLS."""
    return lambda _: RedirectResponse(f"{path}/", 303)


class _Bearer:
    """Asks for the token; of what is `beside`, nothing. Plain ASGI, as streams pass through here."""

    def __init__(self, app: ASGIApp, token: str, beside: tuple[str, ...]) -> None:
        self._app, self._token, self._beside = app, token.encode(), beside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_beside(scope["path"]):
            given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
            known = not self._token or hmac.compare_digest(given.encode(), self._token)
            scope.setdefault("state", {})["known"] = known
            if not known and scope["path"] not in _OPEN:
                why = "the admin token is missing or wrong"
                await PlainTextResponse(why, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_beside(self, path: str) -> bool:
        return any(path == one or path.startswith(f"{one}/") for one in self._beside) or (
            bool(self._beside) and path == "/"
        )


async def serve_admin(app: FastAPI, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until `stop`, in a thread of its own: it takes no signals there, and a scrape delays nobody."""
    config = uvicorn.Config(
        app, log_level="warning", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        proxy_headers=False,  # Anybody on this machine could say that they are somebody else.
    )  # fmt: skip
    server = uvicorn.Server(config)
    serving = asyncio.create_task(asyncio.to_thread(server.run, [listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:  # Also where the rest of the process fails: it could not end while the thread runs.
        stopping.cancel()
        server.should_exit = True
    await serving


def admin_tokens(settings: AdminSettings) -> Tokens:
    """The tokens from the environment, none on loopback without one; BadInput where one is needed and not there."""
    operator, viewer = _token(settings.token_env, "token_env"), _token(settings.viewer_token_env, "viewer_token_env")
    if not operator and settings.host not in LOOPBACK:
        raise BadInput(
            f"admin.host = {settings.host!r} can be reached from elsewhere: name the environment variable of a token "
            "in admin.token_env, or bind to 127.0.0.1"
        )
    if viewer and not operator:
        raise BadInput("admin.viewer_token_env needs admin.token_env: without it everybody is the operator anyway")
    if viewer and viewer == operator:
        raise BadInput("the viewer's admin token is the operator's: give it another one")
    return Tokens(operator, viewer)


def _token(variable: str, key: str) -> str:
    token = os.environ.get(variable, "") if variable else ""
    if variable and not token:
        raise BadInput(f"admin.{key} names {variable}, which is not set: export it")
    return token
