"""Owns which recorded exchanges a student may learn from, and which judge it. Must not know stores, models or training.

Every row ends in exactly one place: kept, or dropped under one counted reason. Two rows are near-duplicates when their
user texts are equal up to case, spacing and final punctuation, or, from 8 words on, when the Jaccard similarity of
their 3-word shingles is at least 0.9. Pairs are found by MinHash with banding (Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", section 3.4) and then decided on the shingles themselves: 20 bands of 6 miss a pair at 0.9 with
probability (1 - 0.9^6)^20 = 3e-7, and none is joined wrongly.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxy.errors import BadInput
from proxy.traffic_file import message_text

JACCARD = 0.9
LONG_TEXT = 8  # words; shorter prompts of a task legitimately share most of their words
SHINGLE = 3  # words
EXAMPLES = 5  # exchanges named for each reason why rows were dropped
BANDS, BAND_ROWS = 20, 6
REFUSAL_LENGTH = 400  # characters; a longer answer that opens with an apology still answers

_CANNOT = r"i(?: can't| cannot| can not| won't| will not| am unable to| am not able to|'m unable to|'m not able to)"
_DECLINED = (
    r"(?:help(?! but)|assist|comply|answer|provide|fulfil|do (?:that|this)|generate|discuss|engage in|participate)"
)
_SORRY = r"(?:(?:i'm|i am) (?:really |very |so )?(?:sorry|afraid)|sorry|i apologi[sz]e|apologies)"
REFUSAL = re.compile(  # never "we": "we cannot refund this" is what a support task should answer
    rf"(?:{_SORRY}[,.;:]?(?: but)?(?: that)? {_CANNOT}\b"
    rf"|(?:unfortunately,? )?{_CANNOT} (?:\w+ )?{_DECLINED}\b"
    r"|as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|i (?:must|have to) (?:respectfully |politely )?(?:decline|refuse)\b"
    r"|(?:this|that|your) request (?:violates|goes against)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One exchange as the log holds it; `ts` is when it was asked, `conversation` names the dialogue it belongs to."""

    exchange_id: str
    ts: datetime
    messages: tuple[dict[str, Any], ...]
    answer: str
    status: int
    partial: bool
    finish_reason: str | None
    tool_calls: bool
    conversation: str | None
    request: Mapping[str, Any] = field(default_factory=dict)
    """The whole body, for evaluators."""
    logprobs: bytes | None = None
    """The teacher's, as `proxy.logprobs` packs them; where it was asked for them."""
    model: str = ""
    """Which model answered, as the answer names it."""
    teacher: str | None = None
    """The declared teacher that was asked; None: the usual one."""
    lang: str | None = None
    """The request's language, where the task's teachers go by that."""


_Dropped = defaultdict[str, list[Recorded]]


@dataclass(frozen=True, slots=True)
class Curation:
    """What is fit to learn from, in order of time, and how many rows each reason dropped."""

    kept: tuple[Recorded, ...]
    dropped: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each reason the ids of the first exchanges it dropped, at most EXAMPLES."""


@dataclass(frozen=True, slots=True)
class Split:
    """What a student trains on, what judges it (never earlier), and how many rows each reason dropped."""

    train: tuple[Recorded, ...]
    holdout: tuple[Recorded, ...]
    dropped: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """As of `Curation`."""


def curate(rows: Sequence[Recorded]) -> Curation:
    """Drop what must not be learned; `len(kept) + sum(dropped.values()) == len(rows)`."""
    dropped: _Dropped = defaultdict(list)
    prompts: defaultdict[str, list[Recorded]] = defaultdict(list)
    for row in _by_time(rows):
        if reason := unfit(row):
            dropped[reason].append(row)
        else:
            prompts[json.dumps(row.messages, sort_keys=True)].append(row)
    kept = [_one_answer(same, dropped) for same in prompts.values()]
    return Curation(tuple(_by_time(kept)), *_told(dropped))


def unfit(row: Recorded) -> str | None:
    """The first reason why a row alone must not be learned from, or None."""
    checks = (
        ("error", row.status != 200),
        ("partial", row.partial),
        ("truncated", row.finish_reason == "length"),
        ("filtered", row.finish_reason == "content_filter"),
        ("tool_calls", row.tool_calls),
        ("empty", not row.answer.strip()),
        ("refusal", is_refusal(row.answer)),
        ("broken_text", _broken(row)),
    )
    return next((reason for reason, applies in checks if applies), None)


def is_refusal(answer: str) -> bool:
    """Whether a short answer opens as models do when they decline."""
    text = " ".join(answer.replace("\u2019", "'").split())
    return len(text) <= REFUSAL_LENGTH and REFUSAL.match(text) is not None


def split(kept: Sequence[Recorded], holdout: int | float = 0.2) -> Split:
    """Cut at a moment: the last `holdout` rows (a count, or a share below 1) judge, the earlier ones train.

    Nothing stands on both sides: a later row that is a near-duplicate of an earlier one, or of its conversation, is
    dropped, also through a chain of such rows; so the holdout may be smaller than asked. In the train part, of
    near-duplicates with the same answer the latest stays. Raises `BadInput` where either side would start empty.
    """
    rows = _by_time(kept)
    count = round(len(rows) * holdout) if isinstance(holdout, float) else holdout
    if not 0 < count < len(rows):
        raise BadInput(f"a holdout of {holdout} leaves no two sides of {len(rows)} rows; record more, or change it")
    cut = len(rows) - count
    alike = near_duplicate_groups([user_text(row) for row in rows])
    together = _with_conversations(alike, rows)
    dropped: _Dropped = defaultdict(list)
    latest = {(alike[index], rows[index].answer): index for index in range(cut)}
    stays = set(latest.values())
    train = [rows[index] for index in sorted(stays)]
    dropped["near_duplicate"] += [rows[index] for index in range(cut) if index not in stays]
    trained, talks = set(together[:cut].tolist()), {row.conversation for row in rows[:cut]} - {None}
    judging = []
    for index in range(cut, len(rows)):
        if together[index] not in trained:
            judging.append(rows[index])
        else:
            dropped["conversation" if rows[index].conversation in talks else "near_duplicate"].append(rows[index])
    return Split(tuple(train), tuple(judging), *_told(dropped))


def together(rows: Sequence[Recorded]) -> NDArray[np.int64]:
    """A group number for each row, shape (len(rows),): near-duplicates and rows of one conversation share theirs."""
    return _with_conversations(near_duplicate_groups([user_text(row) for row in rows]), rows)


def user_text(row: Recorded) -> str:
    """What the user wrote, all turns; the whole prompt as JSON where that is not plain text."""
    texts = [message_text(message) for message in row.messages if message["role"] == "user"]
    whole = "\n".join(text for text in texts if text)
    return whole if whole.strip() and None not in texts else json.dumps(row.messages, sort_keys=True)


def near_duplicate_groups(texts: Sequence[str]) -> NDArray[np.int64]:
    """A group number for each text, shape (len(texts),): the index of one member, the same within a group."""
    first: dict[str, int] = {}
    same = [first.setdefault(_normal(text), index) for index, text in enumerate(texts)]
    groups = np.array(same, dtype=np.int64)
    hashes: dict[str, int] = {}
    long: list[int] = []
    shingles: list[NDArray[np.uint64]] = []
    for index in first.values():
        words = re.findall(r"\w+", texts[index].casefold())
        if len(words) >= LONG_TEXT:
            long.append(index)
            shingles.append(_shingles(words, hashes))
    _join_similar(groups, np.array(long, dtype=np.int64), shingles)
    return groups


def _broken(row: Recorded) -> bool:
    """Whether it holds half a character, which JSON can spell and no tokenizer can read."""
    try:
        (json.dumps(row.messages, ensure_ascii=False) + row.answer).encode()
    except UnicodeEncodeError:
        return True
    return False


def _by_time(rows: Sequence[Recorded]) -> list[Recorded]:
    return sorted(rows, key=lambda row: (row.ts, row.exchange_id))


def _one_answer(same: Sequence[Recorded], dropped: _Dropped) -> Recorded:
    """Of rows with the same prompt, in order of time: the one to keep; the others go to `dropped`, by their reason.

    Agreeing rows keep the first. Where the teacher changed its answer the latest row is right and the others go: as
    duplicates where they repeat an earlier answer or the kept one, else as conflicts.
    """
    keep = same[0] if all(row.answer == same[0].answer for row in same) else same[-1]
    seen = {keep.answer}
    for row in same:
        if row is not keep:
            dropped["exact_duplicate" if row.answer in seen else "conflict"].append(row)
            seen.add(row.answer)
    return keep


def _told(dropped: _Dropped) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """How many rows each reason dropped, and the first of them."""
    found = {reason: _by_time(rows) for reason, rows in dropped.items() if rows}
    return (
        {reason: len(rows) for reason, rows in found.items()},
        {reason: tuple(row.exchange_id for row in rows[:EXAMPLES]) for reason, rows in found.items()},
    )


def _with_conversations(groups: NDArray[np.int64], rows: Sequence[Recorded]) -> NDArray[np.int64]:
    """The groups, joined where rows belong to one conversation."""
    joined = groups.copy()
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        if row.conversation is not None:
            _join(joined, np.int64(first.setdefault(row.conversation, index)), np.int64(index))
    return joined


def _normal(text: str) -> str:
    plain = " ".join(text.casefold().split())
    return plain.rstrip(".!? ") or plain


def _shingles(words: Sequence[str], hashes: dict[str, int]) -> NDArray[np.uint64]:
    """The distinct hashed runs of `SHINGLE` words, sorted; `hashes` remembers words across texts."""
    for word in words:
        if word not in hashes:
            hashes[word] = int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    values = np.array([hashes[word] for word in words], dtype=np.uint64)
    runs = len(words) - SHINGLE + 1
    mixed = np.zeros(runs, dtype=np.uint64)
    for place in range(SHINGLE):  # polynomial in an odd 64-bit base: order matters, overflow wraps
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + values[place : place + runs]
    return np.unique(mixed)


def _join_similar(groups: NDArray[np.int64], places: NDArray[np.int64], shingles: Sequence[NDArray[np.uint64]]) -> None:
    """Join in `groups` the members `places` whose `shingles` are similar; candidates share a band of MinHash values."""
    if not shingles:
        return
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, bands in enumerate(map(_bands, shingles)):
        for key in bands:
            buckets[key].append(index)
    members: defaultdict[int, list[NDArray[np.int64]]] = defaultdict(list)
    for bucket in (np.array(found) for found in buckets.values() if len(found) > 1):
        for index in bucket:
            members[index].append(bucket)
    values, numbers = np.unique(np.concatenate(shingles), return_inverse=True)
    sets = np.split(numbers, np.cumsum([len(own) for own in shingles])[:-1])
    present = np.zeros(len(values), dtype=np.bool_)
    for index, found in sorted(members.items()):
        candidate = np.zeros(len(shingles), dtype=np.bool_)
        for bucket in found:
            candidate[bucket] = True
        candidate[: index + 1] = False
        candidate &= groups[places] != groups[places[index]]  # what is joined already needs no look
        others = np.flatnonzero(candidate)
        if len(others):
            present[sets[index]] = True
            for other in others[_jaccard(present, len(sets[index]), [sets[one] for one in others]) >= JACCARD]:
                _join(groups, places[index], places[other])
            present[sets[index]] = False


def _bands(shingles: NDArray[np.uint64]) -> list[tuple[int, bytes]]:
    """The keys under which similar sets meet: the MinHash values of each band."""
    odd = np.random.default_rng(0).integers(0, 2**63, (BANDS * BAND_ROWS, 1), dtype=np.uint64) * np.uint64(2)
    mixed = (shingles ^ (shingles >> np.uint64(31))) * (odd + np.uint64(1))
    signature = ((mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)).min(axis=1)
    return [(band, part.tobytes()) for band, part in enumerate(signature.reshape(BANDS, BAND_ROWS))]


def _jaccard(present: NDArray[np.bool_], size: int, others: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """|A and B| / |A or B| of the set A of `size` marked numbers with each other set, shape (len(others),)."""
    lengths = np.array([len(other) for other in others])
    hits = present[np.concatenate(others)].astype(np.int64)
    shared = np.add.reduceat(hits, np.concatenate(([0], np.cumsum(lengths)[:-1])))
    ratio: NDArray[np.float64] = shared / (lengths + size - shared)
    return ratio


def _join(groups: NDArray[np.int64], one: np.int64, other: np.int64) -> None:
    """Give both groups the lower number."""
    a, b = groups[one], groups[other]
    if a != b:
        groups[groups == max(a, b)] = min(a, b)
