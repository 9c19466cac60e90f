from datetime import UTC, date, datetime, timedelta

import pytest

from distiller.dashboard.tasks_page import TaskRow, arranged, forecasts, task_rows
from proxy.log import Log
from router.books import read_books
from router.freezes import freeze
from tests.distiller.dashboard.houses import MakeHouse
from tests.router.conftest import PATH, TASK, add_rows, insert, known, spent

HOSTILE = "<script>alert('task')</script>"


def filled(log: Log) -> None:
    ids = insert(log, ["a", "b", "c"], latency_ms=120.0)
    insert(log, ["d"], served_by="student-1", fallback="timeout")
    insert(log, ["e"], ts=datetime.now(UTC) - timedelta(days=40))
    insert(log, ["f", "g"], task="other", status=502)
    insert(log, ["h"], task=None)
    for one in ids:
        spent(log, "teacher", 0.25, one)
    spent(log, "teacher", None, "x", task="other")
    spent(log, "judge", 5.0)


async def test_each_task_has_its_traffic_its_spend_and_its_stage(house: MakeHouse) -> None:
    made = house()
    log = made.log
    assert log is not None
    filled(log)
    known(log)
    freeze(log, TASK, "audit")
    rows = {row.task: row for row in task_rows(log)}
    one = rows[TASK]
    assert (one.exchanges, one.served, one.fallbacks, one.usd, one.stage, one.frozen) == (4, 1, 1, 0.75, "shadow", True)
    assert one.slow is not None
    other = rows["other"]
    assert (other.exchanges, other.failed, other.usd, other.unpriced, other.stage) == (2, 2, None, 1, "")
    text = await made.text("/ui/tasks")
    assert "triage frozen shadow 4 25% 1 0" in text
    assert "$0.7500" in text
    assert "unpriced" in text
    assert "(no task) teacher only 1 0%" in text


async def test_a_months_forecast_goes_by_whole_days(house: MakeHouse) -> None:
    log = house().log
    assert log is not None
    now = datetime(2026, 11, 11, tzinfo=UTC)  # Ten days are over, twenty are left.
    for day in range(1, 11):
        row = {"id": f"{day:02}", "ts": now - timedelta(days=day) + timedelta(hours=1), "task": TASK, "path": PATH}
        add_rows(log, "spend", [row | {"kind": "teacher", "model": "gpt-4o", "usd": 2.0, "quantity": 1.0}])
        add_rows(log, "spend", [row | {"id": f"x{day}", "task": "free", "kind": "teacher", "model": "x", "usd": None}])
    assert forecasts(read_books(log, date(2026, 10, 1)), now) == {TASK: 60.0}


async def test_it_is_sorted_and_searched_by_the_address(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    for name, count in (("alpha", 1), ("beta-mail", 3), ("Gamma-mail", 2)):
        insert(made.log, [str(number) for number in range(count)], task=name)

    async def order(query: str) -> list[str]:
        text = await made.text(f"/ui/tasks{query}")
        return sorted((name for name in ("alpha", "beta-mail", "Gamma-mail") if name in text), key=text.index)

    assert await order("") == ["beta-mail", "Gamma-mail", "alpha"]
    assert await order("?sort=task&way=up") == ["alpha", "beta-mail", "Gamma-mail"]
    assert await order("?q=MAIL&sort=exchanges&way=up") == ["Gamma-mail", "beta-mail"]
    assert await order("?sort=nonsense&way=sideways") == await order("")
    assert "No task's name holds “<nothing>”" in await made.text("/ui/tasks?q=%3Cnothing%3E")
    page = (await made.get("/ui/tasks?sort=task&way=up&q=a%22b")).text
    assert 'aria-sort="ascending"' not in page  # Nothing is found, so there is no table.
    assert 'value="a&#34;b"' in page


async def test_a_tasks_name_is_text(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    insert(made.log, ["a"], task=HOSTILE)
    page = (await made.get("/ui/tasks")).text
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(&#39;task&#39;)&lt;/script&gt;" in page
    assert 'href="/ui/tasks/%3Cscript%3Ealert%28%27task%27%29%3C%2Fscript%3E"' in page


async def test_without_traffic_it_says_where_to_send_some(house: MakeHouse) -> None:
    assert 'base_url = "http://127.0.0.1:8080/v1"' in await house().text("/ui/tasks")


@pytest.mark.parametrize(
    "column", ["task", "exchanges", "served", "fallbacks", "failed", "slow", "spend", "forecast", "stage"]
)
def test_every_column_can_be_sorted_by(column: str) -> None:
    rows = [
        TaskRow("b", 2, 1, 3, 4, 50.0, 1.0, 0, 2.0, "live", 1.0, "s", False),
        TaskRow(None, 0, 0, 0, 0, None, None, 5, None, "", 0.0, "", False),
        TaskRow("a", 1, 0, 0, 0, 10.0, 0.5, 0, 1.0, "shadow", 0.0, "s", False),
    ]
    up, down = arranged(rows, "", column, "up"), arranged(rows, "", column, "down")
    assert {row.task for row in up} == {"a", "b", None}
    assert down[0].task == "b"
    assert up[-1].task == "b"
