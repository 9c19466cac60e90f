"""A month of traffic whose money is known beforehand, by arithmetic that shares nothing with the ledger's."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from proxy.derive import CHAT, Derived
from proxy.exchange import Exchange
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.spool import SpoolWriter
from router.books import read_books
from router.charges import charge
from router.judging import Bill
from router.ledger import Report, report
from router.prices import PriceList
from router.registry import HOSTED, LIVE, move
from router.rivals import charge_answers
from router.series import days_of
from router.settings import MoneySettings, Price, PriceChange, TokenPrices
from router.verdicts import Costs, Verdict, record
from tests.logs import migrated
from tests.router.conftest import known

TODAY = datetime.now(UTC).date()
CHANGE = TODAY - timedelta(days=15)
BATCH = TokenPrices(1.25, 5.0, 0.625)
MONEY = MoneySettings(
    prices={
        "big": Price(2.5, 10.0, 1.25, audio_input=40.0, audio_output=80.0, tiers={"batch": BATCH}),
        "small": Price(0.15, 0.6, 0.075),
    },
    price_changes=(
        PriceChange(
            2.0, 8.0, 0.5, audio_input=32.0, audio_output=64.0, reasoning=12.0, tiers={"batch": BATCH}, model="big",
            since=CHANGE,
        ),
    ),
)  # fmt: skip
# US dollars a million tokens, written down once more: before the change, and from it on.
PER_MILLION: dict[str, tuple[str, str]] = {
    "input": ("2.5", "2"), "cached": ("1.25", "0.5"), "output": ("10", "8"), "reasoning": ("10", "12"),
    "heard": ("40", "32"), "spoken": ("80", "64"), "batch input": ("1.25", "1.25"), "batch output": ("5", "5"),
    "batch cached": ("0.625", "0.625"),
}  # fmt: skip
SMALL = {"input": Decimal("0.15"), "cached": Decimal("0.075"), "output": Decimal("0.6")}


CUT_OFF = b'data: {"choices":[{"delta":{"content":"a"}}]}\n'
# What else can become of a request than that the teacher answers it.
WAYS: dict[str, dict[str, Any]] = {
    "retried": {"attempts": 3}, "fell back": {"fallback": "student-1 was unsure"},
    "student": {"served_by": "student-1"}, "failed": {"status": 500, "response": b"{}"},
    "cut off": {"stream": True, "partial": True, "response": CUT_OFF}, "unpriced": {},
    "by rival": {"served_by": "rival-1"}, "rival timed out": {"fallback": "candidate timed out"},
    "left": {"status": 0, "response": b""},
    "student broke off": {"served_by": "student-1", "stream": True, "partial": True, "response": CUT_OFF},
}  # fmt: skip


class Month:
    """What happens, and what the books have to say of it in the end."""

    def __init__(self, home: Path) -> None:
        self.random, self.home, self.log = random.Random(7), home, migrated(home)
        self.ingest = Ingest(self.log, home / "spool", 7, PriceList(MONEY))
        card = {"data_until": "2020-01-01T00:00:00+00:00", "labels": [], "static": []}
        self.student = known(self.log, "student-1", task="sort", card=card)
        self.rival = known(self.log, "rival-1", task="sort", kind=HOSTED, card=card | {"rival": "r", "model": "small"})
        for one in (self.student, self.rival):
            move(self.log, one, LIVE, "for the test")
        self.log.query("UPDATE transitions SET ts = ts - to_days(31)")
        self.usd: dict[tuple[str, str], Decimal] = defaultdict(Decimal)  # by task and kind
        self.by_day: dict[date, Decimal] = defaultdict(Decimal)  # what the teacher was paid for answers
        self.counts: Counter[str] = Counter()
        self.costs: dict[str, tuple[date, Decimal]] = {}  # of priced chat of "sort", by exchange
        self.served: Counter[date] = Counter()

    def kind(self) -> tuple[dict[str, Any], dict[str, int]]:
        """The usage that a provider tells, and the same tokens as we would sort them."""
        prompt, completion, cached = (self.random.randint(*span) for span in ((300, 4000), (50, 900), (0, 200)))
        shape = self.random.choice(["plain", "plain", "cached", "reasoning", "audio", "batch"])
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
        if shape == "plain":
            return usage, {"input": prompt, "output": completion}
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
        tokens = {"input": prompt - cached, "cached": cached, "output": completion}
        if shape == "reasoning":
            usage["completion_tokens_details"] = {"reasoning_tokens": 40}
            tokens |= {"output": completion - 40, "reasoning": 40}
        elif shape == "audio":
            usage["prompt_tokens_details"]["audio_tokens"] = 60
            usage["completion_tokens_details"] = {"audio_tokens": 30}
            tokens |= {"input": prompt - cached - 60, "heard": 60, "output": completion - 30, "spoken": 30}
        elif shape == "batch":
            usage["service_tier"] = "batch"
            tokens = {f"batch {kind}": count for kind, count in tokens.items()}
        return usage, tokens

    def exchange(self, day: date, writer: SpoolWriter) -> None:
        usage, tokens = self.kind()
        task = self.random.choice(["sort", "sort", "sort", "write"])
        way = self.random.choice(["teacher"] * 6 + [*WAYS])
        if way in ("student", "student broke off", "fell back", "by rival", "rival timed out"):
            task = "sort"
        if way == "by rival":  # Whose price is known for text alone.
            usage = {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
        answer: dict[str, Any] = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
        fields: dict[str, Any] = {"status": 200, "response": json.dumps(answer).encode(), "task": task}
        fields |= WAYS.get(way, {})
        model = "nobody-knows" if way == "unpriced" else "big"
        moment = datetime.combine(day, time(self.random.randrange(24), self.random.randrange(60), 59), UTC)
        one = Exchange(
            id=ulid(), ts=moment.timestamp(), method="POST", path=CHAT,
            request=json.dumps({"model": model, "messages": []}).encode(), **fields,
        )  # fmt: skip
        writer.append(one.line(Redactor(SECRETS_ONLY)))
        self.counts[f"exchanges {task}"] += 1
        self.counts["fallbacks"] += way in ("fell back", "rival timed out")
        self.counts["unpriced"] += way == "rival timed out"  # The teacher's answer has a price, and the rival's none.
        self.counts["answered by candidates"] += way in ("student", "student broke off", "by rival")
        if way in ("student", "by rival"):
            self.served[day] += 1
            if way == "by rival":
                self.usd["sort", "hosted"] += small(usage["prompt_tokens"], 0, usage["completion_tokens"])
        elif way == "student broke off":  # Nothing was avoided: it is asked again, and paid.
            pass
        elif way in ("unpriced", "cut off", "left"):
            self.counts["unpriced"] += 1
        elif way != "failed":
            usd = cost(day, tokens)
            self.usd[task, "teacher"] += usd
            self.by_day[day] += usd
            if task == "sort":
                self.costs[one.id] = (day, usd)

    def traffic(self) -> None:
        writer = SpoolWriter(self.home / "spool", 1 << 30, 3600)
        for back in range(29, -1, -1):
            for _ in range(self.random.randint(10, 30)):
                self.exchange(TODAY - timedelta(days=back), writer)
            writer.rotate()
            if back % 7 == 0:
                self.ingest.run()
        self.ingest.run()
        for segment in (self.home / "spool" / "ingested").glob("*.ndjson"):  # All of them once more, as after a crash.
            segment.rename(self.home / "spool" / segment.name)
        self.ingest.run()

    def evidence(self) -> None:
        """Shadow, audits, yardsticks and judges, all of them now: after the change of prices."""
        asked = self.random.sample(sorted(self.costs), 40)
        costs, verdicts = Costs(), []
        for number, exchange in enumerate(asked):
            covered = number % 4 > 0
            said = Derived(model="big", prompt_tokens=1000 + number, cached_tokens=100, completion_tokens=10)
            bought = Derived(prompt_tokens=500, cached_tokens=number, completion_tokens=20)
            costs.teacher.append((exchange, "ceiling", said))
            costs.judge.append(Bill(exchange, 2, 0.0125 if number % 2 else None))
            costs.hosted.append((exchange, bought))
            verdicts.append(Verdict(exchange, "shadow", 1.0, None, covered, "a", 1.0, None))
            again = cost(TODAY, {"input": 900 + number, "cached": 100, "output": 10})
            self.usd["sort", "audit"] += again
            self.usd["sort", "judge"] += Decimal("0.0125") * (number % 2)
            self.counts["unpriced"] += not number % 2
            self.usd["sort", "hosted"] += small(500, number, 20)
            if not covered:
                del self.costs[exchange]
        self.costs = {name: self.costs[name] for name in asked if name in self.costs}
        record(self.log, self.rival, verdicts, costs, "judge")
        costs, verdicts = Costs(), []
        for number in range(10):
            said = Derived(
                model="big", prompt_tokens=2000, cached_tokens=0, completion_tokens=number, service_tier="batch"
            )
            verdicts.append(Verdict(f"audited-{number}", "audit", 1.0, None, True, "a", 1.0, None))
            costs.teacher.append((f"audited-{number}", "audit", said))
            usd = cost(TODAY, {"batch input": 2000, "batch output": number})
            self.usd["sort", "audit"] += usd
            self.costs[f"audited-{number}"] = (TODAY, usd)
        record(self.log, self.student, verdicts, costs)

    def machines(self) -> None:
        for unit, hours in (("busy hour", 3.25), ("idle hour", 20.5), ("hour", 0.25)):
            for _ in range(3):
                charge(self.log, "serving", hours * 0.8, hours, unit)
                self.usd["", "serving"] += Decimal(str(hours)) * Decimal("0.8")
        charge(self.log, "training", 1.5 * 2.4, 1.5, "hour", "sort", "student-1")
        self.usd["sort", "training"] += Decimal("3.6")
        charge(self.log, "rationale", 0.07, 1.0, "question", "sort", "big")
        self.usd["sort", "rationale"] += Decimal("0.07")
        charge(self.log, "repeat", 0.03, 1.0, "question", "write", "big")
        self.usd["write", "repeat"] += Decimal("0.03")
        for _ in range(3):
            charge_answers(self.log)

    def avoided(self) -> Decimal:
        """Each that was served at its month's mean, or that of all months where it has none."""
        by_month: dict[date, list[Decimal]] = defaultdict(list)
        for day, usd in self.costs.values():
            by_month[day.replace(day=1)].append(usd)
        every = [usd for known in by_month.values() for usd in known]
        total = Decimal(0)
        for day, count in self.served.items():
            those = by_month.get(day.replace(day=1), every)
            total += count * sum(those, Decimal(0)) / len(those)
        return total


def cost(day: date, tokens: dict[str, int]) -> Decimal:
    after = day >= CHANGE
    return sum((count * Decimal(PER_MILLION[kind][after]) for kind, count in tokens.items()), Decimal(0)) / 1_000_000


def small(prompt: int, cached: int, completion: int) -> Decimal:
    parts = (prompt - cached) * SMALL["input"] + cached * SMALL["cached"] + completion * SMALL["output"]
    return parts / 1_000_000


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Month]:
    one = Month(tmp_path_factory.mktemp("home"))
    one.traffic()
    one.evidence()
    one.machines()
    yield one
    one.log.close()


def whole(log: Log) -> Report:
    return report(log, TODAY - timedelta(days=29), TODAY + timedelta(days=1))


def test_every_figure_is_right_to_the_cent_and_beyond(month: Month) -> None:
    found, usd = whole(month.log), month.usd
    of_kind: dict[str, Decimal] = defaultdict(Decimal)
    for (_, kind), dollars in usd.items():
        of_kind[kind] += dollars
    learning = sum(
        (of_kind[kind] for kind in ("training", "audit", "judge", "rationale", "repeat", "hosted")), Decimal(0)
    )
    expected = {
        **{f"{kind}_usd": of_kind[kind] for kind in ("teacher", "training", "audit", "judge", "rationale", "repeat")},
        "serving_usd": of_kind["serving"], "hosted_usd": of_kind["hosted"], "avoided_usd": month.avoided(),
        "net_usd": month.avoided() - of_kind["serving"] - learning,
    }  # fmt: skip
    assert min(abs(dollars) for dollars in expected.values()) > Decimal("0.001")
    for name, dollars in expected.items():
        assert getattr(found, name) == pytest.approx(float(dollars), abs=1e-9), name
        assert round(getattr(found, name), 2) == round(float(dollars), 2), name
    assert (found.serving_hours, found.busy_hours, found.idle_hours) == (72.0, 9.75, 61.5)
    assert found.unpriced == month.counts["unpriced"] > 20


def test_every_task_and_day_is_right(month: Month) -> None:
    found = {line.task: line for line in whole(month.log).tasks}
    assert {task: line.exchanges for task, line in found.items()} == {
        task: month.counts[f"exchanges {task}"] for task in ("sort", "write")
    }
    assert found["sort"].served == month.counts["answered by candidates"] > sum(month.served.values()) > 20
    assert (found["sort"].fallbacks, found["write"].fallbacks) == (month.counts["fallbacks"], 0)
    for (task, kind), dollars in month.usd.items():
        if task:
            assert getattr(found[task], f"{kind}_usd") == pytest.approx(float(dollars), abs=1e-9), (task, kind)
    books = read_books(month.log, TODAY - timedelta(days=29), TODAY + timedelta(days=1))
    days = {one.day: one.teacher_usd for one in days_of(books, {})}
    month_long = [TODAY - timedelta(days=back) for back in range(29, -1, -1)]
    assert days == pytest.approx({day: float(month.by_day[day]) for day in month_long}, abs=1e-9)
