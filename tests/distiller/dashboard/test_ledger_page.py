import json
from datetime import UTC, datetime, timedelta

import pytest

from proxy.log import Log
from tests.distiller.dashboard.houses import MakeHouse
from tests.router.conftest import TASK, insert, spent

PAGE = "/ui/ledger"
NOW = datetime.now(UTC)


def filled(log: Log) -> None:
    for one in insert(log, ["a", "b"]):
        spent(log, "teacher", 2.0, one)
    insert(log, ["c"], served_by="student-1")
    spent(log, "judge", 0.25)
    spent(log, "teacher", None, "x", task="<other>")


async def test_a_month_is_read_and_taken_along_with_the_same_figures(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    filled(made.log)
    text = await made.text(PAGE)
    assert "Net saving against the teacher $1.75" in text
    assert "Net against the cheapest hosted model none passes" in text
    assert "= net saving $1.75" in text
    assert f"{TASK} 3 1 $4.00 $2.00" in text
    answer = await made.get(f"{PAGE}/file?month={NOW:%Y-%m}&format=json")
    assert answer.headers["content-disposition"] == f'attachment; filename="stillroom-ledger-{NOW:%Y-%m}.json"'
    assert json.loads(answer.content)["net_usd"] == 1.75


@pytest.mark.parametrize(
    ("format", "begins"), [("csv", b"from,to,task"), ("html", b"<!doctype html>"), ("pdf", b"%PDF-"), ("json", b"{")]
)
async def test_it_comes_in_every_format(house: MakeHouse, format: str, begins: bytes) -> None:
    made = house()
    assert made.log is not None
    filled(made.log)
    answer = await made.get(f"{PAGE}/file?format={format}")
    assert answer.status_code == 200
    assert answer.content.startswith(begins)
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert b"<other>" not in answer.content or format in ("csv", "json")


async def test_months_are_picked(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    before = NOW.replace(day=1) - timedelta(days=3)
    insert(made.log, ["a"], ts=before)
    page = (await made.get(PAGE)).text
    assert f'<option value="{NOW:%Y-%m}" selected>' in page
    assert f'<option value="{before:%Y-%m}">' in page
    assert "Nothing in this period" in await made.text(PAGE)
    assert "triage 1 0" in await made.text(f"{PAGE}?month={before:%Y-%m}")
    assert "triage 1 0" in await made.text(f"{PAGE}?month=all")


@pytest.mark.parametrize("query", ["?month=nonsense", "?month=2026-13", '/file?month="x', "/file?month=all&format=exe"])
async def test_no_other_period_or_format_is_made(house: MakeHouse, query: str) -> None:
    answer = await house().get(f"{PAGE}{query}")
    assert answer.status_code == 400


async def test_names_are_text(house: MakeHouse) -> None:
    made = house()
    assert made.log is not None
    filled(made.log)
    page = (await made.get(PAGE)).text
    assert "<other>" not in page
    assert "&lt;other&gt;" in page
