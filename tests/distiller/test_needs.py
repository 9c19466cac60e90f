from typing import Any

import pytest

from distiller.frame import EngineNow, Logged
from distiller.needs import needs
from distiller.runs import Run
from distiller.scrape import Scrape
from distiller.tasks_now import Retired
from proxy.vitals import DISK_BYTES, Waiting
from tests.distiller.frames import AT, TASKS, frame

FAILED_RUN = Run(
    id="r", job="distill:t", kind="distill", task="t", cause="c", reason="cron", attempt=1, by_hand=False, due=AT,
    queued=AT, started=AT, ended=AT, state="ended", outcome="failed", detail="no room on the disk", usd=None,
    student=None, until=None,
)  # fmt: skip


def test_a_system_in_order_needs_nobody() -> None:
    assert needs(frame(logged=Logged(TASKS[:1]))) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"counted": Scrape(0.0, {"stillroom_dropped": 4.0})}, "4 exchanges were dropped"),
        ({"free": DISK_BYTES - 1}, "GB are free"),
        ({"running": False}, "stillroom serve"),
        ({"spool": Waiting(3, 9, AT.timestamp() - 3600)}, "the log does not take"),
        ({"no_log": "the log is damaged"}, "the log is damaged"),
        ({"no_admin": "http://x answers 401"}, "answers 401"),
        ({"engines": [EngineNow("vLLM", "down", "exited with code 1", 0, {})]}, "vLLM is down: exited"),
        ({"engines": [EngineNow("vLLM", "up", "", 0, {"student-9": "damaged"})]}, "student-9 is not served: damaged"),
        ({"logged": Logged(TASKS)}, "10 charges of the last day have no price"),
        ({"logged": Logged(retired=[Retired("t", "c", "parity lost")])}, "t went back to the teacher: parity lost"),
        ({"logged": Logged(failed=[FAILED_RUN])}, "distill of t failed: no room on the disk"),
        ({"logged": Logged(sunsets=["gpt-4o shuts down in 9 days"])}, "9 days"),
        ({"logged": Logged(frozen={"t": "audit week"})}, "t is frozen: audit week"),
    ],
)
def test_each_thing_that_is_not_in_order_is_a_sentence(changes: dict[str, Any], word: str) -> None:
    (one,) = needs(frame(**({"logged": Logged(TASKS[:1])} | changes)))
    assert word in one


def test_without_a_controller_its_engines_and_port_are_no_news() -> None:
    down = [EngineNow("vLLM", "down", "stopped", 0, {"student-9": "damaged"})]
    (one,) = needs(frame(logged=Logged(), running=False, engines=down, no_admin="nobody answers"))
    assert "stillroom serve" in one
