"""Owns what every page works with: the settings, the log, how a template becomes an answer, who asks.

Must not know any page. Templates escape everything; what is recorded traffic may hold anything.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distiller.command_tools import opened_log
from distiller.dashboard import words
from distiller.dashboard.reading import Readers
from distiller.dashboard.sessions import OPERATOR, Session, Sessions
from distiller.settings import Settings
from proxy.log import Log

HERE = Path(__file__).parent
THEME = "stillroom_theme"
THEMES = ("light", "dark")
NAV = (
    ("/ui/", "Overview"), ("/ui/tasks", "Tasks"), ("/ui/students", "Students"), ("/ui/exchanges", "Exchanges"),
    ("/ui/ledger", "Ledger"), ("/ui/schedule", "Schedule"), ("/ui/settings", "Settings"),
)  # fmt: skip
VENDOR = ("htmx.min.js", "hx-sse.min.js", "chart.umd.min.js")


@dataclass(frozen=True, slots=True)
class Desk:
    """`closing` says whether the process is about to end."""

    settings: Settings
    config: Path | None
    sessions: Sessions
    readers: Readers
    closing: Callable[[], bool]
    templates: Environment = field(default_factory=lambda: environment())

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A whole page; `values` are its template's."""
        session: Session | None = getattr(request.state, "session", None)
        known = {
            "path": request.url.path,
            "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            "role": session.role if session else "",
            "can_leave": session is not None and session.until != math.inf,
            "may_act": session is not None and session.role == OPERATOR,
            "token": self.sessions.form_token(session) if session else "",
            # A part of a page that is fetched again shows no note, so it must not use one up.
            "note": self.sessions.told(session) if session and "hx-request" not in request.headers else "",
            "theme": theme if (theme := request.cookies.get(THEME)) in THEMES else "",
            "now": datetime.now(UTC),
        }
        return HTMLResponse(self.templates.get_template(template).render(known | values), status)

    @contextmanager
    def writing(self) -> Iterator[Log]:
        """The log for one action, opened for it; afterwards no page shows what was before."""
        with closing(opened_log(self.settings)) as log:
            yield log
        self.readers.forget()

    def done(self, request: Request, back: str, note: str) -> RedirectResponse:
        """The answer to an action: the page `back`, which says `note` once."""
        self.sessions.tell(request.state.session, note)
        return RedirectResponse(back, 303)


def tell(request: Request, target: str, detail: str = "") -> None:
    """What the record of actions says of this one, whatever becomes of it."""
    request.state.told = (target, detail)


def form_of(request: Request) -> Mapping[str, str]:
    """The fields of the form that was sent."""
    found: Mapping[str, str] = request.state.form
    return found


def environment() -> Environment:
    """The templates, with the words for figures as filters."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (
        words.money, words.count, words.exact, words.share, words.milliseconds, words.lasted, words.size, words.figure,
        words.course, words.moment, words.ago,
    ):  # fmt: skip
        made.filters[filter_.__name__] = filter_
    made.filters["quoted"] = lambda text: quote(text, safe="")
    made.globals.update(nav=NAV, assets=_assets(), vendor=[f"vendor/{name}" for name in VENDOR])
    return made


def _assets() -> Mapping[str, str]:
    """The addresses of the static files, each another one whenever its content is."""
    static = HERE / "static"
    return {
        str(file.relative_to(static)): f"/ui/static/{file.relative_to(static)}?v={_digest(file)}"
        for file in static.rglob("*")
        if file.is_file()
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
