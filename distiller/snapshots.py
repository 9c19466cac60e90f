"""Owns which snapshots of its teachers a task's exchanges come from, and whether one took over from another.

A client asks for a name, such as gpt-4o, and the answer says which model gave it, such as gpt-4o-2024-08-06. The latest
answer to a name tells its current snapshot. Fingerprints of a provider's set-up are not looked at: they change
many times a day. Must not know stores or students.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distiller.curate import Recorded

CURRENT = "current"
OLDER_SNAPSHOT = "older_snapshot"  # why a row is left out


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The `rows` in which `model` answered what was asked of `asked`; `first` and `last` of them in ISO 8601."""

    asked: str
    model: str
    rows: int
    first: str
    last: str
    current: bool


def snapshots(rows: Iterable[Recorded]) -> list[Snapshot]:
    """By what was asked for and when each was first seen; of rows that were answered."""
    found: defaultdict[tuple[str, str], list[Recorded]] = defaultdict(list)
    current: dict[str, str] = {}
    for row in sorted(filter(_answered, rows), key=lambda row: (row.ts, row.exchange_id)):
        found[_asked(row), row.model].append(row)
        current[_asked(row)] = row.model
    return [
        Snapshot(asked, model, len(own), own[0].ts.isoformat(), own[-1].ts.isoformat(), model == current[asked])
        for (asked, model), own in sorted(found.items(), key=lambda item: (item[0][0], item[1][0].ts))
    ]


def outdated(row: Recorded, found: Sequence[Snapshot]) -> bool:
    """Whether a snapshot that is not the current one answered this row."""
    return any((one.asked, one.model, one.current) == (_asked(row), row.model, False) for one in found)


def changes(found: Sequence[Snapshot]) -> list[str]:
    """In words, each snapshot that another one took over from."""
    current = {one.asked: one for one in found if one.current}
    return [
        f"the teacher changed: {one.model} gave {one.rows} of the answers to {one.asked or 'requests'}, the last on "
        f"{one.last[:10]}, and now {current[one.asked].model} gives them, first on {current[one.asked].first[:10]}"
        for one in found
        if not one.current
    ]


def _answered(row: Recorded) -> bool:
    return row.status == 200 and not row.partial and bool(row.model)


def _asked(row: Recorded) -> str:
    return str(row.request.get("model") or "")
