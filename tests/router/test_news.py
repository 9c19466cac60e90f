import pytest

from proxy.feedback import FEEDBACK
from proxy.log import Log
from router.news import PATIENCE, News
from router.registry import CANARY, Candidate, move
from tests.router.conftest import insert, judged, known, now

URL = "http://127.0.0.1:1"


@pytest.fixture
def looked(log: Log) -> tuple[News, Candidate]:
    news, candidate = News(log), known(log)
    news.refresh()
    assert news.any(candidate, URL)
    news.looked(candidate, URL, busy=False)
    return news, candidate


def test_a_look_is_enough_until_something_is_new(looked: tuple[News, Candidate]) -> None:
    news, candidate = looked
    news.refresh()
    assert not news.any(candidate, URL)


@pytest.mark.parametrize(
    ("columns", "new"),
    [
        ({}, True),
        ({"id": "0"}, True),  # Imported: older than all others.
        ({"task": "another task"}, False),
        ({"task": None, "path": FEEDBACK}, True),
        ({"task": None, "path": "/v1/embeddings"}, False),
    ],
)
def test_new_is_what_its_task_or_feedback_got(log: Log, columns: dict[str, str | None], new: bool) -> None:
    news, candidate = News(log), known(log)
    insert(log, ["before"])
    news.refresh()
    news.looked(candidate, URL, busy=False)
    insert(log, ["later"], **columns)
    news.refresh()
    assert news.any(candidate, URL) is new


def test_verdicts_alone_are_not_new(log: Log, looked: tuple[News, Candidate]) -> None:
    news, candidate = looked
    judged(log, candidate, [1.0] * 3)
    news.refresh()
    assert not news.any(candidate, URL)


def test_another_stage_or_place_is_new(log: Log, looked: tuple[News, Candidate]) -> None:
    news, candidate = looked
    assert news.any(candidate, "http://127.0.0.1:2")
    move(log, candidate, CANARY, "for the test", {"for": "the test"}, 0.1)
    assert news.any(now(log), URL)


def test_a_busy_look_is_followed_by_another(looked: tuple[News, Candidate]) -> None:
    news, candidate = looked
    news.looked(candidate, URL, busy=True)
    assert news.any(candidate, URL)


def test_after_a_while_it_is_looked_at_all_the_same(log: Log) -> None:
    clock = [1000.0]
    news, candidate = News(log, clock=lambda: clock[0]), known(log)
    news.refresh()
    news.looked(candidate, URL, busy=False)
    clock[0] += PATIENCE - 1
    assert not news.any(candidate, URL)
    clock[0] += 1
    assert news.any(candidate, URL)
