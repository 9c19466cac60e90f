"""Owns how long to wait before a request is sent again: what the answer asks for, and what we add by ourselves.

Must not know what was asked, nor of whom. Times in seconds.
"""

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

from proxy.headers import Headers, header

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 8.0
LONGEST_RETRY_AFTER = 86400.0
_SECONDS = re.compile(rb"\d+(\.\d+)?")


def backoff(retry: int, draw: float) -> float:
    """Seconds to wait before retry number `retry`, from 0; exponential, with full jitter from `draw` in [0, 1)."""
    return draw * min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(retry, 10))


def retry_after(headers: Headers, now: float) -> float | None:
    """Seconds an answer asks to wait (`retry-after-ms`; RFC 9110, section 10.2.3), or None where it does not, or badly.

    `now` is Unix time, for an answer without a Date of its own. At least 0, at most LONGEST_RETRY_AFTER.
    """
    for name, unit in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        value = header(headers, name)
        if value is not None and _SECONDS.fullmatch(value.strip()):
            return min(float(value.strip()[:18]) * unit, LONGEST_RETRY_AFTER)
    moment = _moment(header(headers, b"retry-after"))
    if moment is None:
        return None
    sent = _moment(header(headers, b"date"))
    return min(max(0.0, moment - (now if sent is None else sent)), LONGEST_RETRY_AFTER)


def _moment(value: bytes | None) -> float | None:
    """An HTTP date as Unix time."""
    try:
        date = parsedate_to_datetime((value or b"").decode("ascii"))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
