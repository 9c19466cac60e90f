import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.dataset import again, dataset, newest
from distiller.settings import DistillerSettings, Settings
from distiller.snapshots import changes, snapshots
from proxy.derive import CHAT
from proxy.errors import Refused
from proxy.exchange import Exchange
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.spool import SpoolWriter
from router.settings import RouterSettings, TaskSettings
from tests.distiller.toy_task import toy_log
from tests.logs import migrated
from tests.router.conftest import TASK, insert

OPTIONS = DistillerSettings(min_exchanges=100)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return toy_log(tmp_path)


def test_what_judges_is_later_than_what_is_learned_and_nothing_stands_on_both_sides(log: Log) -> None:
    insert(log, ["broken"], status=500)
    found = dataset(log, TASK, Settings(distiller=OPTIONS))
    assert (len(found.train), len(found.holdout), found.read, found.dropped) == (120, 30, 151, {"error": 1})
    assert max(row.ts for row in found.train) <= min(row.ts for row in found.holdout)
    assert (found.evaluator, found.labels) == ("label", ("go", "stop", "wait"))
    assert [turn["content"] for turn in found.asked(found.holdout)[-1]][1:] == ["lamp 149 is green"]


def test_it_is_had_again_from_the_ids_alone_whatever_came_after(log: Log) -> None:
    declared = TaskSettings(aliases={"Halt": "stop"})
    first = dataset(log, TASK, Settings(distiller=OPTIONS, router=RouterSettings(tasks={TASK: declared})))
    insert(log, ["lamp 150 is red"], "stop")
    named = [[row.exchange_id for row in rows] for rows in (first.train, first.holdout)]
    second = again(log, TASK, first.snapshot, named[0], named[1], "label", declared)
    told = {"read": first.read, "dropped": first.dropped, "snapshots": first.snapshots, "terms": first.terms}
    assert replace(second, **told) == first  # type: ignore[arg-type]


def test_what_an_older_snapshot_of_the_teacher_said_is_left_out_where_that_is_wanted(log: Log) -> None:
    log.query("UPDATE exchanges SET answered_model = 'gpt-4o-2024-05-13'")
    insert(log, [f"lamp {number} is red" for number in range(150, 300)], "stop", answered_model="gpt-4o-2024-08-06")
    both = dataset(log, TASK, Settings(distiller=OPTIONS))
    assert [(one.model, one.rows, one.current) for one in both.snapshots] == [
        ("gpt-4o-2024-05-13", 150, False),
        ("gpt-4o-2024-08-06", 150, True),
    ]
    assert both.dropped == {}
    new = dataset(log, TASK, Settings(distiller=replace(OPTIONS, snapshots="current")))
    assert (new.dropped, new.snapshots) == ({"older_snapshot": 150}, both.snapshots)
    assert {row.model for row in (*new.train, *new.holdout)} == {"gpt-4o-2024-08-06"}


def test_who_answered_before_that_was_kept_is_unknown_and_no_older_snapshot(log: Log) -> None:
    insert(log, [f"lamp {number} is red" for number in range(150, 200)], "stop", answered_model="gpt-4o-2024-08-06")
    found = dataset(log, TASK, Settings(distiller=replace(OPTIONS, snapshots="current")))
    assert [(one.model, one.rows, one.current) for one in found.snapshots] == [("gpt-4o-2024-08-06", 50, True)]
    assert (found.read, found.dropped, changes(found.snapshots)) == (200, {}, [])


def spooled_answer(number: int, model: str) -> Exchange:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"lamp {number}"}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": "go"}, "finish_reason": "stop"}
    answer = {"model": model, "choices": [choice]}
    bodies = {"request": json.dumps(body).encode(), "response": json.dumps(answer).encode()}
    return Exchange(ulid(), time.time(), "POST", CHAT, task=TASK, status=200, **bodies)  # type: ignore[arg-type]


def test_a_changed_snapshot_is_noticed_from_the_wire_on(tmp_path: Path) -> None:
    log, models = migrated(tmp_path), ["gpt-4o-2024-05-13"] * 30 + ["gpt-4o-2024-08-06"] * 30
    writer = SpoolWriter(tmp_path / "spool", 1 << 30, 3600)
    for number, model in enumerate(models):
        writer.append(spooled_answer(number, model).line(Redactor(SECRETS_ONLY)))
    writer.rotate()
    assert Ingest(log, tmp_path / "spool", 7, lambda model, prompt, cached, completion: None).run() == 60
    assert log.query("SELECT DISTINCT model FROM exchanges") == [("gpt-4o",)]
    _, rows = newest(log, TASK, 100)
    assert changes(snapshots(rows))[0].startswith(
        "the teacher changed: gpt-4o-2024-05-13 gave 30 of the answers to gpt-4o"
    )
    found = dataset(log, TASK, Settings(distiller=replace(OPTIONS, min_exchanges=10, snapshots="current")))
    assert found.dropped == {"older_snapshot": 30}
    assert {row.model for row in (*found.train, *found.holdout)} == {"gpt-4o-2024-08-06"}


def test_a_provider_whose_terms_nobody_acknowledged_is_not_learned_from_where_that_is_wanted(log: Log) -> None:
    found = dataset(log, TASK, Settings(distiller=OPTIONS))
    assert [(one.provider, one.rows, one.acknowledged) for one in found.terms] == [("openai", 120, False)]
    strict = replace(OPTIONS, terms="refuse")
    with pytest.raises(Refused, match=r"not distilled: 120 rows are answers of openai.*teacher_terms_ack"):
        dataset(log, TASK, Settings(distiller=strict))
    read = replace(strict, teacher_terms_ack=("openai",))
    assert dataset(log, TASK, Settings(distiller=read)).terms[0].acknowledged


def test_an_exchange_that_is_gone_is_named(log: Log) -> None:
    with pytest.raises(Refused, match=r"1 of the 1 exchanges are no longer in the log, 00nobody for one"):
        again(log, TASK, 1, ["00nobody"], [], "label", TaskSettings())
