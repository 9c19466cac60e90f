import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller import edge
from distiller.edge import CARD, Running, Served, exported, read_served, start_llama, student_request
from distiller.export import export
from distiller.generate import generate
from proxy.errors import BadInput, Unavailable
from router.prompt import line_hash, student_messages
from tests.distiller.exportable import Exportable, exportable
from tests.servers import ended, eventually
from tests.test_mirror import ROOT

SERVED = Served("student-1", "it.gguf", "", {}, (line_hash("Say which queue."),), 16)


def messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Say which queue."}, {"role": "user", "content": text}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exportable, Path]:
    """A toy student, and the folder with its unquantised file."""
    one, target = exportable(), tmp_path_factory.mktemp("exports")
    log = one.log()
    (found,) = export(log, one.settings, one.candidate, ["bf16"], target, lambda *_: None)
    log.close()
    return one, Path(str(found.folder))


@contextmanager
def running(folder: Path, program: str = "from distiller.edge import main; main()") -> Iterator[tuple[str, Any]]:
    command = [sys.executable, "-c", program, str(folder), "0", "512", "1"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    line = child.stdout.readline()
    try:
        assert " answers on http://127.0.0.1:" in line, line + child.stdout.read()
        yield line.split()[3], child
    finally:
        child.send_signal(signal.SIGTERM)
        child.communicate()


@pytest.fixture(scope="module")
def url(made: tuple[Exportable, Path]) -> Iterator[str]:
    with running(made[1]) as (url, _):
        yield url


def test_it_answers_greedily_what_the_student_answers_and_as_surely(made: tuple[Exportable, Path], url: str) -> None:
    student, asked = (
        made[0],
        [messages(f"lamp {n} is {colour}") for n in range(9) for colour in ("red", "amber", "lit")],
    )
    static = frozenset(student.bundle.manifest["card"]["static"])
    shown = [student_messages(one, static) for one in asked]
    wanted = generate(student.base, student.bundle.path / "adapter", shown, 6, 1, lambda *_: None)
    for one, said in zip(asked, wanted, strict=True):
        body = {"messages": one, "logprobs": True, "temperature": 1.5, "seed": 1}
        choice = httpx.post(f"{url}/chat/completions", json=body).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"] == "stop") == (said.text, said.finished)
        found = [token["logprob"] for token in choice["logprobs"]["content"]]
        assert found == pytest.approx(list(said.logprobs), abs=0.05)  # end of turn included
        assert math.exp(sum(found)) == pytest.approx(said.confidence, rel=0.1)


def test_a_stream_is_passed_on(url: str) -> None:
    whole = httpx.post(f"{url}/chat/completions", json={"messages": messages("lamp 1 is red")}).json()
    with httpx.stream(
        "POST", f"{url}/chat/completions", json={"messages": messages("lamp 1 is red"), "stream": True}
    ) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "[DONE]"
    said = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert "".join(said) == whole["choices"][0]["message"]["content"]


def test_models_and_health_are_told(made: tuple[Exportable, Path], url: str) -> None:
    assert [one["id"] for one in httpx.get(f"{url}/models").json()["data"]] == [made[0].bundle.id]
    health = httpx.get(url.replace("/v1", "/health")).json()
    assert health["status"] == "ok"
    shown = httpx.get(f"{health['engine']}/v1/models", headers={"origin": "http://evil.example"})
    assert shown.headers["access-control-allow-origin"] == ""  # No page in a browser may read it.
    assert httpx.get(f"{health['engine']}/slots").status_code == 501


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "not a chat completion request"),
        ("[]", "not a chat completion request"),
        ("{}", "not a chat completion request"),
        ('{"messages": "hello"}', "not a chat completion request"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "a student reads text only"),
        ('{"messages": [], "tools": [{}]}', "asks for tools"),
        ('{"messages": [], "n": 2}', "several choices"),
        ('{"messages": [], "max_tokens": -1}', "a limit of -1 tokens"),
        ('{"messages": [], "max_tokens": "9"}', "a limit of 9 tokens"),
    ],
)
def test_what_a_student_cannot_do_is_refused_in_openais_envelope(body: str, said: str, url: str) -> None:
    answer = httpx.post(f"{url}/chat/completions", content=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_prompt_over_the_context_is_an_error_with_its_length(url: str) -> None:
    answer = httpx.post(f"{url}/chat/completions", json={"messages": messages("lamp " * 600)}, timeout=30)
    assert answer.status_code == 400
    assert "exceeds the available context size (512 tokens)" in answer.json()["error"]["message"]


@given(limit=st.one_of(st.none(), st.integers(1)), later=st.one_of(st.none(), st.integers(1)))
def test_an_answer_is_bounded_by_what_was_taught_and_what_the_client_allows(
    limit: int | None, later: int | None
) -> None:
    body = {"messages": messages("x"), "max_tokens": limit, "max_completion_tokens": later, "temperature": 2}
    asked = student_request(SERVED, body)
    assert asked["max_tokens"] == min(later or limit or 16, 16)
    assert asked["temperature"] == 0


def test_learned_instructions_are_left_out_and_what_is_not_for_a_student_too() -> None:
    body = {"model": "gpt-4o", "messages": messages("x"), "user": "ann", "response_format": {"type": "json_object"}}
    asked = student_request(SERVED, body | {"stream": True, "top_p": 0.1})
    assert asked == {
        "model": "student-1", "stream": True, "temperature": 0, "max_tokens": 16, "cache_prompt": False,
        "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "x"}],
    }  # fmt: skip


def test_no_torch_is_in_the_process(made: tuple[Exportable, Path]) -> None:
    program = """
import sys
from aiohttp import web
from distiller.edge import main
heavy = {"torch", "transformers", "numpy", "duckdb", "litellm", "gguf"}
found = web.run_app
web.run_app = lambda *a, **k: (print(*sorted(heavy & sys.modules.keys()), "loaded", flush=True), found(*a, **k))
main()
"""
    with running(made[1], program) as (_, child):
        assert child.stdout.readline() == "loaded\n"
        assert "xllamacpp" in Path(f"/proc/{child.pid}/maps").read_text()


def test_it_ends_with_whoever_started_it(made: tuple[Exportable, Path]) -> None:
    program = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "distiller.edge", {str(made[1])!r}, "0", "512", "1"])
print(child.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert " answers on " in parent.stdout.readline()
    parent.kill()
    parent.communicate()
    eventually(lambda: ended(pid))


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def cut(folder: Path) -> None:
    (file,) = folder.glob("*.gguf")
    file.write_bytes(file.read_bytes()[:-1])


def unnamed(folder: Path) -> None:
    (folder / CARD).write_text("{}")


@pytest.mark.parametrize(
    ("change", "said"),
    [(cut, "was changed"), (unnamed, "no exported student"), (lambda folder: (folder / CARD).unlink(), "no exported")],
)
def test_what_is_not_as_it_was_exported_is_not_served(
    change: Callable[[Path], None], said: str, made: tuple[Exportable, Path], tmp_path: Path
) -> None:
    folder = copied(made[1], tmp_path / "copy")
    assert read_served(folder).student == made[0].bundle.id
    change(folder)
    with pytest.raises(BadInput, match=said):
        read_served(folder)


def test_a_file_that_llama_cpp_cannot_load_is_said(tmp_path: Path) -> None:
    (tmp_path / "it.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(Unavailable, match=r"llama\.cpp does not load"):
        start_llama(SERVED, tmp_path, Running(512, 1))


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(Unavailable, match=r"pip install 'stillroom\[edge\]'"):
        start_llama(SERVED, tmp_path, Running(512, 1))


def test_the_smallest_file_of_a_student_is_found(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="stillroom export TASK --gguf"):
        exported(tmp_path, "student-1")
    for kind, size in (("q8_0", 90), ("q4_0", 50), (".making-x", 1)):
        folder = tmp_path / "student-1" / "gguf" / kind
        folder.mkdir(parents=True)
        (folder / CARD).touch()
        (folder / "it.gguf").write_bytes(bytes(size))
    assert exported(tmp_path, "student-1").name == "q4_0"


def test_main_says_what_is_wrong_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["edge", str(tmp_path), "0", "512", "1"])
    monkeypatch.setattr(edge, "end_with_parent", lambda: None)
    assert edge.main() == 1
    assert "holds no exported student" in capsys.readouterr().err
