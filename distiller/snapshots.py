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
    """The `rows` in which `model` answered what was asked of `asked`; `first` and `last` of them in ISO 8601.

    `teacher` names who was asked, None the usual one: the same name may mean another model there.
    """

    asked: str
    model: str
    rows: int
    first: str
    last: str
    current: bool
    teacher: str | None = None


def snapshots(rows: Iterable[Recorded]) -> list[Snapshot]:
    """By who was asked for what and when each was first seen; of rows that were answered."""
    found: defaultdict[tuple[str, str, str], list[Recorded]] = defaultdict(list)
    current: dict[tuple[str, str], str] = {}
    for row in sorted(filter(_answered, rows), key=lambda row: (row.ts, row.exchange_id)):
        found[(*_asked(row), row.model)].append(row)
        current[_asked(row)] = row.model
    return [
        Snapshot(
            asked, model, len(own), own[0].ts.isoformat(), own[-1].ts.isoformat(), model == current[teacher, asked],
            teacher or None,
        )
        for (teacher, asked, model), own in sorted(found.items(), key=lambda item: (item[0][:2], item[1][0].ts))
    ]  # fmt: skip


def outdated(row: Recorded, found: Sequence[Snapshot]) -> bool:
    """Whether a snapshot that is not the current one answered this row."""
    return any((_of(one), one.model, one.current) == (_asked(row), row.model, False) for one in found)


def changes(found: Sequence[Snapshot]) -> list[str]:
    """In words, each snapshot that another one took over from."""
    current = {_of(one): one for one in found if one.current}
    return [
        f"the teacher{f' {one.teacher}' if one.teacher else ''} changed: {one.model} gave {one.rows} of the answers to "
        f"{one.asked or 'requests'}, the last on {one.last[:10]}, and now {current[_of(one)].model} gives them, first "
        f"on {current[_of(one)].first[:10]}"
        for one in found
        if not one.current
    ]


def _answered(row: Recorded) -> bool:
    return row.status == 200 and not row.partial and bool(row.model)


def _asked(row: Recorded) -> tuple[str, str]:
    return row.teacher or "", str(row.request.get("model") or "")


def _of(one: Snapshot) -> tuple[str, str]:
    return one.teacher or "", one.asked
