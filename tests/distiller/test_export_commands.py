import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from distiller import export as module
from distiller.export import Exported
from distiller.gguf_file import write_gguf
from stillroom import main
from tests.deployment import PROGRAM, ROOT
from tests.distiller.exportable import Exportable, exportable
from tests.router.conftest import TASK


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Exportable:
    monkeypatch.setenv("COLUMNS", "160")
    return exportable()


def run(made: Exportable, *words: str) -> int:
    return main([words[0], "--config", str(made.config), *words[1:]])


def test_merged_and_eight_bits_are_made_where_nothing_is_said(
    made: Exportable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made, "export", TASK, "--to", str(tmp_path)) == 0
    shown = capsys.readouterr()
    assert re.search(r"q8_0 .*100\.00%.* 30 .*made", shown.out)
    assert f"merged: {tmp_path / made.bundle.id / 'merged'}" in shown.out
    assert "asking q8_0: 38 of 38" in shown.err
    assert run(made, "export", TASK, "--gguf", "--to", str(tmp_path), "--json") == 0
    shown = capsys.readouterr()
    (found,) = json.loads(shown.out)
    assert (found["kind"], found["fresh"], found["passed"], found["proof"]["kept"]) == ("q8_0", False, True, 1.0)
    assert shown.err == ""


def test_a_refused_file_is_told_with_its_figures_and_the_code(
    made: Exportable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "write_gguf", lambda _, *rest: write_gguf(made.base, *rest))
    assert run(made, "export", TASK, "--gguf", "q4_0", "--to", str(tmp_path)) == 1
    shown = capsys.readouterr()
    assert "stillroom: q4_0 is refused: it keeps 0.00% of the student's score" in shown.err
    assert re.search("q4_0 .*refused", shown.out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "nothing"], "task 'nothing' has no candidate"),
        (["export", TASK, "--candidate", "student-0"], "has no candidate 'student-0'"),
        (["export", TASK, "--to", "/dev/null/there"], "the export cannot be written"),
        (["export", TASK, "--vllm"], "export.compressor is not set"),
        (["edge", "nothing"], "task 'nothing' has no candidate"),
        (["edge", TASK], "run `stillroom export TASK --gguf` first"),
    ],
)
def test_what_goes_wrong_is_one_line(
    words: list[str], said: str, made: Exportable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made, *words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("stillroom: ")
    assert error.count("\n") == 1


def test_an_unknown_kind_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", TASK, "--gguf", "q3_k"])
    assert "invalid choice: 'q3_k'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", TASK, "--vllm", "int8"])
    assert "invalid choice: 'int8' (choose from 'fp8', 'w4a16')" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["task", "folder"])
def test_an_exported_student_is_served_on_this_cpu(by: str, made: Exportable, tmp_path: Path) -> None:
    home = tmp_path / "home"
    config = made.moved(home)
    assert main(["export", TASK, "--gguf", "q8_0", "--config", str(config)]) == 0
    folder = home / "exports" / made.bundle.id / "gguf" / "q8_0"
    named = [TASK, "--config", str(config)] if by == "task" else [str(folder)]
    command = [*PROGRAM, "edge", *named, "--port", "0"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    line = child.stdout.readline()
    assert made.bundle.id in line
    body = {"model": "any", "messages": [{"role": "user", "content": "lamp 3 is red"}]}
    said = httpx.post(f"{line.split()[3]}/chat/completions", json=body).json()
    assert said["choices"][0]["message"]["content"] == "stop"
    assert said["model"] == made.bundle.id
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0
    child.communicate()


def test_without_llama_cpp_the_extra_is_named(
    made: Exportable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert run(made, "export", TASK, "--gguf", "--to", str(tmp_path)) == 1
    assert "pip install 'stillroom[edge]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ([], ["merged", "q8_0"]),
        (["--vllm"], ["fp8"]),
        (["--vllm", "w4a16", "fp8", "w4a16"], ["w4a16", "fp8"]),
        (["--vllm", "w4a16", "--gguf", "--merged"], ["merged", "q8_0", "w4a16"]),
    ],
)
def test_what_is_asked_for_is_made_once_and_nothing_else(
    words: list[str], kinds: list[str], made: Exportable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def export(*told: Any) -> list[Exported]:
        asked.extend(told[3])
        return []

    monkeypatch.setattr(module, "export", export)
    assert run(made, "export", TASK, *words) == 0
    assert asked == kinds
