import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.log import Log
from proxy.tasks import task_of
from router.registry import CANARY, LIVE, Candidate, candidates, move
from router.templates import FEWEST, changes, near
from tests.router.conftest import insert, known

OLD = "Say which queue the message belongs to. Answer with one word: billing or shipping."
NEW = OLD.replace("one word", "one lower case word")
OTHER = "Translate the text into French and keep its tone."


def body(instructions: str) -> dict[str, object]:
    return {"messages": [{"role": "system", "content": instructions}, {"role": "user", "content": "mine?"}]}


def asked(log: Log, instructions: str, count: int = FEWEST) -> str:
    """Exchanges whose task is named by their fingerprint; returns it."""
    task = task_of(body(instructions), None)
    insert(log, ["x"] * count, task=task, request=json.dumps(body(instructions)))
    return task


def serving(log: Log, task: str, stage: str = LIVE) -> Candidate:
    card = {"data_until": datetime.now(UTC).isoformat(), "labels": [], "static": [], "max_tokens": 1}
    move(log, known(log, task=task, card=card), stage, "for the test", {"for": "the test"}, 0.1)
    return candidates(log)[0]


@pytest.mark.parametrize("stage", [CANARY, LIVE])
def test_a_new_task_with_nearly_the_same_instructions_is_noticed(log: Log, stage: str) -> None:
    old = asked(log, OLD)
    candidate = serving(log, old, stage)
    new = asked(log, NEW)
    asked(log, OTHER)
    (change,) = changes(log, candidates(log))
    assert new != old
    assert (change.task, change.candidate, change.now, change.exchanges) == (old, candidate.id, new, FEWEST)
    assert f"{new}: its instructions changed from those of {old} on " in change.words
    assert change.words.endswith(f": {FEWEST} exchanges since went to the teacher; `stillroom distill {new}`")


def test_neither_a_try_nor_an_old_neighbour_nor_a_students_task_nor_shadow_is_a_change(log: Log) -> None:
    old = asked(log, OLD)
    asked(log, OLD.replace("one word", "two words"))  # As old as the student's data: another task, not a change.
    serving(log, old)
    asked(log, NEW, FEWEST - 1)
    assert changes(log, candidates(log)) == []
    asked(log, NEW, 1)
    assert len(changes(log, candidates(log))) == 1
    known(log, "student-2", task=task_of(body(NEW), None))  # Somebody is at it.
    assert changes(log, candidates(log)) == []


def test_a_named_task_whose_requests_lack_what_was_learned_is_noticed(log: Log) -> None:
    serving(log, "named")
    insert(log, ["x"] * FEWEST, task="named", reason="live: template changed")
    (change,) = changes(log, candidates(log))
    assert (change.task, change.now, change.exchanges) == ("named", "named", FEWEST)
    assert change.words.startswith("named: its instructions changed on ")
    insert(log, ["x"] * 20 * FEWEST, task="named", reason="live")  # So few of all: a line that is there nearly always.
    assert changes(log, candidates(log)) == []


@given(st.text(), st.text())
def test_nearness_is_symmetric_and_one_for_the_same(one: str, other: str) -> None:
    assert near(one, other) == near(other, one)
    assert near(one, one) == (1.0 if len(one.split()) > 1 else 0.0)
    assert 0.0 <= near(one, other) <= 1.0


def test_nearness_of_known_cases() -> None:
    assert near(OLD, NEW) > 0.8
    assert near(OLD, OTHER) < 0.2
