import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ids import ulid
from proxy.log import Log
from router.evaluators import EVALUATORS
from router.gold import MOST_MORE, Told, audit_share, ignored, score_gold, told
from router.lifecycle import standing
from router.parity import log_wealth
from router.registry import Candidate, candidates
from router.said import Said
from router.settings import RouterSettings
from router.verdicts import SCORE
from tests.router.conftest import add_rows, insert, judged, known


def tell(log: Log, exchange: str, tenant: str | None = None, ts: datetime | None = None, **fields: Any) -> str:
    """Feedback as a worker records it; its id."""
    receipt = {"exchange": exchange, "score": None, "answer": None, "comment": None} | fields
    row = {
        "id": ulid(), "ts": ts or datetime.now(UTC), "path": "/v1/feedback", "served_by": "stillroom", "status": 200,
        "tenant": tenant, "response": json.dumps(receipt),
    }  # fmt: skip
    add_rows(log, "exchanges", [row])
    return str(row["id"])


def verdicts(log: Log) -> dict[str, tuple[float, float | None, float | None, str | None]]:
    found = f"SELECT exchange, {SCORE}, candidate_right, teacher_right, gold FROM verdicts"
    return {row[0]: row[1:] for row in log.query(found)}


def shadowed(log: Log, answer: str = "billing", teacher: str = "billing", **columns: Any) -> str:
    """An exchange, and the verdict of the candidate's answer to it."""
    (exchange,) = insert(log, ["x"], answer=teacher)
    agreed = EVALUATORS["label"]({}, Said(teacher), Said(answer))
    judged(log, candidate_of(log), [agreed], exchange=exchange, answer=answer, **columns)
    return exchange


def candidate_of(log: Log) -> Candidate:
    return (candidates(log) or [known(log)])[0]


def test_both_answers_are_scored_on_the_right_one_whoever_it_was_that_answered_first(log: Log) -> None:
    candidate = candidate_of(log)
    cases = {
        ("shipping", "billing", "shipping"): (1.0, 0.0),  # (the candidate's, the teacher's, the right one)
        ("shipping", "billing", "Billing."): (0.0, 1.0),
        ("billing", "billing", "shipping"): (0.0, 0.0),
        ("billing", "billing", "billing"): (1.0, 1.0),
    }
    wanted = {}
    for (answer, teacher, right), pair in cases.items():
        exchange = shadowed(log, answer, teacher)
        wanted[exchange] = (float(pair[0] >= pair[1]), *pair, tell(log, exchange, answer=right))
    (served,) = insert(log, ["x"], answer="billing", served_by=candidate.id)  # The candidate's answer.
    judged(log, candidate, [0.0], kind="audit", exchange=served, answer="shipping")
    wanted[served] = (0.0, 0.0, 1.0, tell(log, served, answer="shipping"))
    plain = shadowed(log)
    assert score_gold(log, candidate) == 5
    assert verdicts(log) == wanted | {plain: (1.0, None, None, None)}
    assert score_gold(log, candidate) == 0
    assert told(log, candidate) == Told(0, None, 0, 4, 0.8, 0.5, 0.5)


def test_the_last_right_answer_counts(log: Log) -> None:
    candidate, exchange = candidate_of(log), shadowed(log, "billing", "shipping")
    tell(log, exchange, answer="shipping")
    assert score_gold(log, candidate) == 1
    assert verdicts(log)[exchange][:3] == (0.0, 0.0, 1.0)
    last = tell(log, exchange, answer="billing")
    tell(log, exchange, score=0.3)
    assert score_gold(log, candidate) == 1
    assert verdicts(log)[exchange] == (1.0, 1.0, 0.0, last)


def test_what_cannot_be_compared_stays(log: Log) -> None:
    candidate = candidate_of(log)
    exchanges = [shadowed(log) for _ in range(3)]
    tell(log, exchanges[0], answer="[EMAIL_1] asked")  # Which value that is, another exchange does not know.
    tell(log, exchanges[1], tenant="another", answer="shipping")
    tell(log, exchanges[2], score=0.0, comment="wrong")
    failed = shadowed(log)
    log.query("UPDATE verdicts SET answer = NULL WHERE exchange = ?", [failed])
    tell(log, failed, answer="shipping")
    before = verdicts(log)
    assert score_gold(log, candidate) == 0
    assert verdicts(log) == before


def test_scores_enter_no_test_but_make_audits_more(log: Log) -> None:
    candidate = candidate_of(log)
    served = insert(log, ["x"] * 8, served_by=candidate.id)
    (teachers,) = insert(log, ["x"])
    tell(log, teachers, score=0.0)
    tell(log, served[0], score=1.0)
    assert audit_share(log, candidate, 0.05) == 0.05
    tell(log, served[1], score=0.0, ts=datetime.now(UTC) - timedelta(days=8))
    assert audit_share(log, candidate, 0.05) == 0.05
    tell(log, served[2], score=0.4)
    assert audit_share(log, candidate, 0.05) == pytest.approx(0.1)
    for exchange in served[3:]:
        tell(log, exchange, score=0.0)
    assert audit_share(log, candidate, 0.05) == pytest.approx(0.05 * MOST_MORE)
    assert audit_share(log, candidate, 0.5) == 1.0
    assert audit_share(log, candidate, 0.0) == 0.0
    assert score_gold(log, candidate) == 0
    assert log.query("SELECT count(*) FROM verdicts") == [(0,)]
    found = told(log, candidate)
    assert (found.scored, found.complaints, found.gold, found.gold_share) == (8, 7, 0, 0.0)
    assert found.mean_score == pytest.approx(1.4 / 8)
    assert standing(log, candidate, RouterSettings())["feedback"] == {
        "scored": 8, "mean_score": found.mean_score, "complaints": 7, "gold": 0, "gold_share": 0.0,
        "candidate_right": None, "teacher_right": None,
    }  # fmt: skip


def test_only_an_evaluator_of_ours_can_say(log: Log) -> None:
    exchange = shadowed(log)
    tell(log, exchange, answer="shipping")
    assert score_gold(log, replace(candidate_of(log), evaluator="another")) == 0
    assert verdicts(log)[exchange] == (1.0, None, None, None)


def test_feedback_that_names_no_exchange_of_its_tenant_is_counted(log: Log) -> None:
    exchange = shadowed(log)
    about = tell(log, exchange, score=1.0)
    assert ignored(log) == 0
    tell(log, exchange, tenant="another", score=0.0)
    tell(log, ulid(), score=0.0)
    tell(log, about, score=0.0)  # Of feedback there is no feedback.
    assert ignored(log) == 3


labels = st.sampled_from(["billing", "shipping", "other"])


@given(
    st.lists(st.tuples(labels, labels, labels, st.booleans()), min_size=1, max_size=60), st.sampled_from([0.01, 0.2])
)
def test_whichever_right_answers_come_nobody_gets_richer_than_with_all_of_them(
    rows: list[tuple[str, str, str, bool]], margin: float
) -> None:
    """What the docstring of `router.gold` argues: the wealth with some right answers is at most that with all."""

    def score(one: str, other: str) -> float:
        return EVALUATORS["label"]({}, Said(one), Said(other))

    whole = np.array([1 + score(right, given) - score(right, teacher) for given, teacher, right, _ in rows])
    agreed = np.array([score(teacher, given) for given, teacher, _, _ in rows])
    some = np.where([known for *_, known in rows], np.minimum(1, whole), agreed)
    assert (agreed <= some).all()
    assert (some <= whole).all()
    assert (log_wealth(some / 2, (1 - margin) / 2) <= log_wealth(whole / 2, (1 - margin) / 2) + 1e-9).all()
