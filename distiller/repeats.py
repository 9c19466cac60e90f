"""Owns repeats: the teacher asked a row's request once more, and whether it then agrees with what was recorded.

Must not know which rows are worth it, nor how questions are asked and paid for: `distiller.questions` does. The same
request again, sampled as it was: a teacher at temperature 0, or behind a cache of answers, mostly agrees with itself
whatever it knows. Where redaction took something out, the request is no longer the same, and nobody is asked.
"""

import json
from collections.abc import Sequence

import duckdb

from distiller.curate import Recorded
from distiller.questions import Question, Sort, Told, priced
from proxy.costs import SizesOf
from proxy.derive import Price
from proxy.errors import Refused
from proxy.ids import ulid
from proxy.log import Log
from proxy.patterns import PLACEHOLDERS
from router.evaluators import Evaluator
from router.said import Said

INCONSISTENT = "inconsistent"  # why a row is left out
# How the answer comes, not what it says; and one answer is enough.
_LEFT_OUT = ("stream", "stream_options", "n", "logprobs", "top_logprobs")
_TOLD = "SELECT exchange, answer, finish FROM repeats WHERE list_contains(CAST(? AS VARCHAR[]), exchange) ORDER BY id"
# Not for an exchange that was erased meanwhile.
_KEEP = """
INSERT INTO repeats (id, ts, task, model, exchange, answer, finish, agreed, usd, prompt_tokens, completion_tokens)
SELECT ?, now(), ?, ?, id, ?, ?, ?, ?, ?, ? FROM exchanges WHERE id = ?
"""


def askable(row: Recorded) -> bool:
    """Whether the request is still what the teacher was asked, and the answer what it said."""
    return not PLACEHOLDERS.search(json.dumps(row.request, ensure_ascii=False)) and not PLACEHOLDERS.search(row.answer)


def question(row: Recorded, price: Price, sizes_of: SizesOf) -> Question | None:
    """The request of the row again; None where nobody can say beforehand what the most is that it costs."""
    body = {key: value for key, value in row.request.items() if key not in _LEFT_OUT}
    model = str(row.request.get("model"))
    try:
        return priced(row.exchange_id, model, json.dumps(body).encode(), row.teacher, price, sizes_of)
    except Refused:
        return None


def sort(rows: Sequence[Recorded], score: Evaluator) -> Sort:
    """Repeats of these rows, as questions go; `score` compares both answers."""
    asked = {row.exchange_id: row for row in rows}

    def keep(connection: duckdb.DuckDBPyConnection, task: str, one: Question, told: Told) -> None:
        agreed = agreement(asked[one.exchange], told, score)
        values = [told.text, told.finish, agreed, told.usd, told.prompt_tokens, told.completion_tokens]
        connection.execute(_KEEP, [ulid(), task, one.model, *values, one.exchange])

    return Sort("repeat", "repeats", keep)


def agreement(row: Recorded, told: Told, score: Evaluator) -> float | None:
    """The verdict of the two answers, in [0, 1]; None where there is no second one that is whole."""
    if told.text is None or told.finish != "stop":
        return None
    return score(row.request, Said(row.answer), Said(told.text))


def inconsistent(log: Log, rows: Sequence[Recorded], score: Evaluator) -> frozenset[str]:
    """The exchanges that the teacher answered otherwise when it was asked again, as `score` has it now."""
    asked = {row.exchange_id: row for row in rows}
    told = log.query(_TOLD, [list(asked)])
    agreed = {name: agreement(asked[name], Told(text, finish), score) for name, text, finish in told}
    return frozenset(name for name, one in agreed.items() if one is not None and one < 1)
