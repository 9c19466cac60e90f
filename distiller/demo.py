"""Owns the demo: the whole loop as a user would run it, with the real processes and the real `stillroom` commands.

A replay teacher stands in for the paid one; nothing else is pretended. Every step is checked from outside (the log,
the answers' headers), and the demo fails where capture, training, serving, shadow or routing did not really happen.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

import aiohttp
from rich.console import Console

from distiller.base import DEFAULT_BASE
from distiller.distill import Distilled, distill
from distiller.sample_traffic import sample_traffic, write_traffic
from distiller.settings import Settings, load_settings
from distiller.terminal import money, progress, untuned
from proxy.errors import BadInput, StillroomError, Unavailable
from proxy.listening import free_port
from proxy.log import Log, open_log
from proxy.traffic_file import Row, read_traffic
from router.ledger import Report, report
from router.lifecycle import standing
from router.registry import CANARY, LIVE, SHADOW, Watch, candidates
from router.shadow import waiting

KEY = "STILLROOM_DEMO_KEY"
SEED = 7
SAMPLE, SAMPLE_EARLIER = 1400, 900
# A student on two cores answers one or two requests a second: more clients at once would be sent on to the teacher.
EARLIER_AT_ONCE, LATER_AT_ONCE = 16, 3
ENGINE_WAIT = 600.0
LOOK_SECONDS = 2.0  # each look costs a query, on the cores the engine needs

# What the demo changes of the defaults, and why: small numbers make the loop visible in minutes, and the
# teacher is a replay that answers at once, so that any student is slow beside it.
TOML = """home = "home"
[proxy]
port = {port}
[admin]
port = {admin}
[teacher]
url = "http://127.0.0.1:{teacher}"
key_env = "{key}"
[spool]
rotate_seconds = 0.5
[router]
canary_shares = [0.25, 0.5]
canary_exchanges = 5
max_slowdown = 0.0
audit_share = 0.2
shadow_concurrency = 16
candidate_concurrency = {at_once}
[money]
engine_hour = 0.1
training_hour = 0.1
[distiller]
students = ["adapter"]
base = "{base}"
min_exchanges = 200
max_rows = {rows}
epochs = {epochs}
train_tokens = {tokens}
control_rows = 24
rank = 8
[serving]
port = {engine}
max_lora_rank = 8
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Earlier traffic is what gets learned; the later part arrives as live traffic afterwards."""

    earlier: Sequence[Row]
    later: Sequence[Row]
    files: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Sent:
    """What clients saw: answers by who gave them, and requests that failed."""

    served: dict[str, int]
    failed: int


def run_demo(traffic_file: Path | None, folder: Path) -> int:
    """Run the loop in `folder`, which is made anew; returns 0 only when every step really happened."""
    started = time.monotonic()
    _fresh(folder)
    traffic = load_traffic(traffic_file, folder)
    ports = [free_port() for _ in range(4)]
    config = folder / "stillroom.toml"
    # Generated traffic is easy: one pass over it is enough, and the demo stays below ten minutes on two cores.
    rows, epochs, tokens = (400, 1, 0) if traffic_file is None else (2000, 2, 80_000)
    config.write_text(
        TOML.format(
            port=ports[0],
            teacher=ports[1],
            engine=ports[2],
            admin=ports[3],
            at_once=LATER_AT_ONCE,
            key=KEY,
            rows=rows,
            epochs=epochs,
            tokens=tokens,
            base=DEFAULT_BASE,
        )
    )
    os.environ[KEY] = "sk-demo"
    console = Console()
    with ExitStack() as stack:
        files = [argument for file in traffic.files for argument in ("--traffic", str(file))]
        _start(stack, folder / "teacher.log", ["replay-teacher", "--port", str(ports[1]), *files])
        _start(stack, folder / "serve.log", ["serve", "--config", str(config)])
        loop = _Loop(
            load_settings(config), traffic, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", console
        )
        loop.run()
    loop.summary(config, time.monotonic() - started)
    return 1 if loop.missing else 0


def load_traffic(file: Path | None, folder: Path) -> Traffic:
    """Recorded traffic with the `test.jsonl` beside it as the later part, else its own last fifth; or generated."""
    if file is None:
        rows = sample_traffic(SAMPLE, SEED)
        path = folder / "traffic.jsonl"
        write_traffic(rows, path)
        return Traffic(rows[:SAMPLE_EARLIER], rows[SAMPLE_EARLIER:], [path])
    earlier = [row for row in read_traffic(file) if row.tool_calls is None]
    beside = file.with_name("test.jsonl")
    if beside.exists() and beside.resolve() != file.resolve():
        return Traffic(earlier, [row for row in read_traffic(beside) if row.tool_calls is None], [file, beside])
    cut = len(earlier) - len(earlier) // 5
    return Traffic(earlier[:cut], earlier[cut:], [file])


class _Loop:
    """The steps of the demo and what each of them left to be seen."""

    def __init__(self, settings: Settings, traffic: Traffic, proxy: str, teacher: str, console: Console) -> None:
        self.settings, self.traffic, self.console = settings, traffic, console
        self.proxy, self.teacher = proxy, teacher
        self.missing: list[str] = []
        self.distilled: dict[str, Distilled | str] = {}
        self.sent = Sent({}, 0)
        self.total = 0

    def run(self) -> None:
        ready = f"http://127.0.0.1:{self.settings.admin.port}/readyz"  # The controller has made the log by then.
        awaited = [self.proxy + "/healthz", self.teacher + "/v1/models", ready]
        self._wait(lambda: all(map(_answers, awaited)), 60, "starting")
        self.log: Log = open_log(self.settings.log, self.settings.folder)
        self.watch = Watch(self.log)
        self._step(f"1. {len(self.traffic.earlier)} requests through the proxy, half of them streaming")
        self._send(self.traffic.earlier, EARLIER_AT_ONCE)
        self._captured()
        found = report(self.log).tasks
        self._step(f"2. distilling a student for the task that costs most, of {len(found)}")
        self._distill(found[0].task or "")
        if not any(isinstance(done, Distilled) for done in self.distilled.values()):
            self.missing.append("train: no task gave a student")
            return
        self._step("3. vLLM loads the students and answers their golden prompts")
        self._wait(self._serving, ENGINE_WAIT, "vLLM")
        self._step(
            f"4. {len(self.traffic.later)} later requests arrive; shadow compares, parity decides, routing follows"
        )
        self._live()
        self._captured()

    def _distill(self, task: str) -> None:
        try:
            with progress(quiet=False) as on_progress:
                self.distilled[task] = done = distill(self.log, self.settings, task, on_progress)
            self.console.print(
                f"   {task}: {done.bundle.id}, {done.trained_rows} rows in {done.trained['seconds']:.0f} s, "
                f"holdout agreement {done.holdout.student:.3f} ({untuned(done.holdout)}"
                f"most common answer {done.holdout.majority:.3f})"
            )
            for note in done.notes:
                self.console.print(f"   {note}", markup=False)
        except StillroomError as error:
            self.distilled[task] = str(error)
            self.console.print(f"   {task}: {error}")

    def _live(self) -> None:
        """Send the later traffic at the pace of the comparison, so that a promotion still finds traffic to serve."""
        rows = list(self.traffic.later)
        while rows:
            part, rows = rows[:64], rows[64:]
            self._send(part, LATER_AT_ONCE)
            self._wait(self._compared, 900, "shadow")
        self._wait(lambda: not self._unsettled(), 30, "the last transition", required=False)
        if not self.log.query("SELECT 1 FROM verdicts LIMIT 1"):
            self.missing.append("shadow: no verdict")
        certified = [c for c in candidates(self.log) if c.stage in (CANARY, LIVE)]
        if certified and sum(count for who, count in self.sent.served.items() if who != "teacher") == 0:
            self.missing.append("route: a student is certified and answered nothing")

    def _send(self, rows: Sequence[Row], at_once: int) -> None:
        sent = asyncio.run(send(self.proxy, rows, self.total, at_once))
        self.total += len(rows)
        served = {
            who: self.sent.served.get(who, 0) + sent.served.get(who, 0) for who in {*self.sent.served, *sent.served}
        }
        self.sent = Sent(served, self.sent.failed + sent.failed)
        if sent.failed:
            self.missing.append(f"answer: {sent.failed} requests failed")

    def _in_log(self) -> int:
        return int(self.log.query("SELECT count(*) FROM exchanges")[0][0])

    def _captured(self) -> None:
        self._wait(lambda: self._in_log() >= self.total, 60, "capture", required=False)
        if self._in_log() != self.total:
            self.missing.append(f"capture: {self._in_log()} of {self.total} requests are in the log")

    def _serving(self) -> bool:
        places = (self.settings.engine_state, *self.settings.more_engine_states, self.settings.small_state)
        states = [json.loads(place.read_text()) for place in places if place.exists()]
        students = {done.bundle.id for done in self.distilled.values() if isinstance(done, Distilled)}
        for state in states:
            for name, problem in state["failed"].items():
                raise Unavailable(f"serve: {name} failed its check: {problem}")
        return students <= {name for state in states for name in state["ready"]}

    def _compared(self) -> bool:
        """Whether everything sent so far is in the log, and compared where there is a candidate in shadow."""
        open_ones = [c for c in self.watch.now() if c.stage == SHADOW]
        return self._in_log() >= self.total and not any(waiting(self.log, candidate) for candidate in open_ones)

    def _unsettled(self) -> bool:
        return any(c.stage == CANARY for c in self.watch.now())

    def _wait(self, done: Callable[[], bool], seconds: float, what: str, required: bool = True) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                if required:
                    raise Unavailable(
                        f"{what} did not happen within {seconds:.0f} s: see the logs in the demo's folder"
                    )
                return
            time.sleep(LOOK_SECONDS)

    def _step(self, text: str) -> None:
        self.console.print(f"[bold]{text}[/]")

    def summary(self, config: Path, seconds: float) -> None:
        """One screen that a newcomer understands."""
        show, ledger = self.console.print, report(self.log)
        show("\n[bold]What happened[/]")
        served = sum(count for who, count in self.sent.served.items() if who != "teacher")
        show(
            f"  requests          {self.total}, all answered"
            if not self.sent.failed
            else f"  requests          {self.total}"
        )
        show(f"  captured          {self.log.query('SELECT count(*) FROM exchanges')[0][0]}")
        show(f"  tasks found       {len(ledger.tasks)}")
        for candidate in candidates(self.log):
            self._student(standing(self.log, candidate, self.settings.router))
        show(f"  routed            {served} of {len(self.traffic.later)} later requests were answered by a student")
        _money(show, ledger)
        show(f"  took              {seconds:.0f} s")
        for problem in self.missing:
            show(f"  [red]did not happen[/]    {problem}")
        show(f"\nLook next: stillroom status --config {config} | stillroom report --config {config}")
        show(f"           stillroom sql --config {config} 'select stage_to, reason from transitions'")

    def _student(self, found: dict[str, Any]) -> None:
        done = self.distilled.get(found["task"])
        show = self.console.print
        show(f"  task              {found['task']}")
        if isinstance(done, Distilled):
            show(
                f"    student         {found['candidate']}, trained on {done.trained_rows} rows "
                f"in {done.trained['seconds']:.0f} s"
            )
        show(f"    stage           {found['stage']} ({found['reason']})")
        show(f"    parity          {found['verdict']}")
        seen = found["evidence"]
        bounds = f"{seen['coverage_low']:.0%}..{seen['coverage_high']:.0%}"
        show(f"    coverage        {seen['coverage']:.0%} ({bounds}) of {seen['shadowed']} shadowed exchanges")


def _money(show: Callable[[str], None], ledger: Report) -> None:
    without = None if ledger.avoided_usd is None else ledger.teacher_usd + ledger.avoided_usd
    asked = ledger.audit_usd + ledger.judge_usd + ledger.rationale_usd + ledger.repeat_usd
    learning = ledger.serving_usd + ledger.training_usd + asked
    show(f"  cost without      {money(without)} (every request to the teacher; estimate)")
    spent = f"teacher {money(ledger.teacher_usd)} + serving {money(ledger.serving_usd)}"
    learned = f"training {money(ledger.training_usd)} + audit {money(ledger.audit_usd)}"
    learned += f" + judge {money(ledger.judge_usd)}" if ledger.judge_usd else ""
    learned += f" + rationales {money(ledger.rationale_usd)}" if ledger.rationale_usd else ""
    learned += f" + repeats {money(ledger.repeat_usd)}" if ledger.repeat_usd else ""
    show(f"  cost with         {money(ledger.teacher_usd + learning)} = {spent} + {learned}")
    show(f"  net saving        {money(ledger.net_usd)} so far")


async def send(proxy: str, rows: Sequence[Row], offset: int, at_once: int) -> Sent:
    """Ask every row's prompt through the proxy, every other one as a stream."""
    served: dict[str, int] = {}
    failed = 0
    gate = asyncio.Semaphore(at_once)

    async def one(session: aiohttp.ClientSession, number: int, row: Row) -> None:
        nonlocal failed
        payload: dict[str, Any] = {"model": "gpt-4o", "messages": list(row.messages)}
        if row.tools:
            payload["tools"] = list(row.tools)
        if number % 2:
            payload |= {"stream": True, "stream_options": {"include_usage": True}}
        async with gate, session.post(f"{proxy}/v1/chat/completions", json=payload) as response:
            body = await response.read()
            who = response.headers.get("x-stillroom-served-by", "nobody")
            served[who] = served.get(who, 0) + 1
            whole = b"[DONE]" in body if number % 2 else body.endswith(b"}")
            failed += response.status != 200 or not whole

    async with aiohttp.ClientSession(headers={"Authorization": "Bearer sk-demo"}) as session:
        await asyncio.gather(*(one(session, offset + number, row) for number, row in enumerate(rows)))
    return Sent(served, failed)


def _start(stack: ExitStack, log: Path, command: Sequence[str]) -> None:
    out = stack.enter_context(log.open("w"))
    process = Popen([sys.executable, "-m", "stillroom", *command], stdout=out, stderr=out)
    stack.callback(_stop, process)


def _stop(process: Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(40)
    except TimeoutExpired:
        process.kill()
        process.wait()


def _fresh(folder: Path) -> None:
    """Make the demo's folder anew; a folder that is not a demo's is left alone."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "stillroom.toml").exists():
            raise BadInput(f"{folder} is not empty and not a demo's: pass another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _answers(url: str) -> bool:
    async def look() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    return asyncio.run(look())
