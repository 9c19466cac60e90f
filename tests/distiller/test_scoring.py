import logging
from pathlib import Path

import pytest

from distiller.scoring import Answered, scoring
from distiller.settings import Settings
from proxy.errors import BadInput, Refused
from proxy.log import Log
from router.settings import JudgeSettings, MoneySettings, Price, TaskSettings
from tests.judges import Judges
from tests.logs import migrated
from tests.router.conftest import TASK, chat, insert
from tests.servers import serving

NOTHING = TaskSettings()
RIGHT = {f"Why {n}?": f"It is {n}, as it was before. Nobody has {n + 1} of them. That is all." for n in range(40)}


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    for text, answer in RIGHT.items():
        insert(log, [text], answer)
    return log


def judged_by(way: str, url: str) -> Settings:
    prices = {f"openai/{way}": Price(input=1000.0, output=2000.0)}  # So 100 + 5 tokens cost 0.11 dollars.
    return Settings(judge=JudgeSettings(f"openai/{way}", url), money=MoneySettings(prices=prices))


def answered(number: int, other: str) -> Answered:
    text = f"Why {number}?"
    return Answered(f"x{number}", {"messages": chat(text)}, RIGHT[text], other)


def test_what_has_a_form_is_compared_by_it(log: Log) -> None:
    with scoring(log, Settings(), TASK, "label", NOTHING) as score:
        assert score([Answered("x", {}, "Go", " go. "), Answered("x", {}, "Go", "stop")]) == [1.0, 0.0]


def test_a_judge_scores_free_text_in_its_order_and_is_paid(log: Log) -> None:
    with serving(Judges(RIGHT).app()) as url, scoring(log, judged_by("perfect", url), TASK, "judge", NOTHING) as score:
        ((before, paid),) = log.query("SELECT sum(quantity), sum(usd) FROM spend WHERE kind = 'judge'")
        same = RIGHT["Why 3?"].replace(". ", ".\n")
        assert score([answered(1, "No."), answered(2, "  "), answered(3, same)]) == [0.0, 0.0, 1.0]
        assert score([]) == []
    assert before > 100
    assert paid == pytest.approx(before * 0.11)
    rows = log.query("SELECT exchange, quantity, usd FROM spend WHERE exchange IS NOT NULL ORDER BY exchange")
    assert rows == [("x1", 2.0, pytest.approx(0.22)), ("x3", 2.0, pytest.approx(0.22))]


def test_a_judge_that_is_not_fit_is_refused_with_its_figures(log: Log) -> None:
    with serving(Judges(RIGHT).app()) as url:
        with pytest.raises(Refused, match=r"openai/always-a is not fit: 0 of \d+ planted worse answers found.*\+0\.50"):
            with scoring(log, judged_by("always-a", url), TASK, "judge", NOTHING):
                pass


def test_a_judge_that_goes_away_costs_no_training(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    with serving(Judges(RIGHT).app()) as url:
        settings = judged_by("perfect", url)
        with scoring(log, settings, TASK, "judge", NOTHING):
            pass
    caplog.set_level(logging.WARNING, "stillroom.scoring")
    with scoring(log, settings, TASK, "judge", NOTHING) as score:  # Known to be fit, and gone.
        assert score([answered(1, RIGHT["Why 1?"].upper())]) == [0.0]
    (said,) = [record.getMessage() for record in caplog.records if record.name == "stillroom.scoring"]
    assert said.startswith("1 of 1 answers were not judged and count as wrong")


def test_a_task_for_a_judge_needs_one(log: Log) -> None:
    with pytest.raises(BadInput, match=r"set judge\.model"):
        with scoring(log, Settings(), TASK, "judge", NOTHING):
            pass
