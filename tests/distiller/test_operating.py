import json
from pathlib import Path

import pytest

from distiller.operating import promoted, ready, republish, rolled_back
from distiller.settings import Settings
from proxy.errors import Refused
from proxy.log import Log
from router.policy import load_policy
from router.registry import CANARY, RETIRED, certificate_of
from router.signing import FINE, examine
from tests.logs import migrated
from tests.router.conftest import TASK, judged, known, now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=str(tmp_path))
    settings.small_state.parent.mkdir(parents=True)
    return settings


@pytest.fixture
def log(settings: Settings) -> Log:
    return migrated(settings.folder)


def engine(place: Path, state: str, *students: str) -> None:
    place.write_text(json.dumps({"state": state, "url": f"http://127.0.0.1:1/{place.stem}", "ready": students}))


def test_a_promotion_is_in_the_policy_at_once_and_so_is_a_rollback(log: Log, settings: Settings) -> None:
    candidate = known(log)
    engine(settings.small_state, "up", candidate.id)
    with pytest.raises(Refused, match="no promotion without a certificate"):
        promoted(log, settings, TASK)
    assert load_policy(settings.policy).routes == {}
    judged(log, candidate, [1.0] * 200)
    assert promoted(log, settings, TASK).stage == CANARY
    route = load_policy(settings.policy).routes[TASK]
    assert (route.candidate, route.url) == (candidate.id, "http://127.0.0.1:1/small")
    assert examine(certificate_of(log, candidate.id) or {}, settings.certificate_key) == FINE
    assert [one.id for one in rolled_back(log, settings, TASK, "wrong on refunds")] == [candidate.id]
    assert load_policy(settings.policy).routes == {}
    assert (now(log).stage, now(log).reason) == (RETIRED, "rolled back: wrong on refunds")
    assert rolled_back(log, settings, TASK, "again") == []


def test_who_is_asked_already_keeps_its_place_where_no_engine_says_anything(log: Log, settings: Settings) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    engine(settings.engine_state, "up", candidate.id)
    promoted(log, settings, TASK)
    settings.engine_state.unlink()
    republish(log, settings)
    assert load_policy(settings.policy).routes[TASK].url == "http://127.0.0.1:1/engine"


def test_only_students_of_engines_that_run_are_ready(settings: Settings) -> None:
    assert ready(settings) == {}
    engine(settings.engine_state, "up", "student-1")
    engine(settings.engine_state.with_name("engine-2.json"), "up", "student-2")
    engine(settings.small_state, "starting", "student-3")
    assert ready(settings) == {"student-1": "http://127.0.0.1:1/engine", "student-2": "http://127.0.0.1:1/engine-2"}
