"""Owns the teacher of the soft labels' benchmark: trained and merged by our own code, served by vLLM, and what it said.

Requests go through a whole Stillroom by OpenAI's own client, every other one as a stream. Must not know students.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
from transformers import AutoTokenizer

from distiller.examples import Encoded, encode
from distiller.merge import merge
from distiller.train import TrainSettings, train
from proxy.traffic_file import Row
from tests.bench.engine import AT_ONCE, vllm
from tests.deployment import Deployment, in_front_of
from tests.servers import eventually

MODEL, LATER = "smol-teacher", "later"
MAX_TOKENS = 448  # of a row, instructions and answer included: a short context needs little memory to serve
_ANSWER = 128  # tokens
_UP_SECONDS, _INGEST_SECONDS = 300, 300
_CONFIG = """logprobs_share = 1
[proxy]
workers = 1
[spool]
rotate_seconds = 0.2
"""
_COUNTED = re.compile(r'^stillroom_logprobs_total{.*outcome="(\w+)".*} (\S+)$', re.MULTILINE)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spoken:
    """What came of the requests. `task` was discovered; later rows are of the task `LATER`, which nobody learns from.

    `seen` counts answers in which a client saw log-probabilities, `kept` those whose the log holds; `counted` are the
    proxy's own counts.
    """

    config: Path
    task: str
    requests: int
    streamed: int
    seen: int
    kept: int
    counted: dict[str, int]


def taught(base: Path, rows: Sequence[Row], settings: TrainSettings, folder: Path, say: Say) -> Path:
    """The folder of a model that has learned the rows as a client sends them, instructions included."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoded = [_encoded(tokenizer, row) for row in rows]
    trained = train(base, encoded, settings, folder / "adapter", progress("teacher", say))
    say(f"teacher: {trained.tokens:,} tokens in {trained.seconds:.0f} s, loss {trained.losses[-1]:.2f}")
    merge(base, folder / "adapter", [_turns(row) for row in rows[:4]], folder / "teacher", settings.threads)
    return folder / "teacher"


def short(base: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows that fit into the teacher's context."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    return [row for row in rows if row.answer and len(_encoded(tokenizer, row).input_ids) <= MAX_TOKENS]


def spoken(teacher: Path, learned: Sequence[Row], later: Sequence[Row], folder: Path, say: Say) -> Spoken:
    """Serve the teacher, and record its answers to all rows, with log-probabilities, in a log below `folder`."""
    engine = vllm(teacher, [MODEL], folder / "vllm.log", 2 * MAX_TOKENS)
    with engine as port, in_front_of(port, folder, _CONFIG, seconds=_UP_SECONDS) as still:
        say("vLLM and Stillroom are up")
        seen = [*_asked(still.url, learned, {}, say), *_asked(still.url, later, {"x-stillroom-task": LATER}, say)]
        eventually(lambda: still.count() == len(seen), _INGEST_SECONDS)
        return Spoken(
            config=still.config,
            task=_discovered(still),
            requests=len(seen),
            streamed=len(learned) // 2 + len(later) // 2,
            seen=sum(seen),
            kept=still.count("logprobs IS NOT NULL"),
            counted=_counted(still.admin),
        )


def progress(name: str, say: Say) -> Callable[[int, int, float], None]:
    """Says so at every fifth of a training."""

    def report(step: int, steps: int, loss: float) -> None:
        if step % max(1, steps // 5) == 0:
            say(f"{name}: step {step}/{steps}, loss {loss:.2f}")

    return report


def _encoded(tokenizer: Any, row: Row) -> Encoded:
    return encode(tokenizer, _turns(row), row.answer or "")


def _turns(row: Row) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in row.messages]


def _asked(url: str, rows: Sequence[Row], headers: dict[str, str], say: Say) -> list[bool]:
    """Ask all; of each whether log-probabilities were seen in its answer."""
    with (
        openai.OpenAI(base_url=url, api_key="sk-client", max_retries=0) as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        seen = list(pool.map(partial(_sees, client, headers), range(len(rows)), rows))
    say(f"{len(rows)} requests answered")
    return seen


def _sees(client: openai.OpenAI, headers: dict[str, str], number: int, row: Row) -> bool:
    """Greedy, as labels and fields are usually asked for; every other one is a stream."""
    messages: Any = _turns(row)
    answer: Any = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=_ANSWER, stream=number % 2 == 1, extra_headers=headers
    )
    parts = list(answer) if number % 2 else [answer]
    return any(choice.logprobs is not None for part in parts for choice in part.choices)


def _discovered(still: Deployment) -> str:
    """The largest task that nobody named."""
    tasks = {line["task"]: line["exchanges"] for line in still.json("tasks") if line["task"] != LATER}
    return str(max(tasks, key=lambda task: tasks[task]))


def _counted(admin: str) -> dict[str, int]:
    return {word: int(float(value)) for word, value in _COUNTED.findall(httpx.get(f"{admin}/metrics", timeout=60).text)}
