import asyncio
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.apart import Apart
from proxy.counters import Counters
from proxy.exchange import Exchange
from proxy.keeping import Keeper
from proxy.logprobs import Position
from proxy.patterns import SECRETS_ONLY, Redaction
from proxy.redact import Body, Redactor
from proxy.replay import create_replay
from proxy.spool import SpoolWriter, closed_segments, open_segments
from proxy.traffic_file import Row
from tests.proxies import ask, proxying
from tests.servers import serving


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with serving(create_replay([Row(ask("greet"), "Good morning", None, "gpt-4o", None)])) as url:
        yield url


def test_traffic_goes_on_without_a_spool(teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with proxying(teacher, tmp_path / "spool") as proxy, proxy.client() as client:
        (tmp_path / "spool").write_text("in the way")
        answer = client.chat.completions.create(model="gpt-4o", messages=ask("greet"))  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "Good morning"
    assert "exchanges are not recorded, traffic goes on" in caplog.text


def test_who_opts_out_is_not_recorded(teacher: str, tmp_path: Path) -> None:
    with proxying(teacher, tmp_path) as proxy, proxy.client() as client:
        client.models.list(extra_headers={"x-stillroom-capture": "off"})
    assert proxy.records() == open_segments(tmp_path) == []


def kept(tmp_path: Path, redactor: Redactor) -> tuple[dict[str, float], list[bytes]]:
    """Keep one exchange twice; what was counted and what was written."""
    spool, counters = SpoolWriter(tmp_path, 1 << 20, 60.0), Counters()
    exchange = Exchange("01A", 0.0, "POST", "/v1/chat/completions")
    for _ in range(2):
        Keeper(spool, redactor, counters).keep(exchange)
    spool.rotate()
    samples = [sample for metric in counters.registry.collect() for sample in metric.samples]
    counted = {sample.name: sample.value for sample in samples if sample.value and sample.name.endswith("_total")}
    return counted, [line for segment in closed_segments(tmp_path) for line in segment.read_bytes().splitlines()]


def test_an_exchange_is_kept_once(tmp_path: Path) -> None:
    counted, lines = kept(tmp_path, Redactor(SECRETS_ONLY))
    assert counted == {"stillroom_captured_total": 1.0}
    assert [json.loads(line)["id"] for line in lines] == ["01A"]


@pytest.mark.parametrize(("partial", "count"), [(False, 1.0), (True, 0.0)])
def test_log_probabilities_are_counted_where_they_were_kept(partial: bool, count: float, tmp_path: Path) -> None:
    counters, told = Counters(), [Position(b"hi", -0.5, ())]
    exchange = Exchange("01A", 0.0, "POST", "/v1/chat/completions", partial=partial, logprobs=told)
    Keeper(SpoolWriter(tmp_path, 1 << 20, 60.0), Redactor(SECRETS_ONLY), counters).keep(exchange)
    assert counters.registry.get_sample_value("stillroom_logprobs_total", {"outcome": "kept"}) == count


def test_an_exchange_that_makes_no_record_is_dropped_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Redactor):
        def exchange(self, request: Body, response: Body) -> tuple[Body, Body]:
            raise RuntimeError("a defect")

    counted, lines = kept(tmp_path, Broken(SECRETS_ONLY))
    assert counted == {"stillroom_dropped_total": 1.0}
    assert lines == []
    assert "01A is not recorded: this is a defect" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is None, reason="needs the extra names")
def test_a_record_that_takes_long_is_waited_for_and_survives_who_waits(tmp_path: Path) -> None:
    spool, counters = SpoolWriter(tmp_path, 1 << 20, 60.0), Counters()
    answers = [bytearray(b"John Smith is here"), bytearray(b"John Smith is there")]
    exchanges = [Exchange(f"01{n}", 0.0, "POST", "/v1/x", response=answer) for n, answer in enumerate(answers)]
    big = Exchange("01Z", 0.0, "POST", "/v1/x", response=b"John Smith " * 20_000)

    async def keep_all() -> None:
        keeper = Keeper(spool, Apart(Redaction(names=True), patience=100.0), counters)
        await keeper.open()
        for exchange, answer in zip(exchanges, answers, strict=True):
            for _ in range(2):
                keeper.keep(exchange)
            answer += b" and goes on"
        keeper.keep(big)
        assert open_segments(tmp_path) == []
        await keeper.written(exchanges[0])
        assert open_segments(tmp_path)[0].read_bytes().count(b"\n") == 1
        assert [exchange.recorded for exchange in exchanges] == [True, *[False] * (len(exchanges) - 1)]
        waiting = asyncio.ensure_future(keeper.written(exchanges[1]))
        await asyncio.sleep(0)
        waiting.cancel()
        await keeper.close()

    asyncio.run(keep_all())
    spool.rotate()
    kept = [json.loads(line)["response"] for line in closed_segments(tmp_path)[0].read_bytes().splitlines()]
    assert kept == ["[NAME_1] is here", "[NAME_1] is there"]
    assert counters.registry.get_sample_value("stillroom_captured_total") == 2
    assert counters.registry.get_sample_value("stillroom_dropped_total", {"reason": "redaction"}) == 1
