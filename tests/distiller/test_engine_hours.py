import asyncio
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from distiller.engine_hours import CHARGE_SECONDS, EngineHours, running
from proxy.log import Log
from router.settings import MoneySettings
from tests.router.conftest import log
from tests.servers import serving

__all__ = ["log"]


class Gauge:
    """An engine's metrics."""

    def __init__(self) -> None:
        self.text = ""
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/metrics", self.metrics)

    async def metrics(self) -> PlainTextResponse:
        return PlainTextResponse(self.text)


@pytest.fixture(scope="module")
def gauge() -> Iterator[tuple[Gauge, str]]:
    one = Gauge()
    with serving(one.app) as url:
        yield one, url.removesuffix("/v1")


BUSY_TEXT = '# HELP x\nvllm:num_requests_running{engine="0",model_name="m"} 2.0\nvllm:num_requests_waiting 7\n'


def test_an_engine_says_how_many_it_answers(gauge: tuple[Gauge, str]) -> None:
    one, url = gauge
    for text, expected in ((BUSY_TEXT, 2.0), ("vllm:num_requests_running 0\n", 0.0), ("other 1\n", None)):
        one.text = text
        assert asyncio.run(running(url)) == expected
    assert asyncio.run(running("http://127.0.0.1:1")) is None


def test_hours_are_charged_as_what_the_engines_were_at(log: Log, gauge: tuple[Gauge, str]) -> None:
    one, url = gauge
    time, urls = 1000.0, [url]
    hours = EngineHours(log, MoneySettings(engine_hour=36.0), lambda: urls, lambda: time)
    one.text = BUSY_TEXT
    asyncio.run(hours.look())
    assert log.query("SELECT count(*) FROM spend") == [(0,)]
    for text, seconds in ((BUSY_TEXT, 20), ("vllm:num_requests_running 0\n", 30), ("", 9)):
        one.text, time = text, time + seconds
        asyncio.run(hours.look())
    assert log.query("SELECT count(*) FROM spend") == [(0,)]
    one.text, time = BUSY_TEXT, 1000.0 + CHARGE_SECONDS
    asyncio.run(hours.look())
    charged = "SELECT unit, quantity * 3600, usd FROM spend WHERE kind = 'serving' ORDER BY unit"
    assert log.query(charged) == [
        ("busy hour", pytest.approx(21), pytest.approx(0.21)),
        ("hour", pytest.approx(9), pytest.approx(0.09)),
        ("idle hour", pytest.approx(30), pytest.approx(0.3)),
    ]
    hours.charge()
    assert log.query("SELECT count(*) FROM spend") == [(3,)]
    urls.clear()  # It is starting: it costs, and nobody knows what it does.
    time += 5
    asyncio.run(hours.look())
    hours.charge()
    assert log.query("SELECT unit, sum(quantity * 3600) FROM spend GROUP BY unit ORDER BY unit")[1] == (
        "hour", pytest.approx(14),
    )  # fmt: skip
