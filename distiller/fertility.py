"""Owns how many tokens a base model makes of a task's texts, beside the teacher's own count. Must not load weights.

Fertility is tokens per byte of UTF-8: of two tokenizers on the same texts the one with the lower needs fewer steps to
read and to write them. The teacher's counts are those of its answers' usage, so they include what its chat format,
tools and schemas add to a prompt.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distiller.curate import Recorded, user_text
from distiller.row_groups import groups
from proxy.errors import BadInput
from proxy.log import Log
from proxy.traffic_file import message_text
from router.prompt import static_lines, student_messages

if TYPE_CHECKING:  # It takes seconds to load.
    from transformers import PreTrainedTokenizerBase

MOST = 500  # rows looked at, the newest
PROVIDER = "provider"
_COUNTS = """
SELECT id, prompt_tokens, completion_tokens FROM exchanges
WHERE usage_source = ? AND prompt_tokens IS NOT NULL AND completion_tokens IS NOT NULL
  AND id IN (SELECT unnest(CAST(? AS VARCHAR[])))
"""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens: the median, the 95th percentile and the most."""

    median: int
    most_of: int
    most: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """The newest `rows` in the base model's tokens, as a student reads them: without the fixed instructions."""

    rows: int
    prompt: Lengths
    answer: Lengths
    too_long: int
    """Rows longer than `[distiller] max_tokens`, which would be left out."""
    unreadable: int
    """Rows that no text student can read, or whose answer does not survive the chat template; in no length."""


@dataclass(frozen=True, slots=True)
class Fertility:
    """Tokens per byte of whole prompts and of answers, each over all `rows`; `source` is who counted the teacher's."""

    rows: int
    source: str
    base_prompt: float
    teacher_prompt: float
    base_answer: float
    teacher_answer: float


@dataclass(frozen=True, slots=True)
class Spelled:
    """Tokens per byte of what users wrote and of answers, over the `rows` of one language or teacher."""

    rows: int
    user: float
    answer: float


def tokens(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Recorded], most: int) -> Tokens | None:
    """Lengths of the newest MOST of curated `rows`; None where no one can be read. `most`: `[distiller] max_tokens`."""
    from distiller.examples import encode

    static, lengths, seen = static_lines([row.messages for row in rows]), [], rows[-MOST:]
    for row in seen:
        try:
            one = encode(tokenizer, student_messages(row.messages, static), row.answer)
        except BadInput:
            continue
        lengths.append((one.prompt_length, len(one.input_ids) - one.prompt_length))
    if not lengths:
        return None
    prompts, answers = zip(*lengths, strict=True)
    return Tokens(
        rows=len(seen),
        prompt=_lengths(prompts),
        answer=_lengths(answers),
        too_long=sum(prompt + answer > most for prompt, answer in lengths),
        unreadable=len(seen) - len(lengths),
    )


def fertility(log: Log, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Recorded]) -> Fertility | None:
    """Of the newest MOST rows the teacher's provider counted, else of those counted here; None where none was."""
    seen = {row.exchange_id: row for row in rows[-MOST:]}
    for source in (PROVIDER, "estimated"):
        counts = log.query(_COUNTS, [source, list(seen)])
        told = [(seen[name], prompt, answer) for name, prompt, answer in counts]
        told = [one for one in told if _prompt(one[0]) and one[0].answer]
        if told:
            prompts, answers = [_prompt(row) for row, *_ in told], [row.answer for row, *_ in told]
            return Fertility(
                rows=len(told),
                source=source,
                base_prompt=_count(tokenizer, prompts) / _bytes(prompts),
                teacher_prompt=sum(count for _, count, _ in told) / _bytes(prompts),
                base_answer=_count(tokenizer, answers) / _bytes(answers),
                teacher_answer=sum(count for *_, count in told) / _bytes(answers),
            )
    return None


def by_group(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Recorded]) -> dict[str, Spelled]:
    """Of the newest MOST rows, by language or teacher (`distiller.row_groups`); empty where there is but one."""
    seen = rows[-MOST:]
    told = groups(seen)
    found: defaultdict[str, list[Recorded]] = defaultdict(list)
    for name, row in zip(told.names, seen, strict=True):
        if row.answer:
            found[name].append(row)
    return {name: _spelled(tokenizer, own) for name, own in sorted(found.items())} if told.several else {}


def _spelled(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Recorded]) -> Spelled:
    users, answers = [user_text(row) for row in rows], [row.answer for row in rows]
    return Spelled(len(rows), *(_count(tokenizer, texts) / _bytes(texts) for texts in (users, answers)))


def _prompt(row: Recorded) -> str:
    return "\n".join(message_text(message) or "" for message in row.messages)


def _count(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> int:
    return sum(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _lengths(counts: Sequence[int]) -> Lengths:
    median, most_of = np.percentile(counts, [50, 95])
    return Lengths(round(median), round(most_of), max(counts))
