import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from distiller.erase import erase
from distiller.settings import Settings
from proxy.ids import ulid
from proxy.log import Log
from proxy.retention import maintain
from proxy.settings import LogSettings
from router.ledger import charge, report
from tests.logs import migrated
from tests.router.conftest import PATH, TASK, add_rows, insert, judged, known, spent


def priced(log: Log, ids: list[str], usd: float | None) -> None:
    for exchange in ids:
        spent(log, "teacher", usd, exchange)


def test_an_empty_log_costs_nothing(log: Log) -> None:
    found = report(log)
    assert (found.tasks, found.teacher_usd, found.avoided_usd, found.net_usd) == ((), 0.0, 0.0, 0.0)


def test_unpriced_is_counted_and_never_zero(log: Log) -> None:
    priced(log, insert(log, ["a", "b"]), None)
    (line,) = report(log).tasks
    assert (line.teacher_usd, line.unpriced, line.avoided_usd) == (None, 2, None)
    assert report(log).unpriced == 2


def test_an_unpriced_audit_is_counted_too(log: Log) -> None:
    priced(log, insert(log, ["a"]), 1.0)
    spent(log, "audit", None)
    assert report(log).unpriced == 1


def test_unpriced_calls_do_not_lower_the_mean_of_the_priced(log: Log) -> None:
    priced(log, insert(log, ["a"]), 4.0)
    priced(log, insert(log, ["b"]), None)
    insert(log, ["c", "d", "e"], served_by="student-1")
    (line,) = report(log).tasks
    assert (line.exchanges, line.served, line.teacher_usd, line.unpriced) == (5, 3, 4.0, 1)
    assert line.avoided_usd == pytest.approx(3 * 4.0)


def test_what_was_avoided_is_estimated_from_the_covered_exchanges(log: Log) -> None:
    cheap, dear = insert(log, ["short"]), insert(log, ["very long"])
    priced(log, cheap, 1.0)
    priced(log, dear, 9.0)
    candidate = known(log)
    judged(log, candidate, [1.0], exchange=cheap[0])
    judged(log, candidate, [0.0], exchange=dear[0], covered=False)
    insert(log, ["x", "y"], served_by=candidate.id)
    assert report(log).avoided_usd == pytest.approx(2 * 1.0)


def test_the_net_is_what_was_avoided_less_all_that_it_took(log: Log) -> None:
    priced(log, insert(log, ["a", "b"]), 5.0)
    insert(log, ["c", "d", "e"], served_by="student-1")
    charge(log, "serving", 1.5, 3.0, "hour")
    charge(log, "serving", 0.5, 1.0, "hour")
    charge(log, "training", 4.0, 0.5, "hour", task=TASK, model="student-1")
    charge(log, "audit", 0.25, 1.0, "exchange", task=TASK)
    charge(log, "judge", 0.125, 2.0, "question", task=TASK)
    charge(log, "rationale", 0.0625, 1.0, "question", task=TASK)
    charge(log, "repeat", 0.03125, 1.0, "question", task=TASK)
    found = report(log)
    assert (found.teacher_usd, found.avoided_usd) == (10.0, 15.0)
    assert (found.serving_usd, found.serving_hours) == (2.0, 4.0)
    assert (found.training_usd, found.audit_usd, found.judge_usd) == (4.0, 0.25, 0.125)
    assert (found.rationale_usd, found.tasks[0].rationale_usd) == (0.0625, 0.0625)
    assert (found.repeat_usd, found.tasks[0].repeat_usd) == (0.03125, 0.03125)
    assert found.net_usd == pytest.approx(15.0 - 2.0 - 4.0 - 0.25 - 0.125 - 0.0625 - 0.03125)


def test_what_hosted_candidates_are_paid_is_spent(log: Log) -> None:
    priced(log, insert(log, ["a", "b"]), 5.0)
    insert(log, ["c", "d"], served_by="rival-1")
    for kind, usd in (("shadow", 0.5), ("candidate", 1.0), ("candidate", 2.0), ("fallback", None)):
        spent(log, kind, usd)
    found = report(log)
    assert (found.avoided_usd, found.hosted_usd, found.unpriced) == (10.0, 3.5, 1)
    assert found.net_usd == pytest.approx(10.0 - 3.5)
    spent(log, "candidate", None)
    found = report(log)
    assert (found.hosted_usd, found.net_usd, found.unpriced) == (None, None, 2)


def test_a_loss_is_shown_as_one(log: Log) -> None:
    insert(log, ["a"])
    charge(log, "training", 4.0, 0.5, "hour", task=TASK)
    assert report(log).net_usd == pytest.approx(-4.0)


def test_the_net_is_unknown_while_a_served_exchange_is_unpriced(log: Log) -> None:
    priced(log, insert(log, ["a"]), 1.0)
    insert(log, ["b"], served_by="student-1")
    insert(log, ["c"], task="unpriced", served_by="student-2")
    found = report(log)
    assert (found.avoided_usd, found.net_usd) == (None, None)
    assert {line.task: line.avoided_usd for line in found.tasks} == {TASK: 1.0, "unpriced": None}


def test_tasks_are_listed_dearest_first_and_only_chat_counts(log: Log) -> None:
    priced(log, insert(log, ["a"]), 1.0)
    (dear,) = insert(log, ["b"], task="dear", fallback="unsure")
    spent(log, "teacher", 7.0, dear, "dear")
    insert(log, ["m"], path="/v1/models", task=None)
    found = report(log).tasks
    assert [line.task for line in found] == ["dear", TASK]
    assert [line.fallbacks for line in found] == [1, 0]
    assert replace(found[0], task=TASK, teacher_usd=1.0, fallbacks=0) == found[1]


def test_no_number_of_dollars_is_unpriced(log: Log) -> None:
    priced(log, insert(log, ["a"]), float("nan"))
    priced(log, insert(log, ["b"]), float("inf"))
    priced(log, insert(log, ["c"]), 2.0)
    (line,) = report(log).tasks
    assert (line.teacher_usd, line.unpriced) == (2.0, 2)


def test_sums_do_not_depend_on_the_order_in_which_the_log_keeps_its_rows(log: Log) -> None:
    for task, costs in (("forth", (0.1, 0.2, 0.3)), ("back", (0.3, 0.2, 0.1))):
        for usd, identity in zip(costs, insert(log, ["a", "b", "c"], task=task), strict=True):
            spent(log, "teacher", usd, identity, task)
        insert(log, ["d"], task=task, served_by="student-1")
    forth, back = report(log).tasks
    assert replace(forth, task="back") == replace(back, task="back")
    assert forth.teacher_usd == 0.6


# Costs whose sum as doubles depends on the order.
USD = st.none() | st.sampled_from([0.1, 0.3, 1e-7, 1 / 3, 12345.678]) | st.floats(0, 1e6)
EXCHANGE = st.fixed_dictionaries(
    {
        "task": st.sampled_from([TASK, "other", None]),
        "path": st.sampled_from([PATH, PATH, "/v1/embeddings", "/v1/models"]),
        "served_by": st.sampled_from(["teacher", "teacher", "student-1"]),
        "fallback": st.sampled_from([None, "unsure"]),
        "status": st.sampled_from([200, 200, 500]),
        "age": st.integers(0, 6),
        "user": st.sampled_from(["ann", "bob", "cid"]),
        "usd": USD,
        "judged": st.sampled_from([None, True, False]),
        "audited": st.booleans(),
    }
)
STEP = st.integers(1, 6) | st.sampled_from(["ann", "bob"])


def happened(log: Log, given: dict[str, Any]) -> None:
    """One exchange, charged as ingest does, with its verdict and audit."""
    one = dict(given)
    usd, covered, audited, user, age = (one.pop(key) for key in ("usd", "judged", "audited", "user", "age"))
    asked = json.dumps({"messages": [], "user": user})
    one |= {"id": ulid(), "ts": datetime.now(UTC) - timedelta(days=age), "request": asked, "request_encoding": "utf-8"}
    add_rows(log, "exchanges", [one])
    charge = {"id": one["id"], "task": one["task"], "exchange": one["id"], "path": one["path"], "quantity": 1.0}
    if one["served_by"] == "teacher" and one["status"] == 200 and one["path"] != "/v1/models":
        add_rows(log, "spend", [charge | {"kind": "teacher", "usd": usd}])
    if audited:
        add_rows(log, "spend", [charge | {"kind": "audit", "usd": usd, "id": ulid(), "path": None}])
    if covered is not None:
        verdict = {"id": ulid(), "exchange": one["id"], "kind": "shadow", "verdict": 1.0, "answer": "quoted"}
        add_rows(log, "verdicts", [verdict | {"covered": covered}])


@settings(
    max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(st.lists(EXCHANGE, min_size=8, max_size=25), st.lists(STEP, min_size=2, max_size=4))
def test_whatever_is_dropped_the_books_stay(
    tmp_path_factory: pytest.TempPathFactory, exchanges: list[dict[str, Any]], steps: list[int | str]
) -> None:
    home = tmp_path_factory.mktemp("home")
    log = migrated(home)
    for one in exchanges:
        happened(log, one)
    charge(log, "training", 0.1, 0.5, "hour", task=TASK)
    for hours in (0.1, 0.7, 1e-5):
        charge(log, "serving", hours / 3, hours, "hour")
    before = report(log)
    for step in steps:
        if isinstance(step, int):
            maintain(LogSettings(), home, home / "spool", step, datetime.now(UTC))
        else:
            erase(Settings(home=str(home)), step)
        assert report(log) == before
    limit = datetime.now(UTC) - timedelta(days=min([step for step in steps if isinstance(step, int)], default=9) + 1)
    assert log.query("SELECT count(*) FROM exchanges WHERE ts < ?", [limit]) == [(0,)]
    log.close()
