import json
import logging
import socket
import subprocess
import sys
from typing import Any

import pytest

from proxy.errors import BadInput
from proxy.logs import JsonLines, Seldom, TextLines, set_up

SECRET = "sk-proj-" + "Ab3" * 14
# What a process says, set up as ours are; then it ends by a defect.
PROGRAM = """
import logging, sys, warnings
from proxy.logs import set_up
set_up("json", "info", "worker 2")
logging.getLogger("stillroom.proxy").error("exchange %s is not recorded: %s", "01J0", "no space left")
logging.getLogger("stillroom.proxy").info("below it")
logging.getLogger("stillroom.proxy").debug("far below it")
warnings.warn("deprecated", DeprecationWarning)
raise ValueError("a body: top secret")
"""
SERVER = """
import socket, sys, uvicorn
from proxy.logs import set_up
from proxy.wire import Wire
set_up("json", "warning", "worker 1")
async def app(scope, receive, send): ...
config = uvicorn.Config(app, http=Wire, ws="none", lifespan="off", log_level="warning", log_config=None)
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


def record(message: str, *args: Any, error: BaseException | None = None) -> logging.LogRecord:
    caught = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("stillroom.proxy", logging.ERROR, __file__, 7, message, args, caught)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_each_line_is_one_object() -> None:
    done = subprocess.run([sys.executable, "-W", "default", "-c", PROGRAM], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [(line["level"], line["logger"]) for line in lines] == [
        ("ERROR", "stillroom.proxy"), ("INFO", "stillroom.proxy"), ("WARNING", "py.warnings"), ("CRITICAL", "stillroom")
    ]  # fmt: skip
    assert {line["process"] for line in lines} == {"worker 2"}
    assert lines[0]["message"] == "exchange 01J0 is not recorded: no space left"
    assert lines[0]["exchange"] == "01J0"
    assert all("exchange" not in line for line in lines[1:])
    assert lines[0]["ts"].endswith("+00:00")
    assert lines[3]["exception"].endswith("ValueError")
    assert "top secret" not in done.stderr


def test_malformed_requests_cannot_fill_a_disk() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SERVER, str(listener.fileno())]
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True)
        for _ in range(200):
            with socket.create_connection(listener.getsockname()) as client:
                client.sendall(b"\x00 nonsense\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 400")
        server.terminate()
        _, said = server.communicate(timeout=30)
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line["message"].split(" (")[0] for line in lines} == {"Invalid HTTP request received."}
    assert 1 <= len(lines) < 100


def test_what_was_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("proxy.logs.time.monotonic", lambda: now)
    seldom = Seldom()
    assert [seldom.filter(record("bad")) for _ in range(5)] == [True, False, False, False, False]
    other = logging.LogRecord("x", logging.ERROR, __file__, 8, "another place", (), None)
    assert seldom.filter(other)
    now = 101.0
    late = record("bad %s", "100%s")
    assert seldom.filter(late)
    assert late.getMessage() == "bad 100%s (4 more of these before)"
    assert not seldom.filter(record("bad"))


@pytest.mark.parametrize("lines", [JsonLines("worker 1"), TextLines("worker 1")])
def test_no_secret_leaves(lines: logging.Formatter) -> None:
    said = lines.format(record("refused: %s", f"Authorization: Bearer {SECRET}", error=raised(OSError(SECRET))))
    assert "refused" in said
    assert SECRET not in said


def test_of_an_exception_only_our_own_words_are_told() -> None:
    error = raised(BadInput("say which"), raised(ValueError("the body")))
    for lines in (JsonLines("controller"), TextLines("controller")):
        said = lines.format(record("failed", error=error))
        assert "BadInput: say which" in said
        assert "ValueError" in said
        assert "in raised" in said
        assert "the body" not in said


def test_nobody_writes_a_line_of_his_own() -> None:
    said = record("task %s", "a\n2026-01-01 ERROR forged\r\x1b[2J")
    assert TextLines("worker 1").format(said).count("\n") == 0
    assert "worker 1 stillroom.proxy: task a\\n2026" in TextLines("worker 1").format(said)
    assert "\n" not in JsonLines("worker 1").format(said)


@pytest.mark.parametrize(("form", "level", "named"), [("xml", "info", "text, json"), ("json", "loud", "WARNING")])
def test_unknown_words_are_refused(form: str, level: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        set_up(form, level, "serve")
