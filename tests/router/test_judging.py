import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Refused, Unavailable
from proxy.log import Log
from router.judge import Judge, Judgement, Message, Spoken
from router.judging import (
    UNREADABLE,
    Appointed,
    Bill,
    Calibration,
    calibration_of,
    families,
    fit,
    fit_judge,
    in_words,
    judge_instead,
    judged,
    measured,
    missing,
    notes,
    refuse_kin,
    tried,
)  # fmt: skip
from router.planted import plant
from router.settings import JudgeSettings
from tests.judges import Judges
from tests.router import conftest
from tests.router.conftest import TASK, chat, insert, known

ROWS = [
    (chat(f"How many in {n}?"), f"It is {n} of them in all. They are in row {n + 1}. Nothing is left for {n}.")
    for n in range(40)
]
PAIRS = plant(ROWS, 12)
RIGHT = {request[-1]["content"]: answer for request, answer in ROWS}
KIN = "smollm2-135m-instruct"


def judge_of(way: str, usd: float | None = 0.25) -> Judge:
    judges = Judges(RIGHT)

    async def ask(messages: Sequence[Message]) -> Spoken:
        if way == "gone":
            raise Unavailable("nobody there")
        return Spoken(judges.say(way, [dict(message) for message in messages]), usd)

    return Judge(f"test/{way}", ask)


async def calibrated(way: str) -> Calibration:
    return measured(f"test/{way}", PAIRS, await tried(judge_of(way), PAIRS))


async def test_a_perfect_judge_is_fit() -> None:
    found = await calibrated("perfect")
    assert (found.worse, found.correct, found.equal, found.tied) == (72, 72, 24, 24)
    assert found.lower == pytest.approx(0.05 ** (1 / 72))  # Where all are right, Clopper-Pearson is alpha^(1/n).
    assert (found.bias_before, found.bias_after, found.flipped, found.unreadable) == (0.0, 0.0, 0.0, 0.0)
    assert fit(found)
    assert in_words(found).startswith("judge test/perfect is fit: 72 of 72 planted worse answers found (at least 96%")


async def test_swapping_takes_away_the_bias_of_a_position() -> None:
    found = await calibrated("always-a")
    assert (found.bias_before, found.bias_after, found.flipped) == (0.5, 0.0, 1.0)
    assert (found.correct, found.tied) == (0, found.equal)
    assert not fit(found)
    leaning = await calibrated("leans-to-a")
    assert leaning.bias_before == pytest.approx(leaning.flipped / 2)
    assert 0.15 < leaning.bias_before < 0.35
    assert abs(leaning.bias_after or 0.0) < 0.05
    assert not fit(leaning)


@pytest.mark.parametrize(("way", "most"), [("random", 0.3), ("longest", 0.5), ("always-a", 0.0)])
async def test_a_judge_that_does_not_see_what_is_worse_is_not_fit(way: str, most: float) -> None:
    found = await calibrated(way)
    assert found.correct / found.worse <= most
    assert not fit(found)
    assert "is not fit" in in_words(found)


@pytest.mark.parametrize("way", ["verbose", "echoing", "silent"])
async def test_what_cannot_be_read_is_missing_and_never_a_verdict(way: str) -> None:
    judgements = await tried(judge_of(way), PAIRS)
    found = measured("j", PAIRS, judgements)
    assert (found.unreadable, found.correct, found.tied, found.bias_before) == (1.0, 0, 0, None)
    assert not fit(found)
    assert "100% unparseable" in in_words(found)
    assert sum(len(said.spoken) for said in judgements) == 4 * len(PAIRS)  # Both orders, and each once more.


@given(st.integers(0, 72), st.floats(0, 1))
def test_the_bar_is_on_the_lower_bound_and_on_what_is_missing(correct: int, unreadable: float) -> None:
    said = [Judgement("A", "B" if place < correct else "A", ()) for place in range(72)]
    found = dataclasses.replace(measured("j", PAIRS[:72], said), unreadable=unreadable)
    assert found.correct == correct
    assert found.lower <= correct / 72
    assert fit(found) == (correct >= 64 and unreadable <= 0.05)  # 63 of 72 are at least 79.2 %, 64 are 80.8 %.


@pytest.mark.parametrize(
    ("judge", "student"),
    [
        ("openai/smollm2-1.7b-instruct", KIN), ("ollama/qwen3:8b", "Qwen/Qwen2.5-0.5B"),
        ("openai/gpt-4o", "gpt-4o-mini"),
        ("openai/o3", "openai/gpt-oss-20b"), ("openai/DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-3.2-1B"),
        ("gemini/gemini-2.5-pro", "google/gemma-3-1b-it"), ("mistral/ministral-8b", "mistralai/Mixtral-8x7B"),
        ("openai/our-own", "bases/our-own"), ("azure/Phi-4", "microsoft/phi-3"),
    ],
)  # fmt: skip
def test_kin_may_not_judge(judge: str, student: str) -> None:
    with pytest.raises(Refused, match="name a judge of another family"):
        refuse_kin(judge, student)


@pytest.mark.parametrize(
    ("judge", "student"),
    [("openai/gpt-4o", KIN), ("anthropic/claude-opus-4", "Qwen/Qwen3-0.6B"), ("openai/philosopher", "microsoft/phi-4")],
)
def test_others_may(judge: str, student: str) -> None:
    refuse_kin(judge, student)


def test_what_a_judges_name_says_is_told() -> None:
    assert families("ft:gpt-4o:x") == {"OpenAI's"}
    assert notes("anthropic/claude-opus-4", "gpt-4o") == ()
    assert notes("openai/gpt-5", "gpt-4o")[0].startswith("of the family of the teacher (gpt-4o)")
    assert notes("openai/own", "gpt-4o")[0].startswith("its family is unknown")


def test_only_free_text_is_for_the_judge() -> None:
    some = JudgeSettings(model="openai/gpt-4o")
    assert [judge_instead(name, some) for name in ("exact", "label", "json")] == ["judge", "label", "json"]
    assert judge_instead("exact", JudgeSettings()) == "exact"


def recorded(log: Log) -> None:
    for request, answer in ROWS:
        insert(log, [request[-1]["content"]], answer=answer)


async def test_a_calibration_is_made_once_kept_and_paid_for(log: Log) -> None:
    recorded(log)
    found = await fit_judge(log, judge_of("perfect"), TASK, KIN)
    assert fit(found)
    assert await fit_judge(log, judge_of("perfect"), TASK, KIN) == found == calibration_of(log, "test/perfect", TASK)
    assert calibration_of(log, "test/perfect", "another") is None
    orders = found.orders
    rows = log.query("SELECT task, kind, model, exchange, usd, quantity, unit FROM spend")
    assert rows == [(TASK, "judge", "test/perfect", None, orders / 4, orders, "question")]


async def test_a_calibration_that_cannot_be_priced_is_unpriced(log: Log) -> None:
    recorded(log)
    await fit_judge(log, judge_of("perfect", usd=None), TASK, KIN)
    assert log.query("SELECT usd FROM spend") == [(None,)]


async def test_a_judge_that_goes_away_is_paid_for_what_it_said_and_tried_again(log: Log) -> None:
    recorded(log)
    staying, left = judge_of("perfect"), 10

    async def ask(messages: Sequence[Message]) -> Spoken:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("nobody there")
        return await staying._ask(messages)

    judge = Judge("test/leaving", ask)
    with pytest.raises(Unavailable, match="not tried to the end: "):
        await fit_judge(log, judge, TASK, KIN)
    assert left > -10  # The others did not all wait for their own failure.
    assert log.query("SELECT quantity, usd FROM spend") == [(10.0, 2.5)]
    assert calibration_of(log, judge.name, TASK) is None


async def test_a_judge_is_appointed_where_it_is_fit_and_why_not_is_said_once(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(log)
    candidate = known(log, evaluator="judge")
    for judge, why in (
        (None, "judge.model is not set"),
        (judge_of("always-a"), "test/always-a is not fit: 0 of 72"),
        (judge_of("gone"), "nobody there"),
        (Judge("openai/student-1", judge_of("perfect")._ask), "it is the same model"),
    ):
        caplog.clear()
        appointed = Appointed(log, judge)
        assert [await appointed.judge_of(candidate) for _ in range(3)] == [None] * 3
        (said,) = caplog.messages
        assert why in said
    fit_one = judge_of("perfect")
    assert await Appointed(log, fit_one).judge_of(candidate) is fit_one


async def test_kin_and_too_little_are_refused_before_anything_is_paid(log: Log) -> None:
    with pytest.raises(Refused, match="record more of this task"):
        await fit_judge(log, judge_of("perfect"), TASK, KIN)
    recorded(log)
    with pytest.raises(Refused, match="SmolLM models"):
        await fit_judge(log, Judge("openai/smollm2", judge_of("perfect")._ask), TASK, KIN)
    assert log.query("SELECT (SELECT count(*) FROM spend), (SELECT count(*) FROM judges)") == [(0, 0)]


async def test_one_verdict_with_its_bill() -> None:
    request, answer = ROWS[0]
    same = await judged(judge_of("gone"), "x", request, answer, f" {answer}\n")
    assert (same.verdict, same.error, same.bill) == (1.0, None, Bill("x", 0, 0.0))
    same = await judged(judge_of("perfect"), "x", request, answer, answer.upper())
    assert (same.verdict, same.error, same.bill.exchange, same.bill.questions, same.bill.usd) == (
        1.0,
        None,
        "x",
        2,
        0.5,
    )
    worse = await judged(judge_of("perfect"), "x", request, answer, "It is 99.")
    assert (worse.verdict, worse.error) == (0.0, None)
    lost = await judged(judge_of("verbose"), "x", request, answer, answer.upper())
    assert (lost.verdict, lost.error, lost.bill.questions, lost.unavailable) == (0.0, UNREADABLE, 4, False)
    gone = await judged(judge_of("gone"), "x", request, answer, answer.upper())
    assert (gone.unavailable, gone.error, gone.bill.questions) == (True, "nobody there", 0)


def test_missing_verdicts_are_counted(log: Log) -> None:
    candidate = known(log)
    conftest.judged(log, candidate, [1.0, 1.0, 0.0])
    conftest.judged(log, candidate, [0.0], first=9, error=UNREADABLE)
    assert missing(log, candidate.id) == (1, 4)
