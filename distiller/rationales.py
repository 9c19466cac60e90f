"""Owns rationales: why the teacher answered as it did. Asked for a share of a task's exchanges, and kept in the log.

Must not know what a student learns from them. Money: before a question is asked, the most it can cost is set aside, so
that `rationale` charges never exceed the budget as long as the teacher keeps to the length it is told. Where nobody
says what a question cost - no usage came, or the connection broke after the question was sent - it is charged at that
bound; without a price it is unpriced. A budget and a number of questions are the task's in all: what earlier runs
charged counts, also when the exchanges are gone.
A rationale may quote its request, so it is redacted as requests are, and goes when its exchange does.
"""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

import duckdb

from distiller.curate import Recorded
from proxy.client import UpstreamBroke, UpstreamSilent
from proxy.costs import SizesOf, bound_of, fields_of
from proxy.derive import CHAT, Derived, Price, derive
from proxy.errors import BadInput, Refused
from proxy.ids import ulid
from proxy.limits import NANO
from proxy.log import Log
from proxy.messages import prompt_to_pay
from proxy.redact import Redactor
from proxy.teachers import Teachers

WORDS, LONGEST = 60, 120  # of a rationale; the latter in tokens
QUESTION = (
    f"In at most {WORDS} words: why is that the answer? Give the reasons that stand in the request, and end with the "
    "answer itself."
)
AT_ONCE = 4
PATIENCE = 60.0  # seconds for one answer
HOPELESS = 5  # questions that are declined before any is answered: it is the asking that is wrong
_DECLINED = (400, 404, 413, 422)  # What the teacher will say again; not paid for.
_HEADERS = [(b"content-type", b"application/json")]
_SPENT = """
SELECT count(*), CAST(ceil(coalesce(sum(TRY_CAST(usd AS DECIMAL(38, 15))), 0) * 1000000000) AS HUGEINT)
FROM spend WHERE kind = 'rationale' AND task = ?
"""
_KNOWN = "SELECT exchange FROM rationales WHERE list_contains(CAST(? AS VARCHAR[]), exchange)"
_TEXTS = """
SELECT exchange, arg_max(text, ts) FROM rationales
WHERE list_contains(CAST(? AS VARCHAR[]), exchange) AND text IS NOT NULL AND finish = 'stop' GROUP BY exchange
"""
# Not for an exchange that was erased meanwhile.
_KEEP = """
INSERT INTO rationales (id, ts, task, model, exchange, text, finish, usd, prompt_tokens, completion_tokens)
SELECT ?, now(), ?, ?, id, ?, ?, ?, ?, ? FROM exchanges WHERE id = ?
"""
_CHARGE = """
INSERT INTO spend (id, ts, task, kind, model, exchange, usd, quantity, unit)
VALUES (?, now(), ?, 'rationale', ?, ?, ?, 1.0, 'question')
"""


@dataclass(frozen=True, slots=True)
class Wish:
    """What may be asked: on which share of a task's training exchanges, for how much, and how many questions at most.

    `budget` in US dollars and `most` (None: no limit) are of the task in all, earlier runs included.
    """

    budget: float
    share: float = 0.2
    most: int | None = None

    def __post_init__(self) -> None:
        """Raises BadInput for what makes no sense."""
        if not (math.isfinite(self.budget) and self.budget >= 0):
            raise BadInput(f"--budget is US dollars, 0 or more, not {self.budget}")
        if not 0 < self.share <= 1:
            raise BadInput(f"--share is a share above 0 and up to 1, such as 0.2, not {self.share}")
        if self.most is not None and self.most < 1:
            raise BadInput(f"--most is a number of questions, at least 1, not {self.most}")


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

    `problem` says why nobody need be asked further just now; `text` is None where there is no rationale.
    """

    text: str | None = None
    finish: str | None = None
    paid: bool = False
    usd: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    declined: bool = False
    problem: str = ""


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


def chosen(rows: Sequence[Recorded], share: float) -> list[Recorded]:
    """The rows that are asked about, the newest first: by their ids, so the same each time, and more for more share."""
    return [row for row in sorted(rows, key=lambda row: row.exchange_id, reverse=True) if _drawn(row, share)]


def kept(log: Log, exchanges: Sequence[str]) -> dict[str, str]:
    """The whole rationales that the log has for these exchanges; what was cut off has no conclusion, and is none."""
    return dict(log.query(_TEXTS, [list(exchanges)]))


def question(row: Recorded, price: Price, sizes_of: SizesOf) -> Question:
    """The recorded conversation with its answer, and why: whatever else the request asked for is left out."""
    length = "max_completion_tokens" if "max_completion_tokens" in row.request else "max_tokens"
    turns = [{"role": "assistant", "content": row.answer}, {"role": "user", "content": QUESTION}]
    model = str(row.request.get("model"))
    body = json.dumps({"model": model, "messages": [*row.messages, *turns], "temperature": 0, length: LONGEST}).encode()
    if price(model, 1, 0, 1) is None:
        return Question(row.exchange_id, model, body, None, row.teacher)
    most = bound_of(CHAT, fields_of(body), len(body), price, sizes_of).need.nano
    return Question(row.exchange_id, model, body, most, row.teacher)


class Asking:
    """One run over one task; `ask` sends a question, `redactor` sees each rationale before it is kept."""

    def __init__(
        self, log: Log, task: str, teachers: Teachers, price: Price, sizes_of: SizesOf, redactor: Redactor
    ) -> None:
        """Nothing is asked yet."""
        self._log, self._task, self._teachers, self._redactor = log, task, teachers, redactor
        self._price, self._sizes_of = price, sizes_of

    async def run(
        self, rows: Sequence[Recorded], wish: Wish, stop: asyncio.Event, on_progress: Callable[[int, int], None]
    ) -> Asked:
        """Ask about the `chosen` rows that were not asked about before; those under way at `stop` are still kept.

        Refused for a model without a price where `wish` limits no number of questions.
        """
        due, known = self._due(rows, wish)
        purse, done = self._purse(wish), Asked(len(due) + known, known)
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
            while not stop.is_set() and not done.problems and not self._start(purse, one, under_way):
                if not under_way:
                    done.ended = "budget" if purse.questions is None or purse.questions else "most"
                    return
                await self._settle(under_way, purse, done, on_progress)
            if stop.is_set() or done.problems:
                break
        while under_way:
            await self._settle(under_way, purse, done, on_progress)
        if done.problems:
            done.ended = done.problems[0]
        elif stop.is_set() and done.asked + done.declined < len(due):
            done.ended = "stopped"

    def _due(self, rows: Sequence[Recorded], wish: Wish) -> tuple[list[Question], int]:
        wanted = [row for row in chosen(rows, wish.share) if self._teachers.of(row.teacher) is not None]
        known = {name for (name,) in self._log.query(_KNOWN, [[row.exchange_id for row in wanted]])}
        due = [question(row, self._price, self._sizes_of) for row in wanted if row.exchange_id not in known]
        unpriced = next((one.model for one in due if one.nano is None), None)
        if unpriced is not None and wish.most is None:
            raise Refused(
                f"{unpriced!r} has no price, so no budget can be kept: set one under [money.prices], or limit the "
                "questions with --most"
            )
        return due, len(known)

    def _purse(self, wish: Wish) -> Purse:
        """What is left of the budget; both limits are of the task in all."""
        ((questions, nano),) = self._log.query(_SPENT, [self._task])
        left = None if wish.most is None else max(0, wish.most - int(questions))
        return Purse(math.floor(round(wish.budget * NANO, 3)) - int(nano), left)

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
            counts = [told.usd, told.prompt_tokens, told.completion_tokens]
            values = [ulid(), self._task, one.model, told.text, told.finish, *counts, one.exchange]
            connection.execute(_KEEP, values)
        connection.execute(_CHARGE, [ulid(), self._task, one.model, one.exchange, told.usd])

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


def _drawn(row: Recorded, share: float) -> bool:
    digest = blake2b(f"rationale {row.exchange_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _count(done: Asked, told: Told) -> None:
    done.asked += told.paid
    done.declined += told.declined
    done.kept += told.text is not None and told.finish == "stop"
    done.cut += told.text is not None and told.finish != "stop"
    if told.paid:
        done.usd = None if done.usd is None or told.usd is None else done.usd + told.usd
    if told.problem:
        done.problems.append(told.problem)
    elif done.declined >= HOPELESS and not done.asked:
        done.problems.append(f"the teacher declined the first {done.declined} questions")
