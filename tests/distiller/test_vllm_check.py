"""How vLLM is asked, on the real one: it is started once for these tests, with a toy student's merged folder."""

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from distiller import vllm_check
from distiller.examples import render_prompt
from distiller.export import MERGED, export
from distiller.proof import Asking, cases, prove
from distiller.serving import Command, EngineSettings
from distiller.settings import Settings
from distiller.vllm_check import vllm
from proxy.errors import Unavailable
from tests.distiller.exportable import exportable

LAMP = [{"role": "user", "content": "lamp 3 is red"}]


@dataclass(frozen=True)
class Real:
    folder: Path
    settings: Settings
    engine: Asking


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    one, target = exportable(), tmp_path_factory.mktemp("exports")
    log = one.log()
    (found,) = export(log, one.settings, one.candidate, [MERGED], target, lambda *_: None)
    log.close()
    folder, settings = Path(str(found.folder)), replace(one.settings, home=str(target / "home"))
    with vllm(folder, settings, one.candidate.card) as engine:
        yield Real(folder, settings, engine)
    with pytest.raises(Unavailable, match=r"^vLLM does not answer"):  # It ends with the last of its tests.
        engine.ask(LAMP)


def script(source: str) -> Callable[[EngineSettings], Command]:
    return lambda settings: ([sys.executable, "-S", "-c", source], {})


@pytest.mark.loop
@pytest.mark.timeout(600)
def test_it_answers_as_a_student_is_asked(started: Real) -> None:
    reply = started.engine.ask([{"role": "system", "content": ""}, *LAMP])
    assert (reply.text, reply.finished) == ("stop", True)
    assert len(reply.logprobs) == reply.tokens + 1  # the end of the turn is one
    assert all(one <= 0 for one in reply.logprobs)
    assert reply.prompt_tokens == len(started.engine.read([{"role": "system", "content": ""}, *LAMP]))
    assert reply.prompt_ms > 0
    assert reply.ms > 0
    peak = started.engine.peak()
    assert peak is not None
    assert peak > 2**28
    with pytest.raises(
        Unavailable, match=r"^vLLM answered 400: .*; raise serving\.max_model_len if a prompt is too long"
    ):
        started.engine.ask([{"role": "user", "content": "lamp " * 3000}])


@pytest.mark.loop
@pytest.mark.timeout(600)
def test_it_reads_what_the_template_makes_of_messages(started: Real) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exportable().base)
    asked = [{"role": "system", "content": "Day 3"}, *LAMP]
    ours = tokenizer(render_prompt(tokenizer, asked), add_special_tokens=False)["input_ids"]
    assert started.engine.read(asked) == ours


@pytest.mark.loop
@pytest.mark.timeout(600)
def test_what_was_merged_is_the_student_still(started: Real) -> None:
    one = exportable()
    log = one.log()
    rows, gone = cases(log, one.bundle)
    log.close()
    tokenizer = AutoTokenizer.from_pretrained(started.folder)
    serving = partial(contextlib.nullcontext, started.engine)
    proof = prove(serving, one.bundle, rows, gone, lambda answers: [0.0 for _ in answers], tokenizer, lambda *_: None)
    assert (proof.rows, proof.gone, proof.kept, proof.read_alike) == (30, 0, 1.0, 30)
    assert proof.golden_alike == proof.golden == 8
    assert proof.speed > 0
    assert proof.prompt_speed > 0
    assert proof.calibration.before is not None
    assert proof.calibration.before.ece == pytest.approx(one.bundle.manifest["calibration"]["before"]["ece"], abs=0.05)


def test_an_engine_that_does_not_come_up_is_unavailable_with_what_it_said(tmp_path: Path) -> None:
    settings = replace(exportable().settings, home=str(tmp_path))
    says = script("import sys; print('ValueError: no kernel for fp8\\n  ^^^'); sys.exit(3)")
    with pytest.raises(Unavailable) as raised:
        with vllm(tmp_path, settings, {}, says):
            pytest.fail("nothing is up")
    log = tmp_path / "logs" / "export.log"
    assert str(raised.value) == f"the engine exited with code 3: ValueError: no kernel for fp8 (see {log})"
    assert "no kernel" in log.read_text()


def test_a_port_that_is_taken_meanwhile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(exportable().settings, home=str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(vllm_check, "free_port", partial(int, taken.getsockname()[1]))
        with pytest.raises(Unavailable, match=rf"^port {taken.getsockname()[1]} is not free"):
            with vllm(tmp_path, settings, {}):
                pytest.fail("nothing is up")
