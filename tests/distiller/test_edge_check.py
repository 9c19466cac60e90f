import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from distiller.edge import CARD, Running
from distiller.edge_check import llama
from distiller.examples import render_prompt
from distiller.export import export
from distiller.proof import Asking
from proxy.errors import Unavailable
from tests.distiller.exportable import exportable

RUNNING = Running(512, 1)
LAMP = [{"role": "user", "content": "lamp 3 is red"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a toy student's unquantised file."""
    one, target = exportable(), tmp_path_factory.mktemp("exports")
    log = one.log()
    (found,) = export(log, one.settings, one.candidate, ["bf16"], target, lambda *_: None)
    log.close()
    return Path(str(found.folder))


@pytest.fixture
def engine(folder: Path) -> Iterator[Asking]:
    with llama(folder, RUNNING) as engine:
        yield engine
    assert not (folder / "engine.log").exists()


def test_it_answers_as_clients_would_be_answered(engine: Asking) -> None:
    reply = engine.ask(LAMP)
    assert (reply.text, reply.finished) == ("stop", True)
    assert len(reply.logprobs) == reply.tokens
    assert all(one <= 0 for one in reply.logprobs)
    assert reply.prompt_ms > 0
    assert reply.ms > 0
    peak = engine.peak()
    assert peak is not None
    assert peak > 2**20


def test_it_reads_what_the_template_makes_of_messages(engine: Asking) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exportable().base)
    asked = [{"role": "system", "content": "Day 3"}, *LAMP]
    ours = tokenizer(render_prompt(tokenizer, asked), add_special_tokens=False)["input_ids"]
    assert engine.read(asked) == ours
    assert engine.ask(LAMP).prompt_tokens == len(engine.read([{"role": "system", "content": ""}, *LAMP]))


def test_a_prompt_over_the_context_says_what_to_raise(engine: Asking) -> None:
    with pytest.raises(Unavailable, match=r"400: .*exceeds the available context size.*raise edge\.context"):
        engine.ask([{"role": "user", "content": "lamp " * 600}])


def test_a_file_that_does_not_load_says_what_the_engine_said(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(Unavailable, match=r"llama\.cpp does not start: .* holds no exported student"):
        with llama(tmp_path, RUNNING):
            pass


def test_an_engine_that_dies_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with llama(folder, RUNNING) as engine:
        ask = partial(engine.ask, LAMP)
    with pytest.raises(Unavailable, match=r"llama\.cpp does not answer"):
        ask()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match=r"llama\.cpp does not start: it wrote nothing"):
        with llama(folder, RUNNING):
            pass
