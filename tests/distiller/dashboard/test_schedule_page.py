from datetime import UTC, datetime

from distiller.dashboard.actions import recent
from distiller.pauses import paused
from distiller.runs import FAILED, End, Wish, record, waiting
from tests.distiller.dashboard.houses import TOKENS, MakeHouse
from tests.router.conftest import TASK, insert, known

PAGE = "/ui/schedule"
NOW = datetime.now(UTC)


async def test_it_shows_what_comes_next_and_what_was_run(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    wish = Wish("prices", "prices", "1", "its time had come", NOW)
    record(made.log, wish, End(FAILED, "<b>no</b> network", None), NOW)
    text = await made.text(PAGE)
    assert "compaction 17 * * * *" in text
    assert "prices its time had come failed" in text
    assert "unpriced <b>no</b> network" in text
    page = (await made.get(PAGE)).text
    assert "<b>no</b>" not in page


async def test_a_job_is_run_paused_and_resumed(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    answer = await made.post(f"{PAGE}/run", PAGE, job="prices")
    assert answer.headers["location"] == PAGE
    assert "In the queue: prices." in await made.text(PAGE)
    (run,) = waiting(made.log)
    assert (run.job, run.by_hand, run.reason) == ("prices", True, "asked for on the dashboard")
    await made.post(f"{PAGE}/pause", PAGE, job="prices", reason="a holiday")
    assert paused(made.log)["prices"].reason == "a holiday"
    assert "since" in await made.text(PAGE)
    await made.post(f"{PAGE}/resume", PAGE, job="prices")
    assert paused(made.log) == {}
    done = [(one.action, one.target, one.outcome) for one in recent(made.log, 9)]
    assert done == [(f"schedule/{what}", "prices", "done") for what in ("resume", "pause", "run")]


async def test_a_task_can_be_distilled_by_hand(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    insert(made.log, ["a"])
    known(made.log)
    assert f"distill:{TASK}" in await made.text(PAGE)
    await made.post(f"{PAGE}/run", PAGE, job=TASK, reason="a new label")
    assert [(run.task, run.reason) for run in waiting(made.log)] == [(TASK, "a new label")]


async def test_what_cannot_be_is_told(house: MakeHouse) -> None:
    made = house()
    answer = await made.post(f"{PAGE}/pause", PAGE, job="prices", reason=" ")
    assert (answer.status_code, "say why" in answer.text) == (400, True)
    answer = await made.post(f"{PAGE}/run", PAGE, job="<nonsense>")
    assert (answer.status_code, "&lt;nonsense&gt;" in answer.text) == (400, True)
    answer = await made.post(f"{PAGE}/resume", PAGE, job="prices")
    assert (answer.status_code, "not paused" in answer.text) == (400, True)


async def test_a_viewer_sees_no_buttons(house: MakeHouse) -> None:
    made = house(TOKENS)
    await made.log_in(TOKENS.viewer)
    page = (await made.get(PAGE)).text
    assert "compaction" in page
    assert "/ui/schedule/run" not in page
