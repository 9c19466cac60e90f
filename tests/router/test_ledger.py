from dataclasses import replace

import pytest

from proxy.log import Log
from router.ledger import charge, report
from tests.router.conftest import TASK, insert, judged, known, spent


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
    found = report(log)
    assert (found.teacher_usd, found.avoided_usd) == (10.0, 15.0)
    assert (found.serving_usd, found.serving_hours) == (2.0, 4.0)
    assert (found.training_usd, found.audit_usd) == (4.0, 0.25)
    assert found.net_usd == pytest.approx(15.0 - 2.0 - 4.0 - 0.25)


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
