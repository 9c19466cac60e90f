"""Owns how pages write figures and moments. Must not know where they come from; what is unknown is said, never 0."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

NONE = "-"


def money(usd: float | None) -> str:
    """US dollars, to the cent from a dollar on; smaller sums to four places, so that they are not zero."""
    if usd is None:
        return "unpriced"
    sign, size = ("-" if usd < 0 else ""), abs(usd)
    return f"{sign}${size:,.2f}" if size >= 1 or size == 0 else f"{sign}${size:,.4f}"


def count(number: float | None) -> str:
    """A whole number."""
    return NONE if number is None else f"{number:,.0f}"


def exact(number: float | None) -> str:
    """A figure that is compared with others, to four places; a smaller one to its first two digits."""
    if number is None:
        return NONE
    if number and abs(number) < 0.001:
        return f"{number:.2g}"
    text = f"{number:,.4f}"
    return text.rstrip("0").rstrip(".")


def share(part: float | None) -> str:
    """A share of one, in per cent; what is neither none nor all never looks like it."""
    if part is None:
        return NONE
    if 0 < part < 0.001 or 0.999 < part < 1:
        return "<0.1%" if part < 0.5 else ">99.9%"
    return f"{part:.0%}" if part in (0, 1) or 0.1 <= part < 0.9 else f"{part:.1%}"


def milliseconds(time: float | None) -> str:
    """How long something took."""
    if time is None:
        return NONE
    return f"{time:,.0f} ms" if time < 10_000 else f"{time / 1000:,.1f} s"


def lasted(time: timedelta) -> str:
    """How long something took that may take hours."""
    seconds = int(time.total_seconds())
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds % 60:02} s" if minutes else f"{seconds} s"


def size(number: float | None) -> str:
    """Bytes, in decimal units."""
    if number is None:
        return NONE
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def figure(value: float | None, unit: str) -> str:
    """A figure of a chart: `unit` is "money", "share", "milliseconds" or "count", which need not be whole."""
    if unit == "count" and value is not None and value != int(value):
        return f"{value:,.2f}"
    return {"money": money, "share": share, "milliseconds": milliseconds}.get(unit, count)(value)


def course(rows: Sequence[tuple[str, Sequence[float | None]]], column: int, unit: str) -> str:
    """What a column of a chart comes to, for who does not see it: the sum and the most, or the range."""
    known = [(values[column], label) for label, values in rows if values[column] is not None]
    if not known:
        return "nothing"
    most, when = max(known, key=lambda one: one[0] or 0.0)
    if unit in ("money", "count"):
        return f"{figure(sum(value or 0.0 for value, _ in known), unit)} in all, at most {figure(most, unit)} ({when})"
    least = min(value or 0.0 for value, _ in known)
    return f"{figure(least, unit)} to {figure(most, unit)}, at last {figure(known[-1][0], unit)}"


def moment(when: datetime | None) -> str:
    """To the minute, in UTC, as the log's days are."""
    return NONE if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M}"


def ago(when: datetime | None, now: datetime) -> str:
    """How long it is since then, or until then, in its largest unit."""
    if when is None:
        return NONE
    seconds = (now - when).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if abs(seconds) >= length:
            number = int(abs(seconds) // length)
            text = f"{number} {unit}{'' if number == 1 else 's'}"
            return f"{text} ago" if seconds > 0 else f"in {text}"
    return "just now" if seconds >= 0 else "in a moment"
