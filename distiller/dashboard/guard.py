"""Owns who gets in: every request to the dashboard comes through here, and what no rule allows is refused.

GET and HEAD are for viewers and operators and change nothing. POST is for operators, carries the session's token from
the form, comes from our own pages, and is recorded as an action before it is answered. The rest is refused, so that no
page can forget to ask. Must not know what the pages do.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distiller.dashboard.sessions import NOBODY, OPERATOR, VIEWER, Session, Sessions
from proxy.admin import LOOPBACK

_log = logging.getLogger("stillroom.dashboard")

COOKIE = "stillroom_session"
LOGIN, LOGOUT, STATIC, EVENTS = "/login", "/logout", "/static/", "/events"
KEPT = "public, max-age=31536000, immutable"  # An address with a version is another one when its content is.
LARGEST_FORM, LARGEST_LOGIN = 1 << 20, 1 << 12
AT_ONCE = 24  # requests inside; each may hold one of 40 threads, of which scrapes need one too
_MOST_FIELDS = 200
_LONGEST_ADDRESS = 1000  # characters that a login leads back to: they have to fit into its form
HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # With "no-referrer" browsers would not say where a form comes from.
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Deed:
    """One action for the record; `detail` is what the page says of it, `outcome` "done", or what kept it from that."""

    who: str
    role: str
    action: str
    target: str
    detail: str
    outcome: str


class Guard:
    """Around the whole dashboard. Without a token everybody who reaches the port is an operator, as the port is local.

    `record` keeps a deed and may take its time; `refuse` makes the answer that says why not.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        record: Callable[[Deed], None],
        refuse: Callable[[int, str], Response],
        without_token: bool,
    ) -> None:
        """Let in who `sessions` knows."""
        self._app, self._sessions, self._record, self._refuse = app, sessions, record, refuse
        self._everybody = Session("local", OPERATOR, float("inf")) if without_token else None
        self._room = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or have it answered."""
        if scope["type"] != "http":  # Nobody starts a websocket or a lifespan here.
            return
        headers, path = Headers(scope=scope), scope["path"].removeprefix(scope.get("root_path", ""))
        session = self._everybody or self._known(headers)
        keep = path.startswith(STATIC)
        sending = _with_headers(
            send, "" if not keep else KEPT if scope["query_string"].startswith(b"v=") else "no-cache"
        )
        refusal = self._refusal(scope, path, headers, session)
        form: Mapping[str, str] = {}
        if refusal is None and scope["method"] == "POST":
            content = await _body(headers, receive, LARGEST_LOGIN if path == LOGIN else LARGEST_FORM)
            form = {} if content is None else _fields(content)
            refusal = self._unproved(session, content, form)
        if refusal is not None:
            await refusal(scope, receive, sending)
            return
        scope.setdefault("state", {}).update(session=session, form=form, told=("", ""))
        if scope["method"] == "POST":
            sending = self._recording(scope, path, session, sending)
        # What waits for a change, or for a file, takes no thread for long.
        async with contextlib.nullcontext() if keep or path == EVENTS else self._room:
            await self._app(scope, receive, sending)

    def _known(self, headers: Headers) -> Session | None:
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        return self._sessions.read(cookie) if cookie else None

    def _refusal(self, scope: Scope, path: str, headers: Headers, session: Session | None) -> Response | None:
        """Why not, by what can be seen before the body."""
        if self._everybody and not _this_machine(headers.get("host", "")):
            return self._refuse(403, "without an admin token this port answers to localhost and 127.0.0.1 only")
        role = session.role if session else NOBODY
        if scope["method"] in ("GET", "HEAD"):
            if role in (VIEWER, OPERATOR) or path == LOGIN or path.startswith(STATIC):
                return None
            return _to_login(path, scope["query_string"].decode("latin-1"), headers)
        if scope["method"] != "POST":
            return self._refuse(405, "the dashboard takes GET and POST only")
        if _foreign(headers):
            return self._refuse(403, "this form was sent from another site, so nothing was done")
        if session is None:
            return self._refuse(403, "the session has ended: log in again, then repeat it")
        if path != LOGIN and role != OPERATOR and not (path == LOGOUT and role == VIEWER):
            return self._refuse(403, "a viewer may look and change nothing: log in with the operator's token")
        return None

    def _unproved(self, session: Session | None, content: bytes | None, form: Mapping[str, str]) -> Response | None:
        """Why not, by the form's token."""
        if content is None:
            return self._refuse(413, "that form is too large")
        if session is None or not self._sessions.carries(session, form.get("token", "")):
            return self._refuse(403, "this page is out of date, so nothing was done: load it again, then repeat it")
        return None

    def _recording(self, scope: Scope, path: str, session: Session | None, send: Send) -> Send:
        """Record the deed before its answer goes out. Of logins only those that succeed: others come from anybody."""

        async def recording(message: Message) -> None:
            status = message.get("status", 0)
            if message["type"] == "http.response.start" and (path != LOGIN or status == 303):
                target, detail = scope["state"]["told"]
                outcome = "done" if status < 400 else f"refused ({status})" if status < 500 else f"failed ({status})"
                who = scope["client"][0] if scope.get("client") else ""
                role = session.role if session else NOBODY
                deed = Deed(who, role, path.strip("/"), target, detail, outcome)
                await asyncio.to_thread(self._record, deed)
            await send(message)

        return recording


def _this_machine(host: str) -> bool:
    """Whether a Host header names it; another site's name may lead here too, and a browser says whose page it shows."""
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:
        return False


def _foreign(headers: Headers) -> bool:
    """Whether a browser says that a request does not come from our own pages."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    host = origin.partition("://")[2] if origin is not None else headers.get("host", "")
    return site not in ("same-origin", "none") or host != headers.get("host", "")


def _to_login(path: str, query: str, headers: Headers) -> Response:
    if headers.get("hx-request"):  # A part of a page that is open: the whole of it is to come here.
        return Response(status_code=204, headers={"hx-refresh": "true"})
    page = quote(f"/ui{path}")
    whole = f"{page}?{query}" if query else page
    return RedirectResponse(f"/ui/login?next={quote(whole if len(whole) <= _LONGEST_ADDRESS else page)}", 303)


def _with_headers(send: Send, keep: str) -> Send:
    """`keep` is how browsers may keep the answer; "": not at all."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers["cache-control"] = keep if keep and message["status"] < 400 else "no-store"
        await send(message)

    return sending


async def _body(headers: Headers, receive: Receive, largest: int) -> bytes | None:
    """The whole body of a form, or None where it is too large; of anything else nothing is read."""
    if headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        return b""
    parts, size, more = [], 0, True
    while more:
        message: dict[str, Any] = dict(await receive())
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > largest:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _fields(content: bytes) -> Mapping[str, str]:
    """A form's fields, the last of each name; none at all of a form that cannot be read."""
    try:
        return dict(parse_qsl(content.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        return {}
