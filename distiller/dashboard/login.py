"""Owns logging in and out with the tokens of the admin port. Must not know what a role may do.

The cookie also comes along with links from other sites, such as those of a notification: what changes anything is a
form of ours with its token, which the guard asks for, so that no other site can make use of it.
"""

import hmac
import math
import re

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from distiller.dashboard.desk import Desk, form_of, tell
from distiller.dashboard.failures import Failures
from distiller.dashboard.guard import COOKIE
from distiller.dashboard.sessions import HOURS, NOBODY, OPERATOR, VIEWER, Session
from proxy.admin import Tokens

HOME = "/ui/"


def login_router(desk: Desk, tokens: Tokens) -> APIRouter:
    """Without an operator's token nobody has to log in."""
    router, failures = APIRouter(), Failures()

    @router.get("/login")
    def login(request: Request, next: str = HOME) -> Response:
        known: Session | None = request.state.session
        if known is not None and known.role != NOBODY:
            return RedirectResponse(_ours(next), 303)
        session = known or desk.sessions.start(NOBODY)
        request.state.session = session
        answer = desk.page(request, "login.html", next=_ours(next), problem="")
        return _with_cookie(request, answer, desk.sessions.cookie(session))

    @router.post("/login")
    def enter(request: Request) -> Response:
        form, address = form_of(request), request.client.host if request.client else ""
        back, wait = _ours(form.get("next", HOME)), failures.wait(address)
        if wait:
            problem = f"too many attempts have failed: try again in {math.ceil(wait)} seconds"
            answer: Response = desk.page(request, "login.html", 429, next=back, problem=problem)
            answer.headers["retry-after"] = str(math.ceil(wait))
            return answer
        role = _role(tokens, form.get("secret", ""))
        if role == NOBODY:
            failures.failed(address)
            return desk.page(request, "login.html", 401, next=back, problem="that token is not known here")
        desk.sessions.end(request.state.session)
        tell(request, role)
        return _with_cookie(request, RedirectResponse(back, 303), desk.sessions.cookie(desk.sessions.start(role)))

    @router.post("/logout")
    def leave(request: Request) -> Response:
        desk.sessions.end(request.state.session)
        answer = RedirectResponse("/ui/login", 303)
        answer.delete_cookie(COOKIE, path="/ui", httponly=True, samesite="lax")
        return answer

    return router


def _role(tokens: Tokens, given: str) -> str:
    """Both tokens are always compared, so that time tells nothing."""
    known = given.encode("utf-8", "surrogatepass")
    operator = hmac.compare_digest(tokens.operator.encode(), known) and bool(tokens.operator)
    viewer = hmac.compare_digest(tokens.viewer.encode(), known) and bool(tokens.viewer)
    return OPERATOR if operator else VIEWER if viewer else NOBODY


def _with_cookie(request: Request, answer: Response, cookie: str) -> Response:
    answer.set_cookie(
        COOKIE, cookie, max_age=int(HOURS * 3600), path="/ui", httponly=True, samesite="lax",
        secure=_is_encrypted(request),
    )  # fmt: skip
    return answer


def _ours(address: str) -> str:
    """A page of the dashboard; what might lead elsewhere leads to the first one."""
    return address if re.fullmatch(r"/ui/(?!.*\.\./)[^\\\s]*", address) else HOME


def _is_encrypted(request: Request) -> bool:
    """Whether the browser came by https; behind a proxy that speaks it for us, only a form's origin tells."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
