"""Owns the comparison of what a provider says was used with what the log says, by day and model, and the gap.

A gap has reasons that the log knows - calls without a price, tokens that are our estimate, days that begin elsewhere -
and others that only a person can look up: those are named, without a figure. Models are compared by their names without
the date of their snapshot. Models that the provider does not name may be another provider's: told, and in no gap.
Must not know how a provider's account is read.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, localcontext

from proxy.log import Log
from router.books import DIGITS

MEASURES = ("requests", "prompt", "completion", "usd")
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}(-preview)?)$")
_DUST = Decimal("0.005")  # US dollars a day and model that rounding makes
# What a provider was asked; the engines' hours and trainings are nobody's bill.
_LOGGED = """
SELECT CAST(ts AT TIME ZONE 'UTC' AS DATE) AS day, model, CAST(sum(CASE WHEN unit = 'question' THEN quantity ELSE 1 END)
       AS BIGINT), CAST(coalesce(sum(prompt_tokens), 0) AS BIGINT), CAST(coalesce(sum(completion_tokens), 0) AS BIGINT),
       coalesce(sum(dollars), 0), CAST(count(*) FILTER (dollars IS NULL) AS BIGINT),
       CAST(count(*) FILTER (prompt_tokens IS NULL OR completion_tokens IS NULL) AS BIGINT)
FROM (SELECT *, TRY_CAST(usd AS DECIMAL(38, 15)) AS dollars FROM spend
      WHERE kind IN ('teacher', 'audit', 'ceiling', 'judge', 'rationale', 'repeat')
      UNION ALL BY NAME
      SELECT s.* REPLACE (coalesce(c.card ->> 'model', s.model) AS model),
             TRY_CAST(usd AS DECIMAL(38, 15)) AS dollars
      FROM spend s LEFT JOIN candidates c ON c.id = s.model
      WHERE s.kind IN ('shadow', 'candidate', 'fallback', 'replay'))
WHERE CAST(ts AT TIME ZONE 'UTC' AS DATE) BETWEEN CAST($first AS DATE) AND CAST($last AS DATE)
GROUP BY ALL ORDER BY ALL
"""
_ESTIMATED = """
SELECT count(*) FROM exchanges WHERE usage_source = 'estimated' AND served_by = 'teacher'
AND CAST(ts AT TIME ZONE 'UTC' AS DATE) BETWEEN CAST($first AS DATE) AND CAST($last AS DATE)
"""


@dataclass(frozen=True, slots=True)
class Used:
    """What was used of a model on a day; None is not said."""

    day: date
    model: str | None
    requests: int | None = None
    prompt: int | None = None
    completion: int | None = None
    usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Logged:
    """The same as the log has it; `usd` is of the calls with a price, `uncounted` are calls without tokens."""

    day: date
    model: str | None
    requests: int
    prompt: int
    completion: int
    usd: Decimal
    unpriced: int
    uncounted: int


@dataclass(frozen=True, slots=True)
class Pair:
    """What the provider says, what the log says, and what the log lacks; negative: it has more."""

    billed: Decimal
    logged: Decimal
    gap: Decimal


@dataclass(frozen=True, slots=True)
class Line:
    """One day of one model; measures that the provider does not say are None."""

    day: date
    model: str | None
    requests: Pair | None
    prompt: Pair | None
    completion: Pair | None
    usd: Pair | None

    @property
    def agrees(self) -> bool:
        """Whether there is no gap in anything; less than a cent is rounding."""
        return not any(self.gaps())

    def gaps(self) -> Iterator[Decimal]:
        """Those that are more than rounding."""
        for measure in MEASURES:
            pair: Pair | None = getattr(self, measure)
            if pair is not None and abs(pair.gap) >= (_DUST if measure == "usd" else 1):
                yield pair.gap


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The comparison; `share` is the largest gap of any measure, days and models apart, as a share of what was billed.

    None of it is known where nothing was billed and the log has something: then `share` is infinite.
    """

    first: date
    last: date
    lines: tuple[Line, ...]
    total: Line
    share: float
    reasons: tuple[str, ...]


def reconcile(log: Log, used: Sequence[Used]) -> Reconciled:
    """Compare; `used` has at least one row."""
    first, last = min(one.day for one in used), max(one.day for one in used)
    period = {"first": first, "last": last}
    logged = [Logged(*row) for row in log.query(_LOGGED, period)]
    ((estimated,),) = log.query(_ESTIMATED, period)
    whole = any(one.model is None for one in used)  # Grouped by day only: all models are in it.
    named = {_family(one.model) for one in used}
    own = [one for one in logged if whole or _family(one.model) in named]
    others = [one for one in logged if not (whole or _family(one.model) in named)]

    def key(one: Used | Logged) -> tuple[date, str | None]:
        return one.day, None if whole else _family(one.model)

    said = {measure for measure in MEASURES if any(getattr(one, measure) is not None for one in used)}
    with localcontext(prec=DIGITS):
        keys = sorted({*map(key, used), *map(key, own)}, key=lambda one: (one[0], one[1] or ""))
        lines = tuple(_line(one, used, own, key, said) for one in keys)
        total = _line((first, None), used, own, lambda _: (first, None), said)
        share = max((_share(lines, total, measure) for measure in said), default=0.0)
    return Reconciled(first, last, lines, total, share, tuple(_reasons(lines, total, own, others, estimated)))


def _line(
    name: tuple[date, str | None],
    used: Sequence[Used],
    logged: Sequence[Logged],
    key: Callable[[Used | Logged], tuple[date, str | None]],
    said: Iterable[str],
) -> Line:
    billed, ours = [one for one in used if key(one) == name], [one for one in logged if key(one) == name]
    pairs: dict[str, Pair | None] = dict.fromkeys(MEASURES)
    for measure in said:
        theirs = sum((Decimal(getattr(one, measure) or 0) for one in billed), Decimal(0))
        own = sum((Decimal(getattr(one, measure)) for one in ours), Decimal(0))
        pairs[measure] = Pair(theirs, own, theirs - own)
    return Line(*name, pairs["requests"], pairs["prompt"], pairs["completion"], pairs["usd"])


def _share(lines: Sequence[Line], total: Line, measure: str) -> float:
    pairs = [pair for line in lines if (pair := getattr(line, measure)) is not None]
    gap, whole = sum((abs(pair.gap) for pair in pairs), Decimal(0)), getattr(total, measure)
    if not gap:
        return 0.0
    return float(gap / whole.billed) if whole is not None and whole.billed else float("inf")


def _reasons(
    lines: Sequence[Line], total: Line, own: Sequence[Logged], others: Sequence[Logged], estimated: int
) -> Iterable[str]:
    """What the log knows, and then, where there is a gap, what it cannot know."""
    unpriced, uncounted = sum(one.unpriced for one in own), sum(one.uncounted for one in own)
    if others:
        calls, names = sum(one.requests for one in others), sorted({str(one.model) for one in others})
        yield f"the log has {calls:,} calls of models that the file does not name, in no figure: {', '.join(names)}"
    if all(line.agrees for line in lines):
        return
    if unpriced:
        yield f"{unpriced:,} calls in the log have no price, so that its dollars are too few: set [money.prices]"
    if uncounted:
        yield f"of {uncounted:,} calls nobody told the tokens: answers that broke off, judges, hosted ones that failed"
    if estimated:
        yield f"the tokens of {estimated:,} answers are our own estimate: their provider sent no usage"
    gaps = list(total.gaps())
    if not gaps:
        yield "the whole agrees and single days do not: the file's days do not begin at midnight UTC"
    if any(gap > 0 for gap in gaps):
        yield "other traffic of the same account, which did not pass through Stillroom"
        yield "requests that must not be recorded: keys made with --no-capture, and the header that says so"
        yield "exchanges that were dropped (stillroom_dropped_total at /metrics), or are still in the spool"
    if any(gap < 0 for gap in gaps):
        yield "the file is of some projects or keys only, or not complete yet: the last day fills for hours"


def _family(model: str | None) -> str | None:
    """A model's name without its provider and the date of its snapshot."""
    return None if model is None else _SNAPSHOT.sub("", model.rpartition("/")[2].strip().lower())
