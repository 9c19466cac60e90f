import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.dashboard.differing import GONE, NEW, SAME
from distiller.dashboard.task_view import FRESH, SHOWN, curves, mark, view
from distiller.settings import Settings
from proxy.dropping import drop
from proxy.errors import BadInput
from proxy.log import Log
from router.coverage import Risk
from router.evaluators import JUDGE
from router.evidence import evidence
from router.freezes import freeze
from router.lifecycle import advance, promote
from router.parity import lower_path, upper_path
from router.registry import CANARY, RETIRED, SHADOW, move
from router.settings import RouterSettings
from tests.logs import migrated
from tests.router.conftest import TASK, insert, judged, known, now
from tests.router.test_certificate import compared


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path))


def test_of_what_is_not_there_it_says_so(log: Log, settings: Settings) -> None:
    with pytest.raises(BadInput, match="there is no task 'nothing'"):
        view(log, settings, "nothing")
    insert(log, ["x"])
    bare = view(log, settings, TASK)
    assert (bare.chosen, bare.proof, bare.candidates, bare.moves, bare.after) == (None, None, (), (), ())
    known(log)
    with pytest.raises(BadInput, match="no candidate 'student-9'"):
        view(log, settings, TASK, "student-9")


def test_a_task_whose_exchanges_are_past_retention_is_there(log: Log, settings: Settings) -> None:
    insert(log, ["x"])
    log.transaction(lambda connection: drop(connection, "task = $task", {"task": TASK}))
    assert log.query("SELECT count(*) FROM exchanges") == [(0,)]
    assert view(log, settings, TASK).candidates == ()


def test_who_answers_is_looked_at_first_and_others_by_name(log: Log, settings: Settings) -> None:
    first = known(log, "student-1")
    move(log, first, CANARY, "proved", share=0.01)
    second = known(log, "student-2")
    assert [one.id for one in view(log, settings, TASK).candidates] == [first.id, second.id]
    chosen = view(log, settings, TASK).chosen
    assert chosen is not None
    assert (chosen.id, chosen.stage) == (first.id, CANARY)
    other = view(log, settings, TASK, second.id)
    assert other.chosen is not None
    assert other.standing["candidate"] == second.id
    assert "not yet" in str(other.standing["verdict"])
    move(log, now(log, first.id), RETIRED, "rolled back: why not")
    newest = view(log, settings, TASK).chosen
    assert newest is not None
    assert newest.id == second.id


def test_the_bounds_are_those_of_the_test_and_have_their_time(log: Log, settings: Settings) -> None:
    candidate, scores = known(log), [1.0] * 40 + [0.0] * 3 + [1.0] * 60
    judged(log, candidate, scores)
    found = view(log, settings, TASK).proof
    assert found is not None
    lower, upper = lower_path(scores, candidate.alpha), upper_path(scores, candidate.alpha)
    assert [point.n for point in (found.path[0], found.path[-1])] == [1, len(scores)]
    for point in found.path:
        assert (point.lower, point.upper) == (lower[point.n - 1], upper[point.n - 1])
        assert point.ts is not None
    assert found.parity["n"] == evidence(log, candidate).parity.n
    assert (found.bar, found.issued, found.shadowed) == (0.95, None, len(scores))


def test_a_promoted_candidate_is_shown_as_its_certificate_has_it(log: Log, settings: Settings) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 150)
    assert advance(log, candidate, RouterSettings())
    judged(log, candidate, [0.0] * 9)  # Shadow verdicts that came later are no part of what was proved.
    judged(log, candidate, [1.0, 0.0] * 10, kind="audit")
    found = view(log, settings, TASK)
    assert found.proof is not None
    assert (found.proof.shadowed, found.proof.path[-1].n) == (150, 150)
    assert found.proof.issued is not None
    assert (found.after[0].n, found.after[-1].n) == (1, 20)
    assert found.after[-1].upper < 1
    assert found.after_bar == 0.95


def test_disagreements_stand_side_by_side_with_what_differs(log: Log, settings: Settings) -> None:
    candidate = known(log)
    compared(log, candidate, [0.0, 1.0, 0.5], answer="billing please")
    compared(log, candidate, [0.25] * (SHOWN + 2))
    log.query("UPDATE verdicts SET exchange = 'gone' WHERE verdict = 0.5")
    found = view(log, settings, TASK).proof
    assert found is not None
    worst = found.worst[0]
    assert (len(found.worst), worst.verdict, worst.asked, worst.teacher) == (SHOWN, 0.0, "where is order 0", "billing")
    assert worst.difference is not None
    assert [(piece.kind, piece.text) for piece in worst.difference.pieces] == [(SAME, "billing"), (NEW, " please")]
    other = found.worst[1].difference
    assert other is not None
    assert [piece.kind for piece in other.pieces] == [GONE, NEW]
    log.query("DELETE FROM exchanges")
    erased = view(log, settings, TASK).proof
    assert erased is not None
    assert (erased.worst[0].verdict, erased.worst[0].asked, erased.worst[0].difference) == (0.0, None, None)


def test_slices_are_those_that_block(log: Log, settings: Settings) -> None:
    compared(log, known(log), [0.0] * 40)
    found = view(log, settings, TASK).proof
    assert found is not None
    by_name = {(one["facet"], one["value"]): one for one in found.slices["table"]}
    assert by_name["tenant", "tenant 1"]["behind"]
    assert by_name["language", "Latin script"]["n"] == 40


def test_the_curve_marks_what_was_certified(log: Log) -> None:
    candidate = known(log)
    for sure, verdict, covered in ((0.9, 1.0, True), (0.8, 0.0, True), (0.3, 1.0, False), (0.2, 0.0, False)):
        judged(log, candidate, [verdict], confidence=sure, covered=covered)
    judged(log, candidate, [0.0], confidence=None, covered=False, error="candidate timed out")
    found = curves(log, candidate)
    assert [(point.threshold, point.coverage, point.risk) for point in found.shadow] == [
        (0.9, 0.2, 0.0), (0.8, 0.4, 0.5), (0.3, pytest.approx(0.6), pytest.approx(1 / 3)), (0.2, 0.8, 0.5),
    ]  # fmt: skip
    assert found.at == Risk(0.5, 0.4, 0.5, 2)
    judge = curves(log, replace(candidate, evaluator=JUDGE))
    assert [point.threshold for point in judge.shadow] == [0.9, 0.8]
    assert curves(log, known(log, "student-2")).at is None


def test_the_holdout_has_a_curve_on_the_scale_of_the_calibration(log: Log, tmp_path: Path) -> None:
    lines = [
        {"exchange": "a", "confidence": 0.9, "verdict": 1.0, "finished": True, "logprobs": [-0.1, -3.0]},
        {"exchange": "b", "confidence": 0.1, "verdict": 0.0, "finished": True, "logprobs": [-2.0, -0.1]},
        {"exchange": "c", "confidence": 0.9, "verdict": 0.0, "finished": False, "logprobs": [-0.1]},
    ]
    (tmp_path / "holdout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    candidate = replace(known(log), bundle=str(tmp_path))
    card = dict(candidate.card)
    plain = curves(log, candidate).holdout
    assert [(point.threshold, point.n, point.risk) for point in plain] == [(0.9, 1, 0.0), (0.1, 2, 0.5)]
    assert plain[-1].coverage == pytest.approx(2 / 3)
    scaled = curves(log, replace(candidate, card=card | {"calibration": [[0.1, 0.5], [0.9, 0.7]]})).holdout
    assert [point.threshold for point in scaled] == [pytest.approx(0.7002), pytest.approx(0.4996)]
    early = curves(log, replace(candidate, card=card | {"first_tokens": 1})).holdout
    assert [point.n for point in early] == [2, 3]


def test_history_freezes_and_offers_are_there(log: Log, settings: Settings) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 150)
    promote(log, TASK, settings.router)
    freeze(log, TASK, "audit week")
    found = view(log, settings, TASK)
    assert found.frozen is not None
    assert found.frozen.reason == "audit week"
    assert [(one.stage_from, one.stage_to, one.certified) for one in found.moves] == [
        (SHADOW, CANARY, True), ("", SHADOW, False),
    ]  # fmt: skip
    assert [(one.candidate.id, one.passes) for one in found.offers] == [(candidate.id, True)]
    assert found.cheapest == candidate.id


def test_what_is_kept_is_made_anew_when_there_is_something_new(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0])
    seen = {mark(log, TASK, 0.0), mark(log, TASK, FRESH - 1)}
    assert len(seen) == 1
    insert(log, ["x"])
    assert mark(log, TASK, 0.0) in seen
    judged(log, candidate, [1.0])
    seen.add(mark(log, TASK, 0.0))
    freeze(log, TASK, "audit week")
    seen.add(mark(log, TASK, 0.0))
    move(log, candidate, RETIRED, "rolled back")
    seen.add(mark(log, TASK, 0.0))
    log.query("UPDATE verdicts SET exchange = 'made-up' WHERE exchange = '000000'")  # As an erasure does.
    seen.add(mark(log, TASK, 0.0))
    seen.add(mark(log, TASK, FRESH))
    assert len(seen) == 6
