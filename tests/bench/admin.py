"""What the admin API makes of everything its own OpenAPI document allows, and of what it does not.

    python -m tests.bench.admin [--examples 200] [--seed 1]     (make bench-admin; about two minutes)

Schemathesis runs against a real deployment with and without the token; without it, nothing but /healthz and /readyz
may answer.
Prints operations, cases and failures; any failure makes the exit code 1.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench import canned
from tests.bench.measure import upstream
from tests.bench.peers import KEPT
from tests.deployment import Deployment, in_front_of, up
from tests.servers import eventually

SCHEMATHESIS = "4.32.5"
SETTINGS = "[proxy]\nworkers = 1\n[spool]\nrotate_seconds = 0.5\n[serving]\nport = 1\n"
_TOKEN = "benchmark-token"
_REFUSED: Sequence[dict[str, str]] = (
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": f"Basic {_TOKEN}"},
    {"authorization": _TOKEN[:-1]},
)
_OPEN = ("/healthz", "/readyz")


@dataclass(frozen=True, slots=True)
class Row:
    """One way to ask, and what came of it."""

    name: str
    operations: int
    cases: int
    failures: Sequence[str]


def main() -> int:
    """Run and print; the exit code says whether anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=200, help="most cases an operation and phase (default: 200)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    program = _installed()
    if program is None:
        print("schemathesis could not be installed from the package registry: see above", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name, upstream(Path(name), 1) as teacher:
        secret, lines = {"ADMIN_TOKEN": _TOKEN}, 'token_env = "ADMIN_TOKEN"'
        with in_front_of(teacher, Path(name), SETTINGS, secret, lines) as deployment:
            options = ["--max-examples", str(arguments.examples), "--seed", str(arguments.seed)]
            rows = _rows(deployment, [program, "run"], options, Path(name))
    print("| asked | operations | cases | failures |\n|---|--:|--:|--:|")
    for row in rows:
        print(f"| {row.name} | {row.operations} | {row.cases:,} | {len(row.failures)} |")
    failures = [f"{row.name}: {failure}" for row in rows for failure in row.failures]
    print(*failures, sep="\n")
    return 1 if failures else 0


def _rows(deployment: Deployment, program: Sequence[str], options: Sequence[str], folder: Path) -> list[Row]:
    eventually(lambda: up(f"{deployment.admin}/healthz"), 60)
    for _ in range(20):  # So that there is something to show.
        httpx.post(f"{deployment.url}/chat/completions", content=canned.question(1000, 0)).raise_for_status()
    token = {"authorization": f"Bearer {_TOKEN}"}
    answer = httpx.get(f"{deployment.admin}/openapi.json", headers=token).raise_for_status()
    schema = folder / "openapi.json"
    schema.write_bytes(answer.content)
    before = {name: deployment.children(name) for name in ("worker", "controller")}
    told = ["--url", deployment.admin, *options]
    given = ["--header", f"Authorization: Bearer {_TOKEN}", "--checks", "all"]
    rows = [
        _schemathesis("with the token", [*program, str(schema), *told, *given], folder),
        _schemathesis("without", [*program, str(schema), *told, "--checks", "not_a_server_error"], folder),
        _refused(deployment.admin, answer.json()["paths"]),
    ]
    after = {name: deployment.children(name) for name in before}
    ended = [f"the {name} was started again" for name in before if before[name] != after[name]]
    return [*rows, Row("processes", 0, len(before), ended)]


def _schemathesis(name: str, command: Sequence[str], folder: Path) -> Row:
    """One run; its report goes to stderr."""
    report = folder / "report.json"
    command = [*command, "--continue-on-failure", "--no-color", "--report", "json", "--report-json-path", str(report)]
    code = subprocess.run(command, cwd=folder, stdout=sys.stderr).returncode
    found = json.loads(report.read_text())
    failures = [f"{each['title']} ({each['count']}): {', '.join(each['operations'])}" for each in found["failures"]]
    failures += [f"error: {json.dumps(each)}" for each in found["errors"]]
    if code and not failures:
        failures.append(f"schemathesis ended with exit code {code}")
    return Row(name, found["operations"]["tested"], found["test_cases"]["generated"], failures)


def _refused(url: str, paths: dict[str, dict[str, object]]) -> Row:
    """Every operation, and the document itself, without a token or with a wrong one."""
    asked = [(method, path) for path, methods in paths.items() for method in methods if path not in _OPEN]
    asked += [("get", "/openapi.json"), ("get", "/docs"), ("get", "/no-such-path"), ("head", "/metrics")]
    answers = [
        (httpx.request(method, url + path.replace("{", "").replace("}", ""), headers=headers), method, path)
        for method, path in asked
        for headers in _REFUSED
    ]
    wrong = [f"{method} {path}: {answer.status_code}" for answer, method, path in answers if answer.status_code != 401]
    return Row("with no token or a wrong one: a 401", len(asked), len(answers), wrong)


def _installed() -> str | None:
    folder = KEPT / f"schemathesis-{SCHEMATHESIS}"
    ready = folder / ".ready"
    if not ready.exists():
        print(f"installing schemathesis=={SCHEMATHESIS} in {folder} (once)", file=sys.stderr, flush=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"schemathesis=={SCHEMATHESIS}"]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], pip):
            if subprocess.run(command).returncode:
                return None
        ready.touch()
    return str(folder / "bin" / "schemathesis")


if __name__ == "__main__":
    sys.exit(main())
