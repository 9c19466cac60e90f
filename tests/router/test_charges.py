import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.derive import CHAT, Derived
from proxy.exchange import Exchange
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.kinds import Call
from proxy.log import Log
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.spool import SpoolWriter
from router.charges import Answer, Charge, append, append_answers, charge
from router.judging import Bill
from router.registry import HOSTED, LIVE, move
from router.rivals import charge_answers
from router.verdicts import Costs, Verdict, record
from tests.logs import migrated
from tests.router.conftest import TASK, known


def cent_a_token(call: Call) -> float | None:
    return None if call.prompt is None or call.completion is None else (call.prompt + call.completion) / 100


def test_an_event_is_written_once_however_often_it_is_tried(log: Log) -> None:
    one = Charge("audit", 0.5, 1.0, "exchange", TASK, "m", "e1")
    for _ in range(2):
        log.transaction(lambda connection: append(connection, [one, Charge("serving", None, 2.0, "hour")]))
    log.transaction(lambda connection: append(connection, [Charge("judge", 1.0, 1.0, "question", id=one.id)]))
    rows = log.query("SELECT kind, usd, quantity, unit, task, model, exchange FROM spend ORDER BY kind, id")
    assert rows == [
        ("audit", 0.5, 1.0, "exchange", TASK, "m", "e1"),
        ("judge", 1.0, 1.0, "question", None, None, None),  # The same id of another kind is another event.
        ("serving", None, 2.0, "hour", None, None, None),
        ("serving", None, 2.0, "hour", None, None, None),
    ]


def test_an_answer_has_the_price_of_who_was_asked(log: Log, tmp_path: Path) -> None:
    Ingest(log, tmp_path / "spool", 7, lambda call: 3.0 if call.model == "m" and call.tier == "flex" else None)
    said = Derived(prompt_tokens=9, completion_tokens=1, service_tier="flex")
    answers = [Answer("shadow", said, TASK, "rival-1", asked, "e1") for asked in ("m", "n", None)]
    for _ in range(2):
        log.transaction(lambda connection: append_answers(connection, answers))
    rows = log.query("SELECT model, usd, unit FROM spend ORDER BY id")
    assert rows == [("rival-1", 3.0, "exchange"), ("rival-1", None, "exchange"), ("rival-1", None, "exchange")]


class Flaky:
    """A log whose transactions are lost to another writer, before or after their work, or only seem to be."""

    def __init__(self, log: Log, outcomes: list[str]) -> None:
        self.outcomes, self._once = outcomes, log._once
        log._once = self.once  # type: ignore[method-assign]

    def once(self, work: Callable[[duckdb.DuckDBPyConnection], Any]) -> Any:
        outcome = self.outcomes.pop() if self.outcomes else "well"
        if outcome == "lost first":
            raise duckdb.TransactionException("conflict")
        if outcome == "lost at the end":

            def lost(connection: duckdb.DuckDBPyConnection) -> None:
                work(connection)
                raise duckdb.TransactionException("conflict")

            return self._once(lost)
        done = self._once(work)
        if outcome == "seems lost":
            raise duckdb.TransactionException("conflict")
        return done


class World:
    """All that is paid for, with what the books have to say of it in the end."""

    def __init__(self, home: Path, outcomes: list[str]) -> None:
        self.log, self.spool = migrated(home), home / "spool"
        self.ingest = Ingest(self.log, self.spool, 7, cent_a_token)
        card = {"data_until": "2020-01-01T00:00:00+00:00", "rival": "r", "model": "small", "labels": [], "static": []}
        self.rival = known(self.log, "rival-1", kind=HOSTED, card=card)
        move(self.log, self.rival, LIVE, "for the test")
        self.expected: Counter[tuple[str, float | None]] = Counter()
        self.exchanges: list[str] = []
        Flaky(self.log, outcomes)

    def traffic(self, served_by: str, fallback: str | None, tokens: int) -> None:
        usage = {"prompt_tokens": tokens, "completion_tokens": 1}
        answer = {"choices": [{"message": {"content": "billing"}, "finish_reason": "stop"}], "usage": usage}
        one = Exchange(
            id=ulid(), ts=4e9, method="POST", path=CHAT, task=TASK, status=200, served_by=served_by, fallback=fallback,
            request=b'{"model":"gpt-4o","messages":[]}', response=json.dumps(answer).encode(),
        )  # fmt: skip
        writer = SpoolWriter(self.spool, 1 << 30, 3600)
        writer.append(one.line(Redactor(SECRETS_ONLY)))
        writer.rotate()
        self.exchanges.append(one.id)
        self.expected["teacher" if served_by == "teacher" else "candidate", (tokens + 1) / 100] += 1
        if fallback:
            self.expected["fallback", None] += 1

    def compared(self, exchange: str, tokens: int) -> None:
        said = Derived(model="gpt-4o", prompt_tokens=tokens, completion_tokens=1)
        verdict = Verdict(exchange, "shadow", 1.0, None, True, "billing", 1.0, None)
        costs = Costs([(exchange, "audit", said)], [Bill(exchange, 2, 0.25)], [(exchange, said)])
        record(self.log, self.rival, [verdict], costs, "judge")
        self.expected.update([("audit", (tokens + 1) / 100), ("judge", 0.25), ("shadow", (tokens + 1) / 100)])

    def crash_after_ingest(self) -> None:
        """The rows are there, and the segments still in their first place."""
        for segment in (self.spool / "ingested").glob("*.ndjson"):
            shutil.move(segment, self.spool / segment.name)

    def serve(self, hours: float) -> None:
        charge(self.log, "serving", hours, hours, "hour")
        self.expected["serving", hours] += 1


TOKENS = st.integers(1, 50)
STEP = st.one_of(
    st.tuples(st.just("traffic"), st.sampled_from(["teacher", "rival-1"]), st.none(), TOKENS),
    st.tuples(st.just("traffic"), st.just("teacher"), st.just("candidate timed out"), TOKENS),
    st.tuples(st.just("compared"), st.integers(0, 9), TOKENS),
    st.tuples(st.just("serve"), st.sampled_from([0.5, 0.25])),
    st.sampled_from([("ingest",), ("charge answers",), ("crash",)]),
)
OUTCOME = st.sampled_from(["well", "lost first", "lost at the end", "seems lost"])


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.lists(STEP, min_size=6, max_size=12), st.lists(OUTCOME, min_size=6, max_size=20))
def test_nothing_is_counted_twice_whatever_is_retried_crashes_falls_back_or_is_shadowed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]], outcomes: list[str]
) -> None:
    world = World(tmp_path_factory.mktemp("home"), outcomes)
    for step in [*steps, ("ingest",), ("crash",), ("ingest",), ("charge answers",), ("charge answers",)]:
        match step:
            case ("traffic", served_by, fallback, tokens):
                world.traffic(served_by, fallback, tokens)
            case ("compared", which, tokens):
                if world.exchanges:
                    world.compared(world.exchanges[which % len(world.exchanges)], tokens)
            case ("serve", hours):
                world.serve(hours)
            case ("ingest",):
                world.ingest.run()
            case ("charge answers",):
                charge_answers(world.log)
            case ("crash",):
                world.crash_after_ingest()
    found = Counter(world.log.query("SELECT kind, usd FROM spend"))
    assert found == world.expected
    assert world.log.query("SELECT count(*), count(DISTINCT (id, kind)) FROM spend") == [(found.total(),) * 2]
    compared = sum(step[0] == "compared" for step in steps) if world.exchanges else 0
    assert world.log.query("SELECT count(*), count(DISTINCT id) FROM exchanges") == [(len(world.exchanges),) * 2]
    ((verdicts, different),) = world.log.query("SELECT count(*), count(DISTINCT id) FROM verdicts")
    assert verdicts == different <= compared
    world.log.close()
