from pathlib import Path

import pytest
from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st

from distiller import scrape as module
from distiller.scrape import Scrape, flow, parsed, quantile, scrape
from proxy.admin import create_admin
from proxy.settings import AdminSettings
from proxy.vitals import Observed, Vitals
from tests.servers import free_port, serving

PAGE = """# TYPE stillroom_requests_total counter
stillroom_requests_total {requests}
# TYPE stillroom_exchanges_total counter
stillroom_exchanges_total{{served_by="teacher",status="2xx"}} {good}
stillroom_exchanges_total{{served_by="student",status="5xx"}} {bad}
# TYPE stillroom_in_progress gauge
stillroom_in_progress 3.0
# TYPE stillroom_latency_seconds histogram
stillroom_latency_seconds_bucket{{served_by="teacher",le="0.1"}} {good}
stillroom_latency_seconds_bucket{{served_by="teacher",le="+Inf"}} {good}
stillroom_latency_seconds_count{{served_by="teacher"}} {good}
stillroom_latency_seconds_sum{{served_by="teacher"}} 1.0
"""


def look(at: float, requests: int, good: int, bad: int) -> Scrape:
    return parsed(PAGE.format(requests=requests, good=good, bad=bad), at)


def test_sums_are_over_all_labels() -> None:
    seen = look(0.0, 10, 7, 2)
    assert (seen.of("requests"), seen.of("exchanges"), seen.of("in_progress"), seen.of("never_heard_of")) == (
        10,
        9,
        3,
        0,
    )


def test_two_looks_give_rates_and_latencies() -> None:
    found = flow(look(0.0, 10, 7, 2), look(4.0, 30, 23, 4))
    assert found is not None
    assert (found.requests, found.failures) == (5.0, 0.5)
    assert found.median_ms == pytest.approx(50.0)


def test_counters_that_began_anew_give_no_rate() -> None:
    assert flow(look(0.0, 10, 7, 2), look(1.0, 1, 1, 0)) is None
    assert flow(look(1.0, 10, 7, 2), look(1.0, 10, 7, 2)) is None


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12), st.floats(0.01, 1.0))
def test_a_quantile_lies_where_so_many_were_counted(counts: list[int], share: float) -> None:
    total = 0
    buckets = {}
    for number, count in enumerate(counts, 1):
        total += count
        buckets[float(number) if number < len(counts) else float("inf")] = float(total)
    found = quantile(buckets, share)
    if not total:
        assert found is None
    else:
        assert found is not None
        assert 0 <= found <= 1000 * (len(counts) - 1)
        within = [count for bound, count in buckets.items() if 1000 * bound >= found]
        assert max(within, default=total) >= share * total or found == 1000 * (len(counts) - 1)


def test_a_real_admin_port_is_read_with_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 60.0)  # A busy machine is no failure.
    monkeypatch.setenv("ADMIN", "secret")
    vitals = Vitals(tmp_path, tmp_path / "spool", lambda: Observed(ingested=5))
    with serving(create_admin(AdminSettings(token_env="ADMIN"), tmp_path / "metrics", vitals)) as url:
        base = url.removesuffix("/v1")
        seen = scrape(base, "secret")
        assert isinstance(seen, Scrape)
        assert seen.of("ingested") == 5
        assert scrape(base, "") == f"{base} answers 401: the admin token is missing or wrong"


def test_what_is_no_admin_port_is_said() -> None:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/metrics", lambda: Response("{nothing that is", media_type="text/plain"))
    with serving(app) as url:
        assert "does not answer" in str(scrape(url.removesuffix("/v1"), ""))
    assert "does not answer" in str(scrape(f"http://127.0.0.1:{free_port()}", ""))
