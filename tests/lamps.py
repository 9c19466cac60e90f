"""A task small enough for a toy student, and clients that ask it: what a lamp's colour tells one to do."""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import openai

from proxy.traffic_file import Row
from tests.deployment import Deployment

TASK = "sort-colours"
WORDS: Mapping[str, str] = MappingProxyType({"red": "stop", "amber": "wait", "green": "go"})
SETTINGS = """
[proxy]
workers = 2
[spool]
rotate_seconds = 0.2
[router]
canary_shares = [0.25, 0.5]
canary_exchanges = 5
max_failures = 0.3  # a toy may break the format once, and so few exchanges make that a large share
max_slowdown = 0.0  # the teacher is a replay and answers at once
{router}
[distiller]
students = ["adapter"]
base = "{base}"
min_exchanges = 100
epochs = 8
learning_rate = 1e-2
control_rows = 8
[serving]
port = {port}
args = ["--max-num-seqs", "16"]
"""


def lamps(count: int) -> list[Row]:
    rng = random.Random(1)
    made = []
    for number in range(count):
        colour = rng.choice(list(WORDS))
        text = f"the lamp {number} is {colour}"
        messages = ({"role": "system", "content": "Say what to do."}, {"role": "user", "content": text})
        made.append(Row(messages, WORDS[colour], None, "gpt-4o", None))
    return made


def ask(client: openai.OpenAI, row: Row, stream: bool = False) -> tuple[str, str]:
    """The answer and who gave it."""
    messages: Any = list(row.messages)
    headers = {"x-stillroom-task": TASK}
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=messages, extra_headers=headers, stream=stream
    )
    who = raw.headers["x-stillroom-served-by"]
    parsed: Any = raw.parse()
    if not stream:
        return parsed.choices[0].message.content, who
    return "".join(chunk.choices[0].delta.content or "" for chunk in parsed if chunk.choices), who


def stage(still: Deployment) -> str:
    """Where the task's only candidate is."""
    (candidate,) = still.json("status")["candidates"]
    return str(candidate["stage"])
