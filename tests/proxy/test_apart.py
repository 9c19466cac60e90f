import asyncio
import base64
import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from proxy import names
from proxy.apart import Apart, NotMade
from proxy.app import create_app
from proxy.errors import BadInput
from proxy.exchange import Exchange
from proxy.logprobs import Position, packed
from proxy.patterns import Redaction
from proxy.replay import create_replay
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.spool import closed_segments, open_segments
from proxy.traffic_file import Row
from tests.proxies import ask
from tests.servers import eventually, serving

ROOT = Path(__file__).parents[2]
NAMES = Redaction(names=True)
needs_names = pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is None, reason="needs the extra names")
# What a worker does, as far as it matters here: its process is told by its number.
WORKER = """
import asyncio, multiprocessing, sys
from proxy.apart import Apart
from proxy.patterns import Redaction
if __name__ == "__main__":
    apart = Apart(Redaction(names=True))
    asyncio.run(apart.start())
    print("spacy" in sys.modules, multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    made = Apart(NAMES, patience=100.0)
    asyncio.run(made.start())
    yield made
    made.stop()


def exchange(request: object, response: object = "") -> Exchange:
    bodies = [json.dumps(body).encode() for body in (request, response)]
    return Exchange("01A", 0.0, "POST", "/v1/chat/completions", request=bodies[0], response=bodies[1])


def record(apart: Apart, *bodies: object) -> tuple[object, object]:
    line = json.loads(asyncio.run(apart.line(exchange(*bodies))))
    return json.loads(line["request"]), json.loads(line["response"])


def pid(apart: Apart) -> int:
    assert apart._process is not None
    return int(apart._process.pid or 0)


def test_without_the_extra_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_EXTRA", ("no_such_package",))
    with pytest.raises(BadInput, match=r"stillroom\[names\]"):
        Apart(NAMES)


@needs_names
def test_without_a_model_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_MODELS", ("no_such_model",))
    with pytest.raises(BadInput, match="spacy download no_such_model"):
        Apart(NAMES)


@needs_names
@pytest.mark.parametrize(
    "text",
    [
        "My name is *John Smith* and I live in Paris.",
        "Please write a reply to Mrs. *Eleanor Vance* about her refund.",
        "Dear Dr. *Okonkwo*, thank you for your letter.",
        "From: *Karl-Heinz Müller* <k@x.org>",
        "The customer, *Siobhan O'Connor*, called twice on Monday.",
        '{"name": "*Maria Gonzalez*", "city": "Madrid"}',
        "Wei Zhang and *Yuki Tanaka* met in Washington.",
        "Hi *Sarah*, can you check whether Mike got my invoice?",
        "Classify this email into one of: billing, shipping, other.",
        "You are a helpful assistant. Answer in JSON with the keys Intent and Urgency.",
    ],
)
def test_the_model_finds_people(apart: Apart, text: str) -> None:
    plain = text.replace("*", "")
    kept = record(apart, [plain])[0]
    assert ("*" in text) == (kept != [plain])
    assert "*" not in text or text.split("*")[1] not in str(kept)


@needs_names
def test_one_name_in_request_and_answer(apart: Apart) -> None:
    assert record(apart, ["My name is John Smith."], ["hi john smith, John Smith"]) == (
        ["My name is [NAME_1]."],
        ["hi john smith, [NAME_1]"],
    )


@needs_names
def test_log_probabilities_are_kept_unless_a_name_was_found(apart: Apart) -> None:
    told = (Position(b"hi", -0.5, ((b"hi", -0.5),)),)
    found = []
    for said in ("Good morning.", "I am John Smith."):
        line = asyncio.run(apart.line(dataclasses.replace(exchange([said]), logprobs=told)))
        found.append(json.loads(line).get("logprobs"))
    assert found == [base64.b64encode(packed(told)).decode(), None]


@needs_names
def test_a_process_that_dies_is_replaced_and_nothing_is_said_of_its_exchange(
    apart: Apart, capfd: pytest.CaptureFixture[str]
) -> None:
    os.kill(pid(apart), signal.SIGKILL)
    with pytest.raises(NotMade, match="died"):
        record(apart, ["I am John Smith."])
    assert record(apart, ["I am John Smith."])[0] == ["I am [NAME_1]."]
    assert capfd.readouterr() == ("", "")


@needs_names
def test_signals_to_stop_are_the_workers_alone(apart: Apart) -> None:
    before = pid(apart)
    for by in (signal.SIGINT, signal.SIGTERM):
        os.kill(before, by)
    assert record(apart, ["I am John Smith."])[0] == ["I am [NAME_1]."]
    assert pid(apart) == before


@needs_names
def test_what_cannot_be_redacted_is_no_record(apart: Apart) -> None:
    with pytest.raises(NotMade, match=r"^TooLong$"):
        record(apart, ["John Smith " * 20_000])


@needs_names
def test_patience_ends() -> None:
    with contextlib.ExitStack() as stack:
        hasty = Apart(NAMES, patience=0.0)
        stack.callback(hasty.stop)
        asyncio.run(hasty.start())
        with pytest.raises(NotMade, match="it took over"):
            record(hasty, ["I am John Smith."])


@needs_names
def test_a_killed_worker_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as worker:
        assert worker.stdout is not None
        loaded, helper = worker.stdout.readline().split()
        assert loaded == "False"
        assert Path(f"/proc/{helper}").exists()
        worker.kill()
    eventually(lambda: not Path(f"/proc/{helper}").exists())


@needs_names
def test_no_name_is_on_disk_and_the_record_is_before_the_last_byte(tmp_path: Path) -> None:
    rows = [
        Row(ask("I am John Smith."), "Hello John Smith, good morning", None, "gpt-4o", None),
        Row(ask("stream"), "Hello John Smith, good morning", None, "gpt-4o", None),
    ]
    spool = SpoolSettings(rotate_seconds=60.0)
    with serving(create_replay(rows)) as teacher:
        app = create_app(ProxySettings(), TeacherSettings(url=teacher), spool, tmp_path, redaction=NAMES)
        with serving(app) as url, openai.OpenAI(base_url=url, api_key="sk-x", max_retries=0) as client:
            for number, text in enumerate(("I am John Smith.", "stream"), 1):
                said = ""
                answer: Any = client.chat.completions.create(
                    model="gpt-4o", messages=list(ask(text)), stream=text == "stream"
                )
                if text == "stream":
                    said = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
                else:
                    said = answer.choices[0].message.content
                kept = [line for segment in open_segments(tmp_path) for line in segment.read_bytes().splitlines()]
                assert said == "Hello John Smith, good morning"
                assert len(kept) == number
    assert len(closed_segments(tmp_path)) == 1
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"Smith" not in everything
    assert everything.count(b"[NAME_1]") >= 2


@needs_names
def test_what_could_not_be_redacted_is_counted_and_the_client_is_answered(tmp_path: Path) -> None:
    text = "John Smith " * 20_000
    with serving(create_replay([Row(ask(text), "Yes", None, "gpt-4o", None)])) as teacher:
        app = create_app(ProxySettings(), TeacherSettings(url=teacher), SpoolSettings(), tmp_path, redaction=NAMES)
        with serving(app) as url, openai.OpenAI(base_url=url, api_key="sk-x", max_retries=0) as client:
            answer = client.chat.completions.create(model="gpt-4o", messages=ask(text))  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "Yes"
    assert open_segments(tmp_path) == closed_segments(tmp_path) == []
