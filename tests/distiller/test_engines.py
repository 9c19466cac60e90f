import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.bundle import seal
from distiller.distill import distill
from distiller.engines import Engines
from distiller.settings import ServingSettings, Settings, SigningSettings
from distiller.signature import sign
from proxy.errors import BadInput
from proxy.log import Log
from router.registry import Candidate, candidates
from tests.distiller.queues import asking, toy_encoder, toy_head
from tests.distiller.test_serving import until
from tests.distiller.test_signature import written
from tests.distiller.toy import build_toy
from tests.distiller.toy_task import ANSWERS, toy_log, toy_settings
from tests.logs import migrated
from tests.router.conftest import TASK, known
from tests.servers import free_port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path), serving=ServingSettings(port=free_port(), small_port=free_port()))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


@pytest.fixture
def student(log: Log, tmp_path: Path) -> Candidate:
    encoder = toy_encoder(tmp_path / "encoder")
    toy_head(encoder, tmp_path / "student-1" / "small")
    golden = [{"messages": list(asking("refund my money")), "text": "billing"}]
    card = {"base": str(encoder), "engine": "small", "golden": golden, "labels": [], "static": [], "max_tokens": 1}
    return known(log, bundle=str(tmp_path / "student-1"), card=card)


async def test_a_small_student_needs_no_vllm(settings: Settings, student: Candidate) -> None:
    engines, stop = Engines(settings), asyncio.Event()
    assert not engines.started
    assert engines.state() is None
    engines.want([], stop)
    assert not engines.started
    engines.want([student], stop)
    try:
        await until(lambda: bool(engines.served()))
        assert engines.served() == {student.id: f"http://127.0.0.1:{settings.serving.small_port}"}
        assert engines.state() == "up"
        told = json.loads(settings.small_state.read_text())
        assert (told["state"], told["ready"]) == ("up", [student.id])
        assert not settings.engine_state.exists()
        engines.want([], stop)
        await until(lambda: not engines.served())
        assert engines.started
    finally:
        stop.set()
        await engines.ended()
    assert engines.state() == "down"
    assert json.loads(settings.small_state.read_text())["reason"] == "stopped"


async def test_students_of_two_bases_are_served_by_a_vllm_each(tmp_path: Path) -> None:
    log = toy_log(tmp_path)
    settings = toy_settings(tmp_path)
    build_toy(tmp_path / "other", [f"{answer} lamp" for answer in ANSWERS.values()])
    for base in (settings.distiller.base, str(tmp_path / "other")):
        distill(log, replace(settings, distiller=replace(settings.distiller, base=base)), TASK, lambda *_: None)
    both = candidates(log)
    log.close()
    settings = replace(settings, serving=ServingSettings(port=free_port()))
    stale = settings.engine_state.with_stem("engine-7")
    stale.parent.mkdir(exist_ok=True)
    stale.write_text("{}")
    engines, stop = Engines(settings), asyncio.Event()
    assert not stale.exists()
    engines.want(both, stop)
    try:
        await until(lambda: len(engines.served()) == 2, 240)
        urls = [engines.served()[one.id] for one in both]
        assert urls == [f"http://127.0.0.1:{settings.serving.port + place}" for place in (0, 1)]
        told = [json.loads(place.read_text()) for place in (settings.engine_state, *settings.more_engine_states)]
        assert [one["ready"] for one in told] == [[one.id] for one in both]
    finally:
        stop.set()
        await engines.ended()


async def test_a_student_that_is_not_signed_is_not_served_and_that_is_told(
    settings: Settings, student: Candidate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = written(tmp_path)
    with pytest.raises(BadInput, match="holds no Ed25519 public key"):
        Engines(replace(settings, signing=SigningSettings(public_key=str(tmp_path / "nowhere"))))
    signed = seal(tmp_path / "student-1", tmp_path / "students", {"card": student.card})
    sign(signed.path, keys)
    shutil.copytree(signed.path / "small", tmp_path / "other" / "small")
    (tmp_path / "other" / "more").write_text("x")
    unsigned = seal(tmp_path / "other", tmp_path / "students", {"card": student.card})
    both = [replace(student, id=one.id, bundle=str(one.path)) for one in (signed, unsigned)]
    engines, stop = Engines(replace(settings, signing=keys)), asyncio.Event()
    engines.want(both[1:], stop)
    engines.want(both[1:], stop)
    assert not engines.started
    assert caplog.text.count(f"{unsigned.id} is not served: {unsigned.id} is not signed") == 1
    engines.want(both, stop)
    try:
        await until(lambda: bool(engines.served()))
        assert set(engines.served()) == {signed.id}
        assert list(json.loads(settings.small_state.read_text())["failed"]) == [unsigned.id]
    finally:
        stop.set()
        await engines.ended()


async def test_a_student_without_an_engine_is_said(settings: Settings, student: Candidate) -> None:
    other = replace(student, card={**student.card, "engine": "steam"})
    with pytest.raises(BadInput, match="wants engine 'steam'"):
        Engines(settings).want([other], asyncio.Event())


async def test_a_port_that_is_taken_ends_it(settings: Settings, student: Candidate) -> None:
    engines, stop = Engines(settings), asyncio.Event()
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", settings.serving.small_port)
    async with taken:
        engines.want([student], stop)
        await asyncio.sleep(0.1)
        with pytest.raises(Exception, match="is not free for the engine"):
            engines.want([student], stop)
