"""Owns the projection of a teacher's log-probabilities onto a student's tokens, by bytes.

Must not know models, losses, templates, or where log-probabilities are kept. For each token of the student it estimates
what the teacher would have written there: the distribution over next tokens *of the student*, given all bytes before.

With `u_t` the teacher's token that holds the byte where the student's token begins, `A_t` the alternatives reported for
it and `r` the bytes of `u_t` that are already written, an alternative counts

* at a start (`r` is empty) with its probability, as it is: what was not reported stays in the tail;
* inside (`r` is not) if it begins with `r`, by Bayes' rule: P(u | r) = P(u) / sum of P(w) over w that begin with `r`
  (Phan et al. 2024, arXiv:2410.09303). Whatever has been read of a token, the share of the tail is on average what it
  was: the expectation of a posterior is the prior. So the tail keeps its share;
* across, where the student's token reaches past `u_t`: P(u_t) P(w | u_t) for each `w` in `A_{t+1}`, and so on.

Each string of bytes then counts for the student's token it begins with. What ends at `r`, or begins with no token,
joins the tail. A shorter string may be the beginning of a longer token; only for what was really written is that known.
The teacher's own path through this must end at the student's own token, or the position is learned from the text alone.
"""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from distiller.token_bytes import TokenBytes
from proxy.logprobs import Position

MIN_MASS = 0.5
_DEPTH = 4  # further tokens of the teacher that one token of a student may reach into
_NEVER = -100.0  # nats; providers write -9999 for "very unlikely"
_ODD = 1e-4  # a token so unlikely, and not among its alternatives, was not drawn from what was reported
_ROUNDING = 0.01  # by which reported probabilities may exceed 1 in sum
_SPELLED = re.compile(rb"<[^\s<>]+>")  # a special token as servers spell it, such as `<|im_end|>` or `</s>`

START, INNER, CROSS = "start", "inner", "cross"
END_OF_TURN, ANSWER_DIFFERS, NOT_BYTE_EXACT = "end_of_turn", "answer_differs", "not_byte_exact"
IMPLAUSIBLE, LITTLE_MASS, TOO_DEEP, OTHER_TOKEN = "implausible", "little_mass", "too_deep", "other_token"
SOFT = (START, INNER, CROSS)


@dataclass(frozen=True, slots=True)
class Target:
    """What the teacher would write next: tokens of the student, their probabilities, and `tail`, that of all others.

    Probabilities and tail are at least 0 and 1 in sum; the token really written is among `ids`.
    """

    ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    tail: float


@dataclass(frozen=True, slots=True)
class Projection:
    """One answer. Per token of the student a target, or None to learn from the text alone, and of which kind it is.

    `unseen` is the probability not reported, one number per token of the teacher.
    """

    targets: tuple[Target | None, ...]
    kinds: tuple[str, ...]
    unseen: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ProjectionReport:
    """What the projection of a data set gave; `soft` and `hard` count tokens by kind and by reason.

    `coverage` is the soft share of the tokens in rows that have log-probabilities, ends of turn apart. `mass_kept` is
    the mean probability outside the tail of soft targets, `unseen` the mean not reported per token of the teacher; None
    where there is nothing to average.
    """

    rows_soft: int
    rows_hard: int
    soft: Mapping[str, int]
    hard: Mapping[str, int]
    coverage: float
    mass_kept: float | None
    unseen: float | None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was reported for one token: probabilities of the strings in its place, and whether they are odd."""

    token: bytes
    known: Mapping[bytes, float]
    odd: bool


@dataclass(frozen=True, slots=True)
class _Reach:
    """How the teacher may go on from some byte: strings with probabilities, the one written, and the kind of place."""

    candidates: Mapping[bytes, float]
    written: bytes
    kind: str
    odd: bool


def project(
    positions: Sequence[Position], ids: Sequence[int], text: bytes, tokens: TokenBytes, min_mass: float = MIN_MASS
) -> Projection:
    """Targets for `ids`, the student's tokens for the answer `text` and the end of the turn.

    Where `text` is the teacher's answer without white space around it, it is aligned; where it is anything else, all
    positions are hard. Positions with less than `min_mass` outside the tail are hard.
    """
    teacher, at = _aligned(positions, text)
    starts = list(accumulate((len(one.token) for one in teacher), initial=0))
    unseen = tuple(max(0.0, 1 - sum(one.known.values())) for one in teacher)
    pieces = [tokens.piece(token) for token in ids]
    exact = b"".join(piece or b"" for piece in pieces) == text
    targets: list[Target | None] = []
    kinds: list[str] = []
    for token, piece in zip(ids, pieces, strict=True):
        target: Target | None = None
        if piece is None:
            kind = END_OF_TURN
        elif not exact:
            kind = NOT_BYTE_EXACT
        elif at is None:
            kind = ANSWER_DIFFERS
        else:
            target, kind = _target(_reach(teacher, starts, at, len(piece)), token, len(piece), tokens, min_mass)
            at += len(piece)
        targets.append(target)
        kinds.append(kind)
    return Projection(tuple(targets), tuple(kinds), unseen)


def report(rows: Sequence[Projection | None]) -> ProjectionReport:
    """Counts over a data set; None stands for a row without log-probabilities."""
    projected = [row for row in rows if row is not None]
    kinds = Counter(kind for row in projected for kind in row.kinds)
    targets = [target for row in projected for target in row.targets if target is not None]
    could = sum(kinds.values()) - kinds[END_OF_TURN]
    return ProjectionReport(
        rows_soft=sum(any(row.targets) for row in projected),
        rows_hard=sum(row is None or not any(row.targets) for row in rows),
        soft={kind: kinds[kind] for kind in SOFT},
        hard={kind: kinds[kind] for kind in sorted(kinds.keys() - set(SOFT))},
        coverage=len(targets) / could if could else 0.0,
        mass_kept=_mean([1 - target.tail for target in targets]),
        unseen=_mean([unseen for row in projected for unseen in row.unseen]),
    )


def _aligned(positions: Sequence[Position], text: bytes) -> tuple[list[_Seen], int | None]:
    """The tokens that write something, and where `text` begins in what they write (None: nowhere).

    OpenAI tells no bytes of the end of a turn; vLLM spells it out as a last token, which the answer then lacks. That
    writes nothing, nor does it among the alternatives of others.
    """
    told = [place for place, position in enumerate(positions) if position.token]
    end, at = b"", _offset(positions, text)
    if at is None and told and _SPELLED.fullmatch(positions[told[-1]].token):
        end = positions[told.pop()].token
        at = _offset([positions[place] for place in told], text)
    return [_seen(positions[place], end, place > 0 and not positions[place - 1].token) for place in told], at


def _seen(position: Position, end: bytes, after_nothing: bool) -> _Seen:
    """What one token tells; `end` is no text.

    Of a character in several tokens, vLLM tells nothing but in the last of them, and then all of it: with the
    probability of its end alone, which is not believed.
    """
    known: dict[bytes, float] = {}
    for token, logprob in position.top:
        if token and token != end and logprob > _NEVER:
            known[token] = max(known.get(token, 0.0), _probability(logprob))
    own = _probability(position.logprob) if position.logprob > _NEVER else 0.0
    odd = position.token not in known and own < _ODD
    odd |= after_nothing and position.token >= b"\x80"
    known.setdefault(position.token, own)
    total = math.fsum(known.values())
    if total > 1:
        known = {token: probability / total for token, probability in known.items()}
    return _Seen(position.token, known, odd or total > 1 + _ROUNDING)


def _probability(logprob: float) -> float:
    """Above 1 for a number that is no log-probability, so that it shows in the sum."""
    return math.exp(min(logprob, 1.0))


def _offset(told: Sequence[Position], text: bytes) -> int | None:
    """Where `text` begins in what the teacher wrote, if nothing but white space surrounds it there."""
    answer = b"".join(position.token for position in told)
    at = answer.find(text)
    if at < 0 or (answer[:at] + answer[at + len(text) :]).strip():
        return None
    return at


def _reach(teacher: Sequence[_Seen], starts: Sequence[int], at: int, length: int) -> _Reach:
    """How the teacher may go on from byte `at`, followed until `length` bytes of what was written are covered."""
    first = last = bisect_right(starts, at) - 1
    read = at - starts[first]
    written = teacher[first].token[read:]
    candidates = _after(teacher[first], read)
    while len(written) < length and last + 1 < len(teacher) and last - first < _DEPTH:
        last += 1
        weight = candidates.pop(written, 0.0)
        for more, probability in teacher[last].known.items():
            longer = written + more
            candidates[longer] = candidates.get(longer, 0.0) + weight * probability
        written += teacher[last].token
    kind = CROSS if last > first else INNER if read else START
    return _Reach(candidates, written, kind, any(one.odd for one in teacher[first : last + 1]))


def _after(seen: _Seen, read: int) -> dict[bytes, float]:
    """What may follow the first `read` bytes of a token, by Bayes' rule; the share of the unseen stays what it was."""
    begun = seen.token[:read]
    agreeing = {token: probability for token, probability in seen.known.items() if token.startswith(begun)}
    mass = sum(agreeing.values())
    scale = sum(seen.known.values()) / mass if read and mass else 1.0
    return {token[read:]: scale * probability for token, probability in agreeing.items()}


def _target(reach: _Reach, token: int, length: int, tokens: TokenBytes, min_mass: float) -> tuple[Target | None, str]:
    """The target at one position and its kind, or None and the reason."""
    if reach.odd:
        return None, IMPLAUSIBLE
    if len(reach.written) < length:
        return None, TOO_DEEP
    mass: dict[int, float] = {}
    for text, probability in reach.candidates.items():
        if (first := tokens.first(text)) is not None:
            mass[first] = mass.get(first, 0.0) + probability
    kept = math.fsum(mass.values())
    if tokens.first(reach.written) != token or mass.get(token, 0.0) <= 0:
        return None, OTHER_TOKEN
    if kept < min_mass:
        return None, LITTLE_MASS
    return Target(tuple(mass), tuple(mass.values()), max(0.0, 1 - kept)), reach.kind


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
