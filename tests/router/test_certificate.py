import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Log
from router.certificate import POINTS, QUOTED, WORST, certificate, examples, read_certificate, with_examples
from router.parity import lower_path, parity, upper_path
from router.registry import Candidate
from router.signing import canonical
from tests.router.conftest import add_rows, insert, judged, known

FLOOR = 0.1


def compared(log: Log, candidate: Candidate, verdicts: Sequence[float], **columns: Any) -> None:
    """Covered verdicts on exchanges that are in the log; `columns` are of the verdicts."""
    exchanges = insert(log, [f"where is order {number}" for number in range(len(verdicts))], tenant="ann@example.com")
    rows = [
        {"id": ulid(), "candidate": candidate.id, "exchange": exchange, "kind": "shadow", "verdict": verdict}
        | {"confidence": 0.9, "covered": True, "answer": "shipping"}
        | columns
        for exchange, verdict in zip(exchanges, verdicts, strict=True)
    ]
    add_rows(log, "verdicts", rows)


def issued(log: Log, candidate: Candidate) -> dict[str, Any]:
    """As it is read back from a transition."""
    document: dict[str, Any] = json.loads(json.dumps(certificate(log, candidate, FLOOR)))
    return document


def test_it_can_be_computed_again_from_the_verdicts_of_its_snapshot(log: Log) -> None:
    candidate = known(log, margin=0.1)
    judged(log, candidate, [1.0] * 120)
    proof = issued(log, candidate)
    judged(log, candidate, [0.0] * 300)  # What came later is not part of the proof.
    rows = log.query(
        f"SELECT verdict FROM verdicts AT (VERSION => {proof['verdict_snapshot']}) "
        "WHERE candidate = ? AND kind = 'shadow' AND covered ORDER BY id",
        [proof["candidate"]],
    )
    again = parity([row[0] for row in rows], proof["parity"]["margin"], proof["parity"]["alpha"])
    assert proof["parity"] == {name: getattr(again, name) for name in again.__slots__}
    assert again.proven
    assert (proof["ordinal"], proof["training_snapshot"], proof["threshold"]) == (1, 3, 0.5)
    assert (proof["shadowed"], proof["failed"], proof["coverage"]) == (120, 0, 1.0)
    assert proof["verdicts"]["first"] < proof["verdicts"]["last"]


@pytest.mark.parametrize(("margin", "claimed"), [(0.05, "95 %"), (0.025, "97.5 %"), (0.1, "90 %")])
def test_it_claims_no_more_than_was_tested(log: Log, margin: float, claimed: str) -> None:
    candidate = known(log, margin=margin)
    assert f"at least {claimed} of the task" in certificate(log, candidate, FLOOR)["claim"]


def test_without_a_verdict_it_proves_nothing(log: Log) -> None:
    proof = issued(log, known(log))
    assert (proof["parity"]["proven"], proof["path"]["points"], proof["slices"]["table"]) == (False, [], [])
    assert proof["ceiling"] == {"measured": 0, "mean": None}


def test_the_path_shows_every_visible_change_and_is_never_long(log: Log) -> None:
    candidate = known(log)
    scores = [1.0] * 300 + [0.0, 1.0] * 150 + [1.0] * 300
    judged(log, candidate, scores)
    path = issued(log, candidate)["path"]
    points = np.array(path["points"])
    assert 20 < len(points) <= POINTS
    assert points[-1][0] == len(scores)
    full = np.column_stack([lower_path(scores, candidate.alpha), upper_path(scores, candidate.alpha)])
    known_then = full[points[:, 0].astype(int) - 1]
    assert (known_then == points[:, 1:]).all()
    last = np.searchsorted(points[:, 0], np.arange(1, len(scores) + 1), side="right") - 1
    assert (np.abs(full - points[last, 1:]) < path["step"]).all()


def test_the_ceiling_is_how_the_teacher_agrees_with_itself_where_that_was_measured(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 3)
    judged(log, candidate, [1.0] * 2, yardstick=0.5)
    judged(log, candidate, [1.0] * 2, yardstick=1.0)
    assert issued(log, candidate)["ceiling"] == {"measured": 4, "mean": 0.75}


def test_the_most_harmful_come_first_and_only_covered_ones_count(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 30)
    judged(log, candidate, [0.0], covered=False)
    judged(log, candidate, [0.5], confidence=0.99)
    judged(log, candidate, [0.0], confidence=0.6)
    judged(log, candidate, [0.0], confidence=0.8)
    judged(log, candidate, [0.0], confidence=None)
    worst = issued(log, candidate)["disagreements"]
    assert [(one["verdict"], one["confidence"]) for one in worst] == [(0.0, 0.8), (0.0, 0.6), (0.0, None), (0.5, 0.99)]
    judged(log, candidate, [0.0] * 40)
    assert len(issued(log, candidate)["disagreements"]) == WORST


def test_what_is_stored_quotes_nobody(log: Log) -> None:
    candidate = known(log)
    compared(log, candidate, [0.0] * 5)
    text = json.dumps(issued(log, candidate))
    exchanges = [row[0] for row in log.query("SELECT id FROM exchanges")]
    assert not [word for word in ["where is", "shipping", "ann@example.com", *exchanges] if word in text]
    assert '"tenant 1"' in text


def test_examples_quote_input_and_both_answers(log: Log) -> None:
    candidate = known(log)
    compared(log, candidate, [1.0, 0.0])
    found = with_examples(log, issued(log, candidate))["examples"]
    assert "redacted" in found["note"]
    (one,) = found["quoted"]
    assert (one["input"], one["teacher"], one["candidate"]) == ("where is order 1", "billing", "shipping")
    assert log.query("SELECT count(*) FROM exchanges WHERE id = ?", [one["exchange"]]) == [(1,)]


def test_an_example_is_no_longer_than_said_and_always_text(log: Log) -> None:
    candidate = known(log)
    compared(log, candidate, [0.0], answer="x" * (QUOTED + 1))
    log.query("UPDATE exchanges SET request = ?", [json.dumps({"messages": [{"content": "half \ud800"}]})])
    (one,) = examples(log, issued(log, candidate))
    assert (len(one["candidate"]), one["input"]) == (QUOTED + 1, "half ?")


@pytest.mark.parametrize(
    "request_body", ["no json", "[]", '{"messages": []}', '{"messages": [{"content": [1]}]}', "[" * 9999]
)
def test_a_strange_request_is_quoted_as_it_is(log: Log, request_body: str) -> None:
    candidate = known(log)
    compared(log, candidate, [0.0])
    log.query("UPDATE exchanges SET request = ?", [request_body])
    (one,) = examples(log, issued(log, candidate))
    assert one["input"][:3] in request_body


def test_an_exchange_that_is_gone_is_quoted_no_more(log: Log) -> None:
    candidate = known(log)
    compared(log, candidate, [0.0, 0.0])
    proof = issued(log, candidate)
    log.query("DELETE FROM exchanges WHERE id = (SELECT min(id) FROM exchanges)")
    assert [one["verdict_id"] for one in examples(log, proof)] == [proof["disagreements"][1]["verdict_id"]]


def test_it_is_read_back(log: Log) -> None:
    proof = issued(log, known(log))
    assert read_certificate(json.dumps(proof, indent=2)) == read_certificate(canonical(proof).decode()) == proof


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not sound JSON"),
        ("{", "not sound JSON"),
        ("[" * 100_000, "not sound JSON"),
        ('{"task": 1, "task": 2}', "a name stands twice"),
        ('{"task": 1e999}', "not sound JSON"),
        ('{"task": NaN}', "not sound JSON"),
        ("1" * 5000, "not sound JSON"),
        ("[]", "write one with"),
        ('{"task": "a", "candidate": "b"}', "write one with"),
        ("<!doctype html>", "page for reading"),
    ],
)
def test_what_is_no_certificate_is_said(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_certificate(text)
