"""A certified student is silently damaged: how long until it answers nobody any more, and what clients saw meanwhile.

A whole deployment with real workers, controller and vLLM, and a toy student. Once it is live, vLLM is made to load a
worse adapter under the same name: same URL, same model, same log. Nobody is told. For each damage the run says how many
requests, and how long, it took until the student was retired, and how many answers in between were wrong.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import httpx
import openai
from transformers import AutoTokenizer

from distiller.bundle import load_bundle
from distiller.command_tools import opened_log
from distiller.examples import encode
from distiller.settings import load_settings
from distiller.train import TrainSettings, train
from proxy.traffic_file import Row
from router.prompt import student_messages
from router.registry import candidates
from tests.deployment import Deployment, deployed
from tests.distiller.toy import build_toy
from tests.lamps import SETTINGS, TASK, WORDS, ask, lamps, stage
from tests.servers import eventually, free_port

LEARNED, BEFORE, MOST = 300, 200, 6000
SETTLING = 6.0  # seconds
# What the damaged student says instead, by colour; the rest it still answers as it learned to.
DAMAGES = {
    "every answer wrong": {"red": "wait", "amber": "go", "green": "stop"},
    "one answer of three wrong": {"red": "wait"},
}
HEADER = ("damage", "requests until retired", "s until retired", "s until its last answer",
          "wrong before / after the swap", "failed", "reason")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What clients saw of some requests."""

    requests: int
    by_student: int
    wrong: int
    failed: int
    last: float
    """When the student last answered, in seconds of the monotonic clock."""


def main() -> int:
    """Run every damage on a deployment of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audit", type=float, default=0.05, help="share of the student's answers that is audited")
    options = parser.parse_args()
    lines = [_run(name, says, options.audit) for name, says in DAMAGES.items()]
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")
    print(f"router.audit_share = {options.audit:g}; the student had answered {BEFORE} requests before the swap.")
    return 0


def _run(name: str, says: dict[str, str], audit: float) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as made:
        folder, traffic, port = Path(made), lamps(3000), free_port()
        build_toy(folder / "toy", [row.messages[1]["content"] + row.answer for row in traffic[:200]])
        settings = SETTINGS.format(base=folder / "toy", port=port, router=f"audit_share = {audit}")
        with (
            deployed(folder, traffic, settings) as still,
            openai.OpenAI(base_url=still.url, api_key="sk-client", max_retries=0) as client,
        ):
            student = _live(still, client, traffic, name)
            coming = cycle(traffic[1000:])
            before = _send(client, coming, lambda seen: seen.by_student >= BEFORE)
            _damaged(folder, traffic[:LEARNED], says)
            _swap(port, student, folder / "damaged")
            _say(name, "swapped")
            return _watch(still, client, coming, name, before)


def _live(still: Deployment, client: openai.OpenAI, traffic: Sequence[Row], name: str) -> str:
    """Record, distill, certify and promote as any user would; returns the student's id."""
    for row in traffic[:LEARNED]:
        ask(client, row)
    eventually(lambda: still.count() == LEARNED, 60)
    student = str(still.json("distill", TASK)["bundle"]["id"])
    _say(name, "distilled")
    eventually(lambda: still.json("status")["engine"].get("ready") == [student], 300)
    rest = iter(traffic[LEARNED:])
    while (now := stage(still)) != "live":
        assert now != "retired", still.run("status")
        for _ in range(50):
            ask(client, next(rest))
    _say(name, "live")
    return student


def _damaged(folder: Path, rows: Sequence[Row], says: dict[str, str]) -> None:
    """Train the worse adapter, on answers changed as `says`; just as sure of them as the good one is."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "toy")
    (student,) = (folder / "home" / "students").glob("student-*")
    card = load_bundle(student).manifest["card"]
    changed = {WORDS[colour]: word for colour, word in says.items()}
    taught = [
        encode(
            tokenizer, student_messages(row.messages, frozenset(card["static"])), changed.get(row.answer, row.answer)
        )
        for row in rows
    ]
    train(folder / "toy", taught, TrainSettings(epochs=8, learning_rate=1e-2), folder / "damaged", lambda *_: None)


def _swap(port: int, student: str, adapter: Path) -> None:
    """Behind the controller's back, as a careless operator or a compromised engine would."""
    for path, body in (
        ("unload_lora_adapter", {"lora_name": student}),
        ("load_lora_adapter", {"lora_name": student, "lora_path": str(adapter)}),
    ):
        httpx.post(f"http://127.0.0.1:{port}/v1/{path}", json=body, timeout=60).raise_for_status()


def _watch(still: Deployment, client: openai.OpenAI, coming: Iterator[Row], name: str, before: Seen) -> tuple[str, ...]:
    swapped = time.monotonic()
    retired: list[float] = []
    with _asking(still) as now:

        def noticed(seen: Seen) -> bool:
            if now() == "retired":
                retired.append(time.monotonic() - swapped)
            return bool(retired) or seen.requests >= MOST

        after = _send(client, coming, noticed)
    if not retired:
        return (name, f"not in {MOST:,}", "-", "-", f"{before.wrong} / {after.wrong}", str(after.failed), "-")
    left = _send(client, coming, lambda _: time.monotonic() - swapped - retired[0] > SETTLING)
    last = max(after.last, left.last) - swapped
    assert last < retired[0] + SETTLING / 2, "the student went on answering"
    reason = still.json("status")["candidates"][0]["reason"]
    wrong = f"{before.wrong} of {before.requests} / {after.wrong + left.wrong} of {after.requests + left.requests}"
    return (
        name,
        f"{after.requests:,}",
        f"{retired[0]:.1f}",
        f"{last:.1f}",
        wrong,
        str(after.failed + left.failed),
        reason,
    )


@contextmanager
def _asking(still: Deployment) -> Iterator[Callable[[], str]]:
    """The stage, read from the log itself in this process: a command would take a second each time."""
    log = opened_log(load_settings(still.config), read_only=True)
    try:
        yield lambda: candidates(log, TASK)[0].stage
    finally:
        log.close()


def _send(client: openai.OpenAI, coming: Iterator[Row], enough: Callable[[Seen], bool]) -> Seen:
    """One request after the other until it is enough; asked after each tenth."""
    seen = Seen(0, 0, 0, 0, 0.0)
    while True:
        row = next(coming)
        try:
            answer, who = ask(client, row)
        except openai.OpenAIError:
            seen = replace(seen, requests=seen.requests + 1, failed=seen.failed + 1)
        else:
            student = who != "teacher"
            seen = Seen(
                seen.requests + 1, seen.by_student + student, seen.wrong + (answer != row.answer), seen.failed,
                time.monotonic() if student else seen.last,
            )  # fmt: skip
        if seen.requests % 10 == 0 and enough(seen):
            return seen


def _say(name: str, what: str) -> None:
    print(f"{time.strftime('%X')} {name}: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
