import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from distiller.command_line import build_parser
from proxy.traffic_file import Row
from stillroom import COMMANDS, main
from tests.deployment import PROGRAM, ROOT, deployed
from tests.servers import eventually, free_port


def test_every_command_in_the_readme_exists() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]
    stillroom = [line[1:] for line in lines if line[0] == "stillroom"]
    assert len(stillroom) >= 11
    for arguments in stillroom:
        assert build_parser(COMMANDS).parse_args(arguments).command
    targets = {line[1] for line in lines if line[0] == "make"}
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--config", "missing.toml"], "no settings file"),
        (["tasks"], "there is no log"),
        (["status"], "there is no log"),
        (["sql", "select 1"], "there is no log"),
        (["explain", "t", "--budget", "1"], "there is no log"),
        (["explain", "t", "--budget", "-1"], "--budget is US dollars"),
        (["rollback", "t", "--reason", "r"], "there is no log"),
        (["replay-teacher", "--traffic", "missing.jsonl"], "missing.jsonl"),
        (["replay-teacher", "--traffic", "broken.jsonl"], "line 2"),
        (["demo", "--traffic", "broken.jsonl"], "line 2"),
        (["demo", "--folder", "thesis"], "not a demo's"),
        (["erase", "--user", "x", "--yes"], "there is no log"),
        (["keys", "create"], "say whose key: stillroom keys create NAME"),
        (["keys", "revoke", "nobody"], "no key 'nobody' to revoke"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    good = '{"messages": [{"role": "user", "content": "x"}], "teacher_output": "y", "teacher_model": "gpt-4o"}\n'
    (tmp_path / "broken.jsonl").write_text(good + "{oops\n")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("stillroom: ")
    assert error.count("\n") == 1


def test_keys_are_made_listed_and_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "create", "billing-bot", "--model", "gpt-4o"]) == 0
    made = capsys.readouterr()
    assert made.out.startswith("sk-still-")
    assert "set proxy.keys = true" in made.err
    assert main(["keys", "list", "--json"]) == 0
    assert main(["keys", "revoke", "billing-bot"]) == 0
    assert main(["keys", "list"]) == 0
    shown = capsys.readouterr().out
    assert "billing-bot is revoked" in shown
    assert made.out.strip() not in shown


def test_a_port_in_use_is_said_without_a_trace(tmp_path: Path) -> None:
    config = tmp_path / "stillroom.toml"
    port = free_port()
    config.write_text(f'home = "home"\n[proxy]\nport = {port}\n')
    occupy = "import socket, subprocess, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
    run = "sys.exit(subprocess.run([sys.executable, '-m', 'stillroom', 'serve', '--config', sys.argv[2]]).returncode)"
    done = subprocess.run(
        [sys.executable, "-c", occupy + run, str(port), str(config)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "it is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_stops_the_start(tmp_path: Path) -> None:
    config = tmp_path / "stillroom.toml"
    config.write_text("[proxy]\nworker = 2\n")
    done = subprocess.run([*PROGRAM, "serve", "--config", str(config)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "did you mean 'workers'" in done.stderr


def test_keys_open_and_close_a_running_proxy(tmp_path: Path) -> None:
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": "greet"}]}
    rows = [Row(tuple(asked["messages"]), "hello", None, "gpt-4o", None)]  # type: ignore[arg-type]
    with deployed(tmp_path, rows, "[proxy]\nkeys = true\n[serving]\nport = 1\n") as running:

        def answers(key: str, status: int) -> bool:
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx.post(f"{running.url}/chat/completions", json=asked, headers=headers)
            return answer.status_code == status

        assert answers("sk-of-nobody", 401)
        key = running.run("keys", "create", "billing-bot").strip()
        assert eventually(lambda: answers(key, 200))
        running.run("keys", "revoke", "billing-bot")
        assert eventually(lambda: answers(key, 401))
