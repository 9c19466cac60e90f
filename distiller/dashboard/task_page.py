"""Owns the page of one task, and what an operator does about it there: each deed is shown first, then done.

A deed is done by the same functions as the command of its name, so that what one refuses the other does too, in the
same words. Must not compute a figure itself.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from distiller.dashboard.desk import Desk, form_of, tell
from distiller.dashboard.forecasts import Forecasts
from distiller.dashboard.reading import LONG_SECONDS
from distiller.dashboard.task_view import Bounds, View, mark, view
from distiller.dashboard.words import moment
from distiller.operating import promoted, rolled_back
from distiller.payback import Figure
from distiller.settings import Settings
from distiller.task_money import per_day, teacher_usd, training_usd
from proxy.errors import BadInput, Refused
from proxy.log import Log
from router.books import read_books
from router.coverage import Risk
from router.freezes import freeze, thaw
from router.ledger import TaskLine, reckoned
from router.lifecycle import following, percent
from router.registry import CANARY, LIVE, RETIRED, SHADOW, Candidate, candidates

LONGEST_REASON = 500  # characters
Row = tuple[float, str, list[float | None]]
Do = Callable[[Log, Settings, str, str, str], str]
"""Does it to a task, with the candidate and the reason that the form names; what to say of it."""


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing to do: the word on its button, whether it wants a reason, and what does it."""

    word: str
    reasoned: bool
    do: Do
    danger: bool = False


def _promote(log: Log, settings: Settings, task: str, candidate: str, reason: str) -> str:
    moved = promoted(log, settings, task, candidate)
    return f"{moved.id} is now: {moved.stage}, with {percent(moved.share)} of the conversations"


def _rollback(log: Log, settings: Settings, task: str, candidate: str, reason: str) -> str:
    moved = [one.id for one in rolled_back(log, settings, task, reason)]
    return (
        f"the teacher answers {task}; retired: {', '.join(moved)}" if moved else f"the teacher answered {task} already"
    )


def _freeze(log: Log, settings: Settings, task: str, candidate: str, reason: str) -> str:
    freeze(log, task, reason)
    return f"{task} is frozen: it can still be taken back"


def _thaw(log: Log, settings: Settings, task: str, candidate: str, reason: str) -> str:
    thaw(log, task, reason)
    return f"{task} moves by itself again"


DEEDS: Mapping[str, Deed] = {
    "promote": Deed("Promote", False, _promote),
    "rollback": Deed("Roll back", True, _rollback, danger=True),
    "freeze": Deed("Freeze", True, _freeze),
    "thaw": Deed("Thaw", True, _thaw),
}


@dataclass(frozen=True, slots=True)
class Money:
    """What the ledger and the pace say of one task; `month` is thirty days of the teacher at the present pace."""

    line: TaskLine | None
    teacher: Figure
    pace: Figure
    training: Figure

    @property
    def charged(self) -> bool:
        """Whether the teacher was paid for any of it, at whatever price."""
        return self.line is not None and (self.line.unpriced > 0 or self.line.teacher_usd is not None)

    @property
    def month(self) -> float | None:
        """US dollars; None where the price or the pace is unknown."""
        return (
            None if self.teacher.value is None or self.pace.value is None else 30 * self.teacher.value * self.pace.value
        )


def task_router(desk: Desk) -> APIRouter:
    """The page, the pages that ask before a deed, and the deeds."""
    router, forecasts = APIRouter(), Forecasts(desk.config)
    doing = threading.Lock()  # Of two promotions at once, the second one has to see what the first one did.

    def shown(task: str, candidate: str) -> View:
        return desk.readers.now(
            ("task", task, candidate),
            lambda log: view(log, desk.settings, task, candidate),
            mark=lambda log: mark(log, task, time.time()),
        )

    @router.get("/tasks/{task}")
    def page(request: Request, task: str, candidate: str = "") -> Response:
        found = shown(task, candidate)
        money = desk.readers.now(("task money", task), lambda log: money_of(log, desk.settings, task), LONG_SECONDS)
        return desk.page(
            request, "task.html", view=found, money=money, deeds=offered(found), forecast=forecasts.known(task),
            rows=chart_rows(found),
        )  # fmt: skip

    @router.post("/tasks/{task}/forecast")
    def forecast(request: Request, task: str) -> Response:
        tell(request, task)
        forecasts.make(task)
        return desk.done(request, f"/ui/tasks/{task}#forecast", "")

    @router.get("/tasks/{task}/confirm/{deed}")
    def confirm(request: Request, task: str, deed: str, candidate: str = "") -> Response:
        if deed not in DEEDS:
            raise HTTPException(404)
        found = shown(task, candidate)
        what = consequences(found, desk.settings)[deed]
        shows = seen(found.chosen) if found.chosen else ""
        return desk.page(request, "task_confirm.html", view=found, deed=deed, what=what, how=DEEDS[deed], seen=shows)

    @router.post("/tasks/{task}/{deed}")
    def act(request: Request, task: str, deed: str) -> Response:
        if deed not in DEEDS:
            raise HTTPException(404)
        form = form_of(request)
        candidate, reason = form.get("candidate", ""), " ".join(form.get("reason", "").split())
        tell(request, task, "; ".join(part for part in (candidate, reason[:LONGEST_REASON]) if part))
        if DEEDS[deed].reasoned and not 0 < len(reason) <= LONGEST_REASON:
            raise BadInput(f"give a reason, of at most {LONGEST_REASON} characters: it is kept in the log")
        with doing, desk.writing() as log:
            if deed == "promote":
                unchanged(log, task, candidate, form.get("seen", ""))
            note = DEEDS[deed].do(log, desk.settings, task, candidate, reason)
        return desk.done(request, f"/ui/tasks/{task}", note)

    return router


def seen(one: Candidate) -> str:
    """Where it stands: what a promotion was confirmed for."""
    return f"{one.stage} {one.share}"


def unchanged(log: Log, task: str, candidate: str, shown: str) -> None:
    """Refused where the candidate is not where a page showed it any more: a form sent twice is one step."""
    for one in candidates(log, task):
        if one.id == candidate and seen(one) != shown:
            raise Refused(f"{one.id} is at {one.stage} by now: look at the task again, then repeat it")
    if not candidate:
        raise BadInput("say which candidate is promoted: this task had none")


def chart_rows(found: View) -> Mapping[str, list[Row]]:
    """The rows of the page's charts: where a point is, what it is called, and its values."""
    path, later = (found.proof.path if found.proof else ()), found.after
    bar, dated = (found.proof.bar, found.proof.dated) if found.proof else (None, False)
    at, curves = found.curves.at, found.curves
    risks: list[Row] = [
        *((one.coverage, _covering(one), [one.risk, None, None]) for one in curves.shadow),
        *((one.coverage, _covering(one), [None, one.risk, None]) for one in curves.holdout),
        *([(at.coverage, f"{_covering(at)}, the threshold", [None, None, at.risk])] if at else []),
    ]
    return {
        "path": [(_place(one, dated), _numbered(one), [one.lower, one.upper, bar]) for one in path],
        "risk": sorted(risks, key=lambda row: row[0]),
        "after": [(one.n, _numbered(one), [one.lower, one.upper, found.after_bar]) for one in later],
    }


def _covering(one: Risk) -> str:
    return f"{one.coverage:.1%}, from {one.threshold:.4f}"


def _place(one: Bounds, dated: bool) -> float:
    return one.ts.timestamp() if dated and one.ts else one.n


def _numbered(one: Bounds) -> str:
    return f"{one.n:,}" + (f", {moment(one.ts)}" if one.ts else "")


def money_of(log: Log, settings: Settings, task: str) -> Money:
    """By the same functions as `stillroom report` and `stillroom forecast`."""
    known = reckoned(read_books(log), {}).tasks  # Rivals of every task would take long; the page has its own.
    line = next((one for one in known if one.task == task), None)
    return Money(line, teacher_usd(log, task), per_day(log, task), training_usd(log, task, settings.money))


def offered(found: View) -> list[str]:
    """The deeds that could make sense now; the others would only be refused, or change nothing."""
    answering = any(one.stage in (CANARY, LIVE) for one in found.candidates)
    movable = found.chosen is not None and found.chosen.stage in (SHADOW, CANARY, RETIRED)
    return [
        *(["promote"] if movable else []), *(["rollback"] if answering else []),
        "thaw" if found.frozen else "freeze",
    ]  # fmt: skip


def consequences(found: View, settings: Settings) -> Mapping[str, list[str]]:
    """What each deed will do, in sentences."""
    answering = [one for one in found.candidates if one.stage in (CANARY, LIVE)]
    names = ", ".join(one.id for one in answering)
    return {
        "promote": _promotion(found, settings),
        "rollback": [
            f"{names} is retired." if names else "Nothing: the teacher answers all of this task already.",
            "The teacher answers every request of this task again, on all workers within two seconds.",
        ],
        "freeze": [
            "Nothing of this task is promoted or distilled by itself until it is thawed.",
            "What gets worse is still taken back, and so can you by hand.",
        ],
        "thaw": ["Candidates move by themselves again, as their evidence says."],
    }


def _promotion(found: View, settings: Settings) -> list[str]:
    chosen = found.chosen
    if chosen is None:
        return ["Nothing: this task has no candidate."]
    if chosen.stage == LIVE:
        return [f"Nothing: {chosen.id} is live already."]
    step = following(chosen.stage, chosen.share, "", settings.router)
    others = [one.id for one in found.candidates if one.id != chosen.id and one.stage in (CANARY, LIVE)]
    proof = "" if found.proof is None else str(found.standing.get("verdict", ""))
    return [
        f"{chosen.id} goes from {chosen.stage} to {step.stage}: it answers {percent(step.share)} of the conversations.",
        *([f"{', '.join(others)} is retired."] if others else []),
        f"It is refused without a certificate, and where a slice is far behind. The evidence: {proof}.",
    ]
