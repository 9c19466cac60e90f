"""Owns rationales: why the teacher answered as it did. Asked for a share of a task's exchanges, and kept in the log.

Must not know what a student learns from them, nor how questions are asked and paid for: `distiller.questions` does.
"""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import duckdb

from distiller.curate import Recorded
from distiller.questions import Asked, Asker, Question, Sort, Told, priced
from proxy.costs import SizesOf
from proxy.derive import Price
from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Log

WORDS, LONGEST = 60, 120  # of a rationale; the latter in tokens
QUESTION = (
    f"In at most {WORDS} words: why is that the answer? Give the reasons that stand in the request, and end with the "
    "answer itself."
)
_TEXTS = """
SELECT exchange, arg_max(text, ts) FROM rationales
WHERE list_contains(CAST(? AS VARCHAR[]), exchange) AND text IS NOT NULL AND finish = 'stop' GROUP BY exchange
"""
# Not for an exchange that was erased meanwhile.
_KEEP = """
INSERT INTO rationales (id, ts, task, model, exchange, text, finish, usd, prompt_tokens, completion_tokens)
SELECT ?, now(), ?, ?, id, ?, ?, ?, ?, ? FROM exchanges WHERE id = ?
"""


@dataclass(frozen=True, slots=True)
class Wish:
    """What may be asked: on which share of a task's training exchanges, for how much, and how many questions at most.

    `budget` in US dollars and `most` (None: no limit) are of the task in all, earlier runs included.
    """

    budget: float
    share: float = 0.2
    most: int | None = None

    def __post_init__(self) -> None:
        """Raises BadInput for what makes no sense."""
        if not (math.isfinite(self.budget) and self.budget >= 0):
            raise BadInput(f"--budget is US dollars, 0 or more, not {self.budget}")
        if not 0 < self.share <= 1:
            raise BadInput(f"--share is a share above 0 and up to 1, such as 0.2, not {self.share}")
        if self.most is not None and self.most < 1:
            raise BadInput(f"--most is a number of questions, at least 1, not {self.most}")


async def ask(
    asker: Asker, rows: Sequence[Recorded], wish: Wish, price: Price, sizes_of: SizesOf, stop: asyncio.Event,
    on_progress: Callable[[int, int], None],
) -> Asked:  # fmt: skip
    """Ask about the `chosen` rows that were not asked about before, by an asker of `sort`."""
    wanted = [question(row, price, sizes_of) for row in chosen(rows, wish.share)]
    return await asker.run(wanted, wish.budget, wish.most, stop, on_progress)


def sort() -> Sort:
    """Rationales, as questions go."""
    return Sort("rationale", "rationales", _keep, ", or limit the questions with --most")


def chosen(rows: Sequence[Recorded], share: float) -> list[Recorded]:
    """The rows that are asked about, the newest first: by their ids, so the same each time, and more for more share."""
    return [row for row in sorted(rows, key=lambda row: row.exchange_id, reverse=True) if _drawn(row, share)]


def kept(log: Log, exchanges: Sequence[str]) -> dict[str, str]:
    """The whole rationales that the log has for these exchanges; what was cut off has no conclusion, and is none."""
    return dict(log.query(_TEXTS, [list(exchanges)]))


def question(row: Recorded, price: Price, sizes_of: SizesOf) -> Question:
    """The recorded conversation with its answer, and why: whatever else the request asked for is left out."""
    length = "max_completion_tokens" if "max_completion_tokens" in row.request else "max_tokens"
    turns = [{"role": "assistant", "content": row.answer}, {"role": "user", "content": QUESTION}]
    model = str(row.request.get("model"))
    body = json.dumps({"model": model, "messages": [*row.messages, *turns], "temperature": 0, length: LONGEST}).encode()
    return priced(row.exchange_id, model, body, row.teacher, price, sizes_of)


def _keep(connection: duckdb.DuckDBPyConnection, task: str, one: Question, told: Told) -> None:
    counts = [told.usd, told.prompt_tokens, told.completion_tokens]
    connection.execute(_KEEP, [ulid(), task, one.model, told.text, told.finish, *counts, one.exchange])


def _drawn(row: Recorded, share: float) -> bool:
    digest = blake2b(f"rationale {row.exchange_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
