import asyncio
import sys
from pathlib import Path

import pytest

from proxy.errors import BadInput, Unavailable
from proxy.log import Log
from router.judge import Judge, Spoken
from router.judging import Bill, Judged
from router.said import Call, Said
from router.scoring import Score, scoring
from tests.router.conftest import chat, known

BODY = {"messages": chat("Why?")}


def scored(score: Score | None, teacher: Said, other: Said) -> Judged:
    assert score is not None

    async def once() -> Judged:
        return await score("x", BODY, teacher, other)

    return asyncio.run(once())


def test_what_was_declared_at_registration_counts_and_costs_nothing(log: Log) -> None:
    card = known(log).card | {"aliases": {"pay": "billing"}}
    candidate = known(log, "student-2", card=card)
    said = scored(scoring(candidate, None), Said("billing"), Said("Pay."))
    assert said == Judged(1.0, None, Bill("x", 0, 0.0))
    assert scored(scoring(candidate, None), Said("billing"), Said("shipping")).verdict == 0.0


def test_an_evaluator_that_is_gone_is_named(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = known(log, evaluator="gone_evaluator:score")
    with pytest.raises(BadInput, match="gone_evaluator:score"):
        scoring(candidate, None)
    (tmp_path / "gone_evaluator.py").write_text("def score(request, teacher, candidate): return 0.25")
    monkeypatch.syspath_prepend(tmp_path)
    assert scored(scoring(candidate, None), Said("a"), Said("b")).verdict == 0.25
    sys.modules.pop("gone_evaluator")


def test_free_text_waits_for_a_judge_that_is_there(log: Log) -> None:
    async def gone(messages: object) -> Spoken:
        raise Unavailable("nobody is there")

    candidate, judge = known(log, evaluator="judge"), Judge("openai/gone", gone)
    assert scoring(candidate, None) is None
    said = scored(scoring(candidate, judge), Said("It is so."), Said("It is not so."))
    assert (said.verdict, said.unavailable) == (0.0, True)
    assert scoring(candidate, judge) is None  # It rests now.


def test_what_no_judge_can_read_is_no_agreement_and_costs_nothing(log: Log) -> None:
    async def never(messages: object) -> Spoken:
        raise AssertionError("it costs")

    score = scoring(known(log, evaluator="judge"), Judge("openai/never", never))
    calls = Said(None, (Call("add", {}),))
    for teacher, other in ((Said("It is so."), Said("  ")), (Said(""), Said("So.")), (Said("So."), calls)):
        assert scored(score, teacher, other) == Judged(0.0, None, Bill("x", 0, 0.0))
    assert scored(score, Said("So."), Said("So. ")).verdict == 1.0
