"""Owns asking the teacher about recorded exchanges within a budget: one question an exchange, once, charged and kept.

Must not know what is asked, nor what becomes of the answers. Money: before a question is asked, the most it can cost is
set aside, so that charges never exceed the budget as long as the teacher keeps to the length it is told. Where nobody
says what a question cost - no usage came, or the connection broke after the question was sent - it is charged at that
bound; without a price it is unpriced. A budget and a number of questions are the task's in all: what earlier runs
charged counts, also when the exchanges are gone.
An answer may quote its request, so it is redacted as requests are; the table it is kept in goes by its exchange
(`proxy.dropping.ASKED`).
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import duckdb

from proxy.client import UpstreamBroke, UpstreamSilent
from proxy.costs import SizesOf, bound_of, fields_of
from proxy.derive import CHAT, Derived, Price, derive
from proxy.errors import Refused
from proxy.ids import ulid
from proxy.limits import NANO
from proxy.log import Log
from proxy.messages import prompt_to_pay
from proxy.redact import Redactor
from proxy.teachers import Teachers

AT_ONCE = 4
PATIENCE = 60.0  # seconds for one answer
FAILURES = 3  # questions in a row without an answer: the teacher is not there
HOPELESS = 5  # questions that are declined before any is answered: it is the asking that is wrong
_DECLINED = (400, 404, 413, 422)  # What the teacher will say again; not paid for.
_HEADERS = [(b"content-type", b"application/json")]
_SPENT = """
SELECT count(*), CAST(ceil(coalesce(sum(TRY_CAST(usd AS DECIMAL(38, 15))), 0) * 1000000000) AS HUGEINT)
FROM spend WHERE kind = ? AND task = ?
"""
_KNOWN = "SELECT exchange FROM {table} WHERE list_contains(CAST(? AS VARCHAR[]), exchange)"
_CHARGE = """
INSERT INTO spend (id, ts, task, kind, model, exchange, usd, quantity, unit)
VALUES (?, now(), ?, ?, ?, ?, ?, 1.0, 'question')
"""


@dataclass(frozen=True, slots=True)
class Question:
    """One question to an exchange's teacher: the body to send, and the most it can cost, None: unpriced.

    `teacher` names who answered it, None the usual one.
    """

    exchange: str
    model: str
    body: bytes
    nano: int | None
    teacher: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What came of one question. `usd` is what to charge, None unpriced; nothing is charged where it was not `paid`.

    `problem` says why it came to nothing, and may be asked again; `text` is None where there is no answer.
    """

    text: str | None = None
    finish: str | None = None
    paid: bool = False
    usd: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    declined: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort of question: its `kind` in the table `spend`, the `table` of its answers, and how one is kept there.

    `keep` is called inside a transaction with the task, and keeps nothing of an exchange that is gone. `advice` is what
    to do, beside setting a price, about a model that has none.
    """

    kind: str
    table: str
    keep: Callable[[duckdb.DuckDBPyConnection, str, Question, Told], None]
    advice: str = ""


@dataclass(slots=True)
class Purse:
    """What is left of a budget, in billionths of a dollar, and of a number of questions (None: no limit)."""

    nano: int
    questions: int | None = None
    reserved: int = 0
    asking: int = 0

    def reserve(self, nano: int) -> bool:
        """Set aside the most that one question can cost; whether there was room."""
        if self.reserved + nano > self.nano or (self.questions is not None and self.asking >= self.questions):
            return False
        self.reserved, self.asking = self.reserved + nano, self.asking + 1
        return True

    def settle(self, reserved: int, nano: int, paid: bool) -> None:
        """One question is over and did cost `nano`, 0 where it was not paid for."""
        self.reserved, self.asking, self.nano = self.reserved - reserved, self.asking - 1, self.nano - nano
        if paid and self.questions is not None:
            self.questions -= 1


@dataclass(slots=True)
class Asked:
    """What one run did; it grows as the run goes on. `usd` is None as soon as one question is unpriced."""

    wanted: int
    known: int
    asked: int = 0
    kept: int = 0
    cut: int = 0
    declined: int = 0
    usd: float | None = 0.0
    ended: str = "done"
    """Why it ended: "done", "budget", "most", "stopped", or what the teacher failed with."""
    problems: list[str] = field(default_factory=list)
    failed: int = 0
    """Questions in a row that came to nothing."""

    @property
    def hopeless(self) -> bool:
        """Whether nobody need be asked further just now: a single broken connection does not say so."""
        return self.failed >= FAILURES or (self.declined >= HOPELESS and not self.asked)


def priced(exchange: str, model: str, body: bytes, teacher: str | None, price: Price, sizes_of: SizesOf) -> Question:
    """The question with the most it can cost."""
    if price(model, 1, 0, 1) is None:
        return Question(exchange, model, body, None, teacher)
    return Question(
        exchange, model, body, bound_of(CHAT, fields_of(body), len(body), price, sizes_of).need.nano, teacher
    )


class Asker:
    """Asks questions of one sort about one task, each of the teacher that answered its exchange and of nobody else.

    `redactor` sees each answer before it is kept.
    """

    def __init__(self, log: Log, task: str, sort: Sort, teachers: Teachers, price: Price, redactor: Redactor) -> None:
        """Nothing is asked yet."""
        self._log, self._task, self._sort, self._teachers = log, task, sort, teachers
        self._price, self._redactor = price, redactor

    async def run(
        self, wanted: Sequence[Question], budget: float, most: int | None, stop: asyncio.Event,
        on_progress: Callable[[int, int], None],
    ) -> Asked:  # fmt: skip
        """Ask what was not asked before, in this order; what is under way at `stop` is still kept.

        `budget` in US dollars and `most` (None: no limit) are of the task in all. Refused for a model without a price
        where `most` limits nothing.
        """
        wanted = [one for one in wanted if self._teachers.of(one.teacher) is not None]
        due, known = self._due(wanted, most)
        purse, done = self._purse(budget, most), Asked(len(due) + known, known)
        under_way: dict[asyncio.Task[Told], Question] = {}
        try:
            await self._run(due, purse, done, under_way, stop, on_progress)
        except asyncio.CancelledError:  # Whatever they answer, nobody hears it; they are paid all the same.
            for one in under_way.values():
                self._log.transaction(partial(self._keep, one, _unheard(one, "nobody waited for the answer")))
            raise
        return done

    async def _run(
        self, due: Sequence[Question], purse: Purse, done: Asked, under_way: dict[asyncio.Task[Told], Question],
        stop: asyncio.Event, on_progress: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        for one in due:
            while not stop.is_set() and not done.hopeless and not self._start(purse, one, under_way):
                if not under_way:
                    done.ended = "budget" if purse.questions is None or purse.questions else "most"
                    return
                await self._settle(under_way, purse, done, on_progress)
            if stop.is_set() or done.hopeless:
                break
        while under_way:
            await self._settle(under_way, purse, done, on_progress)
        if done.problems:
            done.ended = done.problems[-1]
        elif stop.is_set() and done.asked + done.declined < len(due):
            done.ended = "stopped"

    def _due(self, wanted: Sequence[Question], most: int | None) -> tuple[list[Question], int]:
        query = _KNOWN.format(table=self._sort.table)
        known = {name for (name,) in self._log.query(query, [[one.exchange for one in wanted]])}
        due = [one for one in wanted if one.exchange not in known]
        unpriced = next((one.model for one in due if one.nano is None), None)
        if unpriced is not None and most is None:
            raise Refused(
                f"{unpriced!r} has no price, so no budget can be kept: set one under [money.prices]{self._sort.advice}"
            )
        return due, len(known)

    def _purse(self, budget: float, most: int | None) -> Purse:
        """What is left of the budget; both limits are of the task in all."""
        ((questions, nano),) = self._log.query(_SPENT, [self._sort.kind, self._task])
        left = None if most is None else max(0, most - int(questions))
        return Purse(math.floor(round(budget * NANO, 3)) - int(nano), left)

    def _start(self, purse: Purse, one: Question, under_way: dict[asyncio.Task[Told], Question]) -> bool:
        if len(under_way) >= AT_ONCE or not purse.reserve(one.nano or 0):
            return False
        under_way[asyncio.ensure_future(self._told(one))] = one
        return True

    async def _settle(
        self,
        under_way: dict[asyncio.Task[Told], Question],
        purse: Purse,
        done: Asked,
        on_progress: Callable[[int, int], None],
    ) -> None:
        """Wait until one question at least is over; keep and charge what came."""
        over, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for task in over:
            one, told = under_way.pop(task), task.result()
            nano = math.ceil(round((told.usd or 0.0) * NANO, 3))
            purse.settle(one.nano or 0, nano, told.paid)
            if told.paid:
                self._log.transaction(partial(self._keep, one, told))
            _count(done, told)
            on_progress(done.asked + done.declined, done.wanted - done.known)

    def _keep(self, one: Question, told: Told, connection: duckdb.DuckDBPyConnection) -> None:
        """A question that broke off is charged, and may be asked again; any other is answered for good."""
        if not told.problem:
            self._sort.keep(connection, self._task, one, told)
        connection.execute(_CHARGE, [ulid(), self._task, self._sort.kind, one.model, one.exchange, told.usd])

    async def _told(self, one: Question) -> Told:
        bound = None if one.nano is None else one.nano / NANO
        teacher = self._teachers.of(one.teacher)
        assert teacher is not None  # Of others nothing is due.
        limit = asyncio.timeout(PATIENCE)
        try:
            async with limit:
                response = await teacher.forward("POST", CHAT, _HEADERS, one.body)
                text = b"".join([piece async for piece in response.pieces()])
                response.close()
        except OSError as error:
            if limit.expired() or isinstance(error, UpstreamBroke | UpstreamSilent):  # It had the question by then.
                return _unheard(one, f"the teacher broke off: {error or 'no answer in time'}")
            return Told(problem=f"the teacher cannot be reached: {error or 'no connection in time'}")
        if response.status in _DECLINED:
            return Told(declined=True)
        if response.status != 200:
            return Told(problem=f"the teacher answered with status {response.status}")
        return self._read(one, bound, derive(CHAT, None, "{}", 200, False, text.decode("utf-8", "replace")))

    def _read(self, one: Question, bound: float | None, said: Derived) -> Told:
        prompt, completion = said.prompt_tokens, said.completion_tokens
        counted = bool(prompt and completion)  # Some tell zeros of a usage they do not know.
        paid = prompt_to_pay(prompt, said.usage)
        usd = self._price(one.model, paid, said.cached_tokens, completion) if counted else None
        text = self._redactor.text(said.answer.strip()) if said.answer and said.answer.strip() else None
        return Told(text, said.finish_reason, True, bound if usd is None else usd, prompt, completion)


def _unheard(one: Question, problem: str) -> Told:
    """It was sent, and what it cost is not known: the most it can."""
    return Told(paid=True, usd=None if one.nano is None else one.nano / NANO, problem=problem)


def _count(done: Asked, told: Told) -> None:
    done.asked += told.paid
    done.declined += told.declined
    done.kept += told.text is not None and told.finish == "stop"
    done.cut += told.text is not None and told.finish != "stop"
    if told.paid:
        done.usd = None if done.usd is None or told.usd is None else done.usd + told.usd
    done.failed = done.failed + 1 if told.problem else 0
    if told.problem:
        done.problems.append(told.problem)
    elif done.declined >= HOPELESS and not done.asked:
        done.problems.append(f"the teacher declined the first {done.declined} questions")
