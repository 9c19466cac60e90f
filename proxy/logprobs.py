"""Owns a teacher's per-token log-probabilities and how they are kept."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Position:
    """One token of an answer: its bytes, its log-probability (nats), and the likeliest tokens in its place, itself
    mostly among them."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
