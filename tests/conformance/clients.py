"""Owns the clients under test: how each is installed, and how it is run against a URL.

Must not know what is behind the URL, nor what is compared. A client runs as a process of its own, in an environment
under `.bench/` that is made at run time, with pinned versions.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.bench.peers import KEPT as BENCH
from tests.bench.processes import Failed
from tests.conformance.calls import KEY, MODEL, all_calls

KEPT = BENCH / "conformance"
PYTHON = ("openai==3.57.0", "langchain-openai==1.7.4", "langchain-tests==1.1.9")
NPM = "openai@7.57.0"
_HERE = Path(__file__).parent
_TIMEOUT = 1800.0
_ERROR_CLASS = re.compile(r"[\w.]+")
# From a base URL, an empty folder and the wanted names (None: all) to a result by name.
Run = Callable[[str, Path, Collection[str] | None], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Client:
    """A row of the table."""

    name: str
    title: str
    run: Run


def all_clients() -> list[Client]:
    """The rows, in the order of the table."""
    return [
        Client("python", f"openai for Python, {PYTHON[0]}", openai_python),
        Client("node", f"openai for Node, {NPM}", _node),
        Client("langchain", f"LangChain's standard tests, {PYTHON[1]}, {PYTHON[2]}", _langchain),
    ]


def install() -> None:
    """Make both environments, once. Failed where the registry does not give them."""
    _installed(
        "python",
        [[sys.executable, "-m", "venv", "--clear", "."], [_program(), "-m", "pip", "install", "--quiet", *PYTHON]],
    )
    _installed("node", [["npm", "install", "--silent", "--prefix", ".", NPM]])


def _installed(name: str, commands: list[list[str]]) -> None:
    folder = KEPT / name
    pinned = json.dumps(commands)
    ready = folder / ".ready"
    if ready.exists() and ready.read_text() == pinned:
        return
    print(f"installing {name}'s packages in {folder} (once)", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command in commands:
        if subprocess.run(command, cwd=folder).returncode:
            raise Failed(f"{' '.join(command)} failed: see the messages above")
    ready.write_text(pinned)


def _program() -> str:
    return str(KEPT / "python" / "bin" / "python")


def openai_python(url: str, folder: Path, names: Collection[str] | None, program: str | None = None) -> dict[str, Any]:
    """The calls with the SDK that `program`, a Python, has; without it, with the pinned one."""
    return _called([program or _program(), str(_HERE / "openai_python.py"), url, _calls(folder, names)])


def _node(url: str, folder: Path, names: Collection[str] | None) -> dict[str, Any]:
    return _called(["node", str(_HERE / "openai_node.mjs"), url, _calls(folder, names), str(KEPT / "node")])


def _calls(folder: Path, names: Collection[str] | None) -> str:
    file = folder / "calls.json"
    calls = [call for call in all_calls() if names is None or call.name in names]
    fields = ("name", "method", "arguments", "options")
    file.write_text(json.dumps([{"key": KEY, **{name: getattr(call, name) for name in fields}} for call in calls]))
    return str(file)


def _called(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, env=_environment({}))
    if done.returncode:
        raise Failed(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def _langchain(url: str, folder: Path, names: Collection[str] | None) -> dict[str, Any]:
    report = folder / "report.xml"
    test = str(_HERE / "langchain_standard.py")
    wanted = [test] if names is None else [f"{test}::TestStandard::{name}" for name in sorted(names)]
    # One event loop for all tests: LangChain keeps one connection pool for all models, and it belongs to a loop.
    options = (
        "asyncio_mode=auto",
        "asyncio_default_test_loop_scope=session",
        "asyncio_default_fixture_loop_scope=session",
    )
    command = [_program(), "-m", "pytest", "--quiet", "--noconftest", "-p", "no:cacheprovider"]
    command += [f"-o{option}" for option in options]
    command += ["-c", os.devnull, "--rootdir", str(folder), f"--junitxml={report}", *wanted]
    environment = _environment({"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY, "CONFORMANCE_MODEL": MODEL})
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, env=environment, cwd=folder)
    if done.returncode not in (0, 1):
        raise Failed(f"pytest failed: {(done.stdout + done.stderr)[-2000:]}")
    return {case.attrib["name"]: _outcome(case) for case in ElementTree.parse(report).iter("testcase")}


def _outcome(case: ElementTree.Element) -> Mapping[str, Any]:
    """One test's outcome and, where it failed, the class of the error."""
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            message = found.attrib.get("message", "")
            if kind == "skipped":
                return {"skipped": "xfailed" if found.attrib.get("type") == "pytest.xfail" else "skipped"}
            match = _ERROR_CLASS.match(message)
            return {"raised": match[0] if match else message, "when": kind}
    return {"returned": "passed"}


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours, less what would reach a real provider or a tracing service."""
    dropped = ("OPENAI_", "LANGSMITH_", "LANGCHAIN_")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)} | more
