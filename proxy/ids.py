"""Owns identifiers: ULIDs, which sort by time and need no coordination. Must not know what they name."""

import random
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def ulid() -> str:
    """26 characters: 48 bits of milliseconds, 80 of randomness, Crockford base 32 (the ULID specification).

    The first 20 of the random bits are the nanoseconds within the millisecond, so that ids of one process sort in the
    order in which they were made. The other 60 come from a generator that each process seeds from the system, and keep
    those of different processes apart; they are no secret.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    noise, pairs = random.getrandbits(60), _PAIRS
    return (  # Written out, and in numbers of one machine word, as it is made for every request.
        f"{pairs[milliseconds >> 40]}{pairs[milliseconds >> 30 & 1023]}{pairs[milliseconds >> 20 & 1023]}"
        f"{pairs[milliseconds >> 10 & 1023]}{pairs[milliseconds & 1023]}"
        f"{pairs[nanoseconds >> 10]}{pairs[nanoseconds & 1023]}"
        f"{pairs[noise >> 50]}{pairs[noise >> 40 & 1023]}{pairs[noise >> 30 & 1023]}"
        f"{pairs[noise >> 20 & 1023]}{pairs[noise >> 10 & 1023]}{pairs[noise & 1023]}"
    )


def moment(identifier: str) -> float:
    """When a ULID was made, in seconds of the epoch; ValueError for what is none."""
    milliseconds = 0
    for letter in identifier[:10]:
        milliseconds = milliseconds << 5 | _ALPHABET.index(letter)
    return milliseconds / 1000
