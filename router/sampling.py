"""Owns which comparisons in shadow are put before a judge: those that tell most, each by a chance that is known.

A judge is paid for every verdict. Where a student is surest, almost all verdicts are the same and tell little. So an
answer is judged with a share that grows with the root of its chance to be worse, which is the share that costs least
for a given variance (Neyman 1934, "On the two different aspects of the representative method", JRSS 97(4)); that
chance is 1 - its calibrated confidence. A judged verdict then counts as 1 - (1 - verdict) / share, one not judged as 1
(Horvitz & Thompson 1952, JASA 47(260); with bets Zrnic & Candes 2024, "Active statistical inference", ICML). The mean
stays what it would be had all been judged, whatever the confidences are worth: poor ones cost exchanges, not truth.

Must not know verdicts: the share follows from what is known before the draw, the draw from the exchange's id.
"""

import hashlib
from math import sqrt

from router.evaluators import JUDGE
from router.registry import STUDENT, Candidate

ALL = 1.0


def share_of(candidate: Candidate, confidence: float | None) -> float:
    """The chance that its answer of this confidence is judged: 1 where no judge is paid, or no confidence is known."""
    if candidate.evaluator != JUDGE or candidate.kind != STUDENT or confidence is None:
        return ALL
    return share_at(confidence, candidate.margin, candidate.judged_share)


def share_at(confidence: float, margin: float, least: float) -> float:
    """In [`least`, 1]; 1 where the chance to be worse is the margin or more."""
    return min(ALL, max(least, sqrt(max(0.0, 1 - confidence) / margin)))


def chosen(exchange: str, share: float) -> bool:
    """Whether the exchange is judged: always the same, so that who asks again later draws no second time."""
    place = hashlib.blake2b(exchange.encode(), digest_size=8, person=b"judged").digest()
    return int.from_bytes(place) / 2**64 < share
