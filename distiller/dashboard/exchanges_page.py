"""Owns the pages of exchanges: found by a filter, one as it was sent, asked again of another model, exported.

Searching has connections of its own that can do nothing but read the log. Must not compute a figure itself.
"""

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from distiller.dashboard.desk import Desk, form_of, tell
from distiller.dashboard.differing import difference
from distiller.dashboard.exchange_view import body_bytes, exchange, recorded
from distiller.dashboard.reading import Readers
from distiller.replaying import CANDIDATE, Replayed, replay, sound, targets
from proxy.errors import BadInput
from router.filters import COLUMNS, FUNCTIONS, Condition, condition
from router.searching import Found, read_place, rows, search

PAGE = 50  # exchanges
MOST_EXPORTED = 10_000
RANGES: Mapping[str, timedelta] = {
    "1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30),
    "all": timedelta(days=18_250),
}  # fmt: skip
FIRST_YEAR = 1970
_KEPT, _KEPT_CHARACTERS = 50, 16 << 20  # replays, and what they say
_LONGEST_MODEL = 200  # characters


class Replays:
    """The last few replays, so that looking at one again does not pay for it again."""

    def __init__(self) -> None:
        """None yet."""
        self._kept: OrderedDict[str, tuple[str, Replayed]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, identity: str, done: Replayed) -> str:
        """Under a name nobody can guess."""
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[name] = identity, done
            while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._size() > _KEPT_CHARACTERS):
                self._kept.popitem(last=False)
        return name

    def of(self, identity: str, name: str) -> Replayed | None:
        """The replay of this exchange, while it is kept."""
        kept = self._kept.get(name)
        return kept[1] if kept and kept[0] == identity else None

    def _size(self) -> int:
        return sum(len(one.said) + len(one.answer or "") + len(one.tool_calls or "") for _, one in self._kept.values())


def exchanges_router(desk: Desk, searchers: Readers) -> APIRouter:
    """The pages; `searchers` are connections that are confined."""
    router, settings, replays = APIRouter(), desk.settings, Replays()

    @router.get("/exchanges")
    def found(
        request: Request, filter: str = "", range: str = "24h", since: str = "", until: str = "", after: str = ""
    ) -> Response:
        asked: Found | None = None
        problem, now = "", datetime.now(UTC)
        try:
            low, high = span(range, since, until, now)
            place = read_place(after) if after else None
            with searchers.log() as log:
                asked = search(log, condition(filter), low, high, PAGE, place)
        except BadInput as error:
            problem = str(error)
        given = {"filter": filter, "range": range, "since": since, "until": until}
        further = urlencode({**given, "after": str(asked.further)}) if asked and asked.further else ""
        return desk.page(
            request, "exchanges.html", 400 if problem else 200, found=asked, problem=problem, given=given, after=after,
            further=further, ranges=list(RANGES), columns=COLUMNS, functions=list(FUNCTIONS), most=MOST_EXPORTED,
        )  # fmt: skip

    @router.post("/exchanges/export")
    def export(request: Request) -> Response:
        form = form_of(request)
        text = form.get("filter", "")
        tell(request, "exchanges", text or "all")
        low, high = span(form.get("range", "24h"), form.get("since", ""), form.get("until", ""), datetime.now(UTC))
        lines = exported(searchers, condition(text), low, high)
        first = next(lines, "")  # What cannot be computed is refused before anything goes out.
        name = f"exchanges-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(_joined(first, lines), media_type="application/jsonl; charset=utf-8", headers=headers)

    @router.get("/exchanges/{identity}")
    def one(request: Request, identity: str, replayed: str = "") -> Response:
        with desk.readers.log() as log:
            shown = exchange(log, settings, identity)
        done = replays.of(identity, replayed)
        before = shown.columns["answer"] or shown.columns["tool_calls"] or ""
        apart = difference(before, done.answer or done.tool_calls or "") if done else None
        return desk.page(
            request, "exchange.html", shown=shown, row=shown.columns, done=done, apart=apart, before=before,
            gone=bool(replayed) and done is None,
        )  # fmt: skip

    @router.get("/exchanges/{identity}/raw/{side}")
    def raw(identity: str, side: Literal["request", "response"]) -> Response:
        with desk.readers.log() as log:
            content = body_bytes(recorded(log, identity), side)
        headers = {"content-disposition": f'attachment; filename="{side}.bin"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    @router.get("/exchanges/{identity}/replay")
    def choose(request: Request, identity: str) -> Response:
        with desk.readers.log() as log:
            row = recorded(log, identity)
            known = targets(log, settings, row)
        return desk.page(request, "replay.html", row=row, targets=known, candidate=CANDIDATE)

    @router.post("/exchanges/{identity}/replay")
    def again(request: Request, identity: str) -> Response:
        form = form_of(request)
        key, model = form.get("target", ""), form.get("model", "").strip()
        tell(request, identity, f"{key} {model}".strip()[:_LONGEST_MODEL])
        if len(model) > _LONGEST_MODEL:
            raise BadInput("that is no model's name")
        with desk.readers.log() as log:
            row = recorded(log, identity)
        with desk.writing() as log:
            done = replay(log, settings, row, body_bytes(row, "request"), key, model)
        return desk.done(
            request, f"/ui/exchanges/{row['id']}?replayed={replays.keep(row['id'], done)}#replay", _told(done)
        )

    return router


def span(range: str, since: str, until: str, now: datetime) -> tuple[datetime, datetime]:
    """From when to when: as given in UTC, else the range up to now. BadInput for what is no time."""
    if range not in RANGES:
        raise BadInput(f"there is no time range {range[:20]!r}: use one of {', '.join(RANGES)}")
    high = _time(until, "until") if until else now
    low = _time(since, "since") if since else high - RANGES[range]
    if low > high:
        raise BadInput("the time range ends before it begins")
    return low, high


def _time(text: str, name: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadInput(f"{name} is no time: write for example 2026-11-28T09:30, in UTC") from None
    if found.year < FIRST_YEAR:
        raise BadInput(f"{name} is a time in the year {found.year}: nothing is older than {FIRST_YEAR}")
    return found


def exported(searchers: Readers, asked: Condition, since: datetime, until: datetime) -> Iterator[str]:
    """JSON Lines of the newest exchanges that are asked for."""
    for row in rows(searchers.log, asked, since, until, MOST_EXPORTED):
        yield sound(json.dumps(row, default=_plain, ensure_ascii=False)) + "\n"


def _joined(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _told(done: Replayed) -> str:
    cost = "it cost nothing more" if not done.charged else (
        "it is charged, and unpriced" if done.usd is None else f"it cost ${done.usd:.6f}"
    )  # fmt: skip
    return f"{done.target} was asked: {done.problem or 'it answered'}; {cost}"
