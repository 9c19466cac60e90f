from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from distiller.dashboard.overview import read_overview
from proxy.keys import create_key
from proxy.limits import Limits
from proxy.vitals import Observed
from tests.distiller.dashboard.houses import MakeHouse
from tests.router.conftest import insert, known, spent

HOSTILE = "</script><img src=x onerror=alert(1)>"


async def test_an_empty_log_says_how_to_begin(house: MakeHouse) -> None:
    text = await house().text("/ui/")
    assert "Nothing was recorded yet" in text
    assert 'OpenAI(base_url="http://127.0.0.1:8080/v1")' in text
    assert "Net saving against the teacher $0.00" in text
    assert "What needs you Nothing. All is well." in text


async def test_the_months_money_is_the_ledgers(house: MakeHouse) -> None:
    made = house()
    log = made.log
    assert log is not None
    ids = insert(log, ["a", "b", "c"])
    for one in ids:
        spent(log, "teacher", 2.0, one)
    insert(log, ["d"], served_by="student-1")
    spent(log, "training", 0.5)
    spent(log, "teacher", None, "unknown")
    text = await made.text("/ui/")
    assert "Net saving against the teacher $1.50 $2.00 avoided (estimate) less $0.5000" in text
    assert "Net against the cheapest hosted model none passes" in text
    assert "Spent on the teacher $6.00 3 exchanges it answered" in text
    assert "Answered by candidates 25% 1 of 4 exchanges; 0 fell back" in text
    assert "Unpriced 1 charges in no sum" in text
    assert "In the last 24 hours 4 exchanges" in text
    assert "1 charge has no price since yesterday" in text


async def test_charts_are_there_as_tables(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    insert(made.log, ["a", "b"])
    page = (await made.get("/ui/")).text
    assert page.count("<figure") == page.count('<caption class="unseen">') == 2
    assert '<td class="number" data-value="2">2</td>' in page
    assert page.count("</tr>") > 24


def test_hours_without_traffic_are_zero(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    now = datetime.now(UTC)
    insert(made.log, ["a"], ts=now - timedelta(hours=5))
    hours = read_overview(made.log, 0.1, now).hours
    assert len(hours) == 25
    assert [volume.exchanges for _, volume in hours].count(1) == 1
    assert {after - before for (before, _), (after, _) in pairwise(hours)} == {timedelta(hours=1)}


async def test_what_needs_somebody_is_on_top_with_a_link(house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    made = house()
    monkeypatch.setattr("proxy.vitals.DISK_BYTES", 1 << 62)
    made.observed = Observed(last_round=datetime.now(UTC).timestamp(), engine="down")
    create_key(made.settings.keys, "bot", (), Limits(budget_usd=10.0))
    text = await made.text("/ui/")
    assert "Less than 1 GB is free." in text
    assert "The engine that serves students is down." in text
    assert "The key bot" not in text
    assert "State degraded engine down" in text


async def test_names_in_tables_and_charts_are_text(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    insert(made.log, ["a"], task=HOSTILE)
    known(made.log, "student-<b>", task=HOSTILE)
    page = (await made.get("/ui/")).text
    assert "<img" not in page
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page
