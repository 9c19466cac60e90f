"""Owns identifiers: ULIDs, which sort by time and need no coordination. Must not know what they name."""

import os
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid() -> str:
    """26 characters: 48 bits of milliseconds, 80 of randomness, Crockford base 32 (the ULID specification).

    The first 20 of the random bits are the nanoseconds within the millisecond, so that ids of one process sort in the
    order in which they were made; 60 bits of real randomness keep those of different processes apart.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    number = milliseconds << 80 | nanoseconds << 60 | int.from_bytes(os.urandom(8)) >> 4
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
