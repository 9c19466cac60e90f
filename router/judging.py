"""Owns whether a judge may be used: its calibration on planted pairs, the bar it has to pass, the kin it must not be.

A judge is tried before it is used, on the task it is for (`router.planted`), and the figures are kept with the log.
Must not know how a judge is reached, nor what follows from a verdict.

A judge of the student's own family is refused: models prefer answers that they might have given themselves (Panickssery
et al. 2024, "LLM Evaluators Recognize and Favor Their Own Generations"). A judge of the teacher's family may prefer the
teacher's answers for the same reason, which makes a proof harder: that is told, not refused.

What a judge leaves unreadable is missing. It is recorded as the worst, a verdict of 0 with `UNREADABLE` as its error:
were it left out, answers that confuse a judge would drop out of the proof, and they are not the good ones.
"""

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import duckdb
from scipy.stats import beta

from proxy.errors import Refused, StillroomError, Unavailable
from proxy.ids import ulid
from proxy.log import Log
from router.evaluators import JUDGE
from router.judge import PROMPT_VERSION, Choice, Judge, Judgement, Message, Spoken
from router.planted import Planted, plant
from router.registry import Candidate
from router.settings import JudgeSettings

_log = logging.getLogger("stillroom.judging")

UNREADABLE = "judge: unparseable"
"""The error of a verdict that is missing."""
BAR = 0.8
"""What the lower bound of the accuracy on planted worse pairs has to reach."""
MOST_UNREADABLE = 0.05
ALPHA = 0.05
PER_KIND = 12
NEWEST = 500  # recorded answers to plant in

_FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "OpenAI's": r"gpt|chatgpt|o[134]|davinci", "Anthropic's": "claude", "Google's": "gemini|gemma|palm",
        "Llama": "llama|vicuna|alpaca", "Mistral": r"(mis|mix|minis|codes|magis|devs|pix)tral", "Qwen": "qwen|qwq",
        "Phi": "phi", "SmolLM": "smollm|smolvlm", "DeepSeek": "deepseek", "Cohere's": "command|aya",
        "Granite": "granite", "Nemotron": "nemotron", "Falcon": "falcon", "OLMo": "olmoe?", "Grok": "grok",
        "Nova": "nova", "GLM": "(chat)?glm",
    }
)  # fmt: skip
_ANSWERS = """
SELECT request, answer, model FROM exchanges
WHERE task = ? AND served_by = 'teacher' AND path = '/v1/chat/completions' AND status = 200 AND NOT partial
  AND finish_reason = 'stop' AND answer IS NOT NULL AND tool_calls IS NULL AND request_encoding = 'utf-8'
ORDER BY id DESC LIMIT ?
"""
_CHARGE = """
INSERT INTO spend (id, ts, task, kind, model, exchange, usd, quantity, unit)
VALUES (?, now(), ?, 'judge', ?, ?, ?, ?, 'question')
"""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a judge made of planted pairs; shares in [0, 1], None where nothing could be read.

    A bias is the share of A among the choices, a tie being half of one, minus 0.5: 0 prefers no position, 0.5 always A.
    """

    judge: str
    prompt_version: int
    worse: int
    """Pairs in which one answer is known to be worse."""
    correct: int
    """Of these, those whose better answer won in both orders; missing ones are not correct."""
    lower: float
    """Exact lower bound of correct / worse, one-sided at ALPHA (Clopper & Pearson 1934)."""
    equal: int
    tied: int
    """Of the equal pairs, those without a winner."""
    by_kind: Mapping[str, tuple[int, int]]
    """As they should be (correct or tied), and how many pairs."""
    bias_before: float | None
    """Of single questions; every pair is asked in both orders, so the better answer is as often A as B."""
    bias_after: float | None
    """Of the pairs' winners, with the teacher's answer as A in every other pair."""
    flipped: float
    """Share of pairs in which the same position was chosen in both orders."""
    orders: int
    unreadable: float
    """Share of the orders asked that could not be read, after one retry each."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bill:
    """What one comparison, or a calibration, cost; `usd` None is unpriced."""

    exchange: str | None
    questions: int
    usd: float | None


@dataclass(frozen=True, slots=True)
class Judged:
    """One comparison as it is recorded: a missing verdict is 0.0 with an error."""

    verdict: float
    error: str | None
    bill: Bill
    unavailable: bool = False
    """There is no verdict, and the comparison has to be made again."""


def fit(calibration: Calibration) -> bool:
    """The declared bar: accuracy at least BAR at its lower bound, and at most MOST_UNREADABLE missing."""
    return calibration.lower >= BAR and calibration.unreadable <= MOST_UNREADABLE


def in_words(calibration: Calibration) -> str:
    """One line with the figures that decide."""
    c = calibration
    accuracy = f"{c.correct} of {c.worse} planted worse answers found (at least {c.lower:.0%}, {BAR:.0%} needed)"
    bias = " and ".join(
        f"{value:+.2f} {when} swapping"
        for value, when in ((c.bias_before, "before"), (c.bias_after, "after"))
        if value is not None
    )
    missing = f"{c.unreadable:.0%} unparseable ({MOST_UNREADABLE:.0%} allowed)"
    state = "fit" if fit(c) else "not fit"
    ties = f"{c.tied} of {c.equal} equal pairs tied"
    notes = "".join(f"; {note}" for note in c.notes)
    return f"judge {c.judge} is {state}: {accuracy}, {missing}, {ties}, position bias {bias or 'unknown'}{notes}"


def judge_instead(chosen: str, settings: JudgeSettings) -> str:
    """Free text is for the judge where there is one; what has a form of its own is compared by it."""
    return JUDGE if chosen == "exact" and settings.model else chosen


def families(model: str) -> frozenset[str]:
    """The families a model's name speaks of; several for a model distilled from one into another."""
    return frozenset(
        family
        for family, words in _FAMILIES.items()
        if re.search(rf"(?<![a-z])({words})(?![a-z])", model, re.IGNORECASE)
    )


def refuse_kin(judge: str, student: str) -> None:
    """Refused when the judge is of the family of the student's base model, or is that model."""
    shared = families(judge) & families(student)
    same = judge.rpartition("/")[2].lower() == student.rpartition("/")[2].lower()
    if shared or same:
        kin = f"both are {' and '.join(sorted(shared))} models" if shared else "it is the same model"
        raise Refused(
            f"judge.model {judge} must not judge a student grown from {student}: {kin}, and models prefer what they "
            "might have said themselves; name a judge of another family"
        )


def notes(judge: str, teacher: str) -> tuple[str, ...]:
    """What has to be known of a judge beside its figures."""
    if families(judge) & families(teacher):
        return (f"of the family of the teacher ({teacher}), so it may prefer the teacher's answers",)
    return () if families(judge) else ("its family is unknown, so kinship with the student cannot be seen",)


async def tried(judge: Judge, pairs: Sequence[Planted]) -> list[Judgement]:
    """What the judge says to every pair, in both orders, with the teacher's answer as `teacher`."""
    return await asyncio.gather(*(judge.compare(pair.request, pair.answer, pair.other) for pair in pairs))


def measured(
    judge: str, pairs: Sequence[Planted], judgements: Sequence[Judgement], about: tuple[str, ...] = ()
) -> Calibration:
    """The figures of what the judge said to `pairs`, one judgement for each."""
    asked = list(zip(pairs, judgements, strict=True))
    right = Counter(pair.kind for pair, said in asked if said.winner == ("teacher" if pair.worse else "tie"))
    kinds = Counter(pair.kind for pair in pairs)
    worse = {pair.kind for pair in pairs if pair.worse}
    n, correct = sum(kinds[kind] for kind in worse), sum(right[kind] for kind in worse)
    choices = [choice for said in judgements for choice in (said.straight, said.swapped)]
    return Calibration(
        judge=judge, prompt_version=PROMPT_VERSION, worse=n, correct=correct,
        lower=float(beta.ppf(ALPHA, correct, n - correct + 1)) if correct else 0.0,
        equal=len(pairs) - n, tied=sum(right.values()) - correct,
        by_kind={kind: (right[kind], count) for kind, count in kinds.items()},
        bias_before=_bias(choices), bias_after=_bias(_winners(judgements)),
        flipped=sum(said.flipped for said in judgements) / len(pairs) if pairs else 0.0,
        orders=len(choices), unreadable=choices.count(None) / len(choices) if choices else 0.0, notes=about,
    )  # fmt: skip


async def fit_judge(log: Log, judge: Judge, task: str, base: str) -> Calibration:
    """The judge's calibration for this task, made and paid for on first use; whether it is fit is for the caller.

    Refused for kin of `base`, the student's base model, and where too little was recorded; Unavailable for now.
    """
    refuse_kin(judge.name, base)
    known = calibration_of(log, judge.name, task)
    if known is not None:
        return known
    rows = log.query(_ANSWERS, [task, NEWEST])
    pairs = plant([(json.loads(request)["messages"], answer) for request, answer, _ in rows], PER_KIND)
    teachers = Counter(model for *_, model in rows if model).most_common(1)
    about = notes(judge.name, teachers[0][0] if teachers else "")
    judgements = await tried(judge, pairs)
    gone = next((said.unavailable for said in judgements if said.unavailable), None)
    found = measured(judge.name, pairs, judgements, about)

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        charge_judge(connection, task, judge.name, [_bill(None, [each for said in judgements for each in said.spoken])])
        if gone is None:
            values = [ulid(), task, judge.name, json.dumps(asdict(found))]
            connection.execute("INSERT INTO judges VALUES (?, now(), ?, ?, ?)", values)

    log.transaction(work)
    if gone is not None:
        raise Unavailable(f"judge {judge.name} was not tried to the end: {gone}")
    return found


class Appointed:
    """The judge, for the tasks for which it is fit."""

    def __init__(self, log: Log, judge: Judge | None) -> None:
        """Nothing is tried before it is needed."""
        self._log, self._judge = log, judge
        self._fit: dict[str, bool] = {}  # by candidate, as kinship is with its base
        self._said: dict[str, str] = {}

    async def judge_of(self, candidate: Candidate) -> Judge | None:
        """The judge where it may judge this candidate; else None, and why not is said once."""
        if self._judge is None:
            self._say(candidate, "judge.model is not set")
        elif candidate.id not in self._fit and not self._judge.resting:
            try:
                found = await fit_judge(
                    self._log, self._judge, candidate.task, str(candidate.card.get("base", candidate.id))
                )
                self._fit[candidate.id] = fit(found)
                self._say(candidate, in_words(found))
            except StillroomError as error:
                self._say(candidate, str(error))
        return self._judge if self._fit.get(candidate.id) else None

    def _say(self, candidate: Candidate, text: str) -> None:
        if self._said.get(candidate.id) != text:
            self._said[candidate.id] = text
            _log.warning("%s of task %s: %s", candidate.id, candidate.task, text)


def calibration_of(log: Log, judge: str, task: str) -> Calibration | None:
    """The newest calibration of this judge, asked as it is asked now, for this task."""
    rows = log.query(
        "SELECT calibration FROM judges WHERE judge = ? AND task = ? "
        "AND CAST(calibration ->> 'prompt_version' AS INTEGER) = ? ORDER BY id DESC LIMIT 1",
        [judge, task, PROMPT_VERSION],
    )
    if not rows:
        return None
    kept = json.loads(rows[0][0])
    by_kind = {kind: (right, count) for kind, (right, count) in kept["by_kind"].items()}
    return Calibration(**{**kept, "by_kind": by_kind, "notes": tuple(kept["notes"])})


async def judged(judge: Judge, exchange: str, request: Sequence[Message], teacher: str, candidate: str) -> Judged:
    """The verdict on one exchange, and what it cost: nothing where the answers are the same, which needs no judge."""
    if teacher.strip() == candidate.strip():
        return Judged(1.0, None, Bill(exchange, 0, 0.0))
    said = await judge.compare(request, teacher, candidate)
    bill = _bill(exchange, said.spoken)
    if said.unavailable is not None:
        return Judged(0.0, said.unavailable, bill, unavailable=True)
    verdict = said.verdict
    return Judged(0.0, UNREADABLE, bill) if verdict is None else Judged(verdict, None, bill)


def missing(log: Log, candidate: str) -> tuple[int, int]:
    """Covered verdicts of a candidate that are missing, counted as 0 each, and all covered ones that were judged."""
    ((unreadable, everything),) = log.query(
        "SELECT count(*) FILTER (error = ?), count(verdict) FROM verdicts WHERE candidate = ? AND covered",
        [UNREADABLE, candidate],
    )
    return int(unreadable), int(everything)


def judges_of(log: Log, candidate: str) -> list[str]:
    """Who was paid for judging the exchanges of a candidate's verdicts; more than one where the setting was changed."""
    rows = log.query(
        "SELECT DISTINCT model FROM spend "
        "WHERE kind = 'judge' AND exchange IN (SELECT exchange FROM verdicts WHERE candidate = ?) ORDER BY model",
        [candidate],
    )
    return [str(name) for (name,) in rows]


def charge_judge(connection: duckdb.DuckDBPyConnection, task: str, judge: str, bills: Sequence[Bill]) -> None:
    """Append what was asked to the ledger, inside the caller's transaction."""
    for bill in bills:
        if bill.questions:
            connection.execute(_CHARGE, [ulid(), task, judge, bill.exchange, bill.usd, float(bill.questions)])


def _bill(exchange: str | None, spoken: Sequence[Spoken]) -> Bill:
    prices = [said.usd for said in spoken]
    known = [usd for usd in prices if usd is not None]
    return Bill(exchange, len(prices), sum(known) if len(known) == len(prices) else None)


def _winners(judgements: Sequence[Judgement]) -> list[Choice | None]:
    """Where the winner stood, had every pair been asked once: with the teacher's answer first in every other one."""
    slots: tuple[Mapping[Any, Choice], ...] = (
        {"teacher": "A", "candidate": "B", "tie": "tie"},
        {"teacher": "B", "candidate": "A", "tie": "tie"},
    )
    return [slots[place % 2].get(said.winner) for place, said in enumerate(judgements)]


def _bias(choices: Sequence[Choice | None]) -> float | None:
    values = [{"A": 1.0, "B": 0.0, "tie": 0.5}[choice] for choice in choices if choice is not None]
    return sum(values) / len(values) - 0.5 if values else None
