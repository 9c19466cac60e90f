"""Owns what is known about candidates: their registration and their stages, read from and appended to the log.

Must not judge; `router.evidence` and `router.lifecycle` do. Transitions are append-only: a stage is the last one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import duckdb

from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Latest, Log
from router.parity import family_alpha

SHADOW, CANARY, LIVE, RETIRED = "shadow", "canary", "live", "retired"
STUDENT, HOSTED = "student", "hosted"  # The kinds: who is served by our engine, and who is somebody else's model.
SUPERSEDED = "superseded by "  # How the reason begins where another candidate took over: nothing went wrong.


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that could answer a task more cheaply, and the stage it is at.

    `alpha` is this candidate's own share of the task's error rate, `ordinal` its number among the task's candidates.
    `card` carries what serving needs: static instruction lines, labels, the answer's token limit. `share` is the part
    of the task's conversations it answers, in [0, 1]; between two canary steps only the share changes.
    """

    id: str
    created_at: datetime
    task: str
    kind: str
    ordinal: int
    evaluator: str
    threshold: float | None
    margin: float
    alpha: float
    snapshot: int
    bundle: str
    card: Mapping[str, Any]
    stage: str
    since: datetime
    reason: str
    share: float

    @property
    def line(self) -> tuple[str, str | None]:
        """Of whom it is a newer version: of the task's other students, or of the same rival as declared before."""
        return self.kind, self.card.get("rival")

    @property
    def judged_share(self) -> float:
        """The least share with which its comparisons are judged, in (0, 1]; 1: all of them."""
        return float(self.card.get("judged_share", 1.0))


# Before transitions had a share, a canary's was one setting, by default a tenth.
_SHARE = f"coalesce(share, CASE stage_to WHEN '{LIVE}' THEN 1.0 WHEN '{CANARY}' THEN 0.1 ELSE 0.0 END)"
_ALL = f"""
SELECT c.*, t.stage_to, t.ts, t.reason, {_SHARE}
FROM candidates c
JOIN (SELECT * FROM transitions QUALIFY row_number() OVER (PARTITION BY candidate ORDER BY id DESC) = 1) t
  ON t.candidate = c.id
ORDER BY c.task, c.ordinal
"""


def candidates(log: Log, task: str | None = None) -> list[Candidate]:
    """All candidates, or one task's, oldest first."""
    rows = [_candidate(*row) for row in log.query(_ALL)]
    return [candidate for candidate in rows if task in (None, candidate.task)]


class Watch(Latest[list[Candidate]]):
    """The candidates as they are now, oldest first."""

    def __init__(self, log: Log) -> None:
        """Nothing is read yet."""
        super().__init__(log, partial(candidates, log))


def _candidate(*columns: Any) -> Candidate:
    return Candidate(*columns[:11], json.loads(columns[11]), *columns[12:])  # type: ignore[call-arg]


def newest(log: Log, task: str, candidate: str = "") -> Candidate:
    """The task's newest candidate, or where given the one of this id; BadInput when there is none."""
    found = candidates(log, task)
    if not found:
        raise BadInput(f"task {task!r} has no candidate: run `stillroom distill {task}` first")
    named = [one for one in found if candidate in ("", one.id)]
    if not named:
        raise BadInput(f"task {task!r} has no candidate {candidate!r}: it has {', '.join(one.id for one in found)}")
    return named[-1]


def register(
    log: Log,
    *,
    candidate: str,
    task: str,
    kind: str,
    evaluator: str,
    threshold: float | None,
    margin: float,
    alpha: float,
    snapshot: int,
    bundle: str,
    card: Mapping[str, Any],
) -> bool:
    """Register a candidate at stage shadow and retire those of its line still there; False when it was known already.

    `alpha` is the task's whole error rate; the candidate gets its share by order of registration.
    """

    def work(connection: duckdb.DuckDBPyConnection) -> bool:
        if connection.execute("SELECT 1 FROM candidates WHERE id = ?", [candidate]).fetchone():
            return False
        (before,) = connection.execute("SELECT count(*) FROM candidates WHERE task = ?", [task]).fetchone() or (0,)
        share = family_alpha(alpha, before + 1)
        connection.execute(
            "INSERT INTO candidates VALUES (?, now(), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                candidate, task, kind, before + 1, evaluator, threshold, margin, share, snapshot, bundle,
                json.dumps(card),
            ],
        )  # fmt: skip
        _append(connection, task, candidate, SHADOW, 0.0, "registered", None)
        return True

    fresh = log.transaction(work)
    line = kind, card.get("rival")
    for older in candidates(log, task):
        if fresh and older.id != candidate and older.line == line and older.stage == SHADOW:
            move(log, older, RETIRED, f"{SUPERSEDED}{candidate}")
    return fresh


def move(
    log: Log,
    candidate: Candidate,
    stage: str,
    reason: str,
    certificate: Mapping[str, Any] | None = None,
    share: float = 0.0,
) -> bool:
    """Append a transition; False when stage or share had already changed since `candidate` was read.

    `share` is a canary's; a live candidate has all conversations, at the other stages it has none.
    """
    text = json.dumps(certificate) if certificate else None
    share = {CANARY: share, LIVE: 1.0}.get(stage, 0.0)

    def work(connection: duckdb.DuckDBPyConnection) -> bool:
        if _last(connection, candidate.id) != (candidate.stage, candidate.share):
            return False
        _append(connection, candidate.task, candidate.id, stage, share, reason, text)
        return True

    return log.transaction(work)


def certificate_of(log: Log, candidate: str) -> dict[str, Any] | None:
    """The certificate the candidate was promoted with, if it was."""
    rows = log.query(
        "SELECT certificate FROM transitions WHERE candidate = ? AND certificate IS NOT NULL ORDER BY id DESC LIMIT 1",
        [candidate],
    )
    return json.loads(rows[0][0]) if rows else None


def _last(connection: duckdb.DuckDBPyConnection, candidate: str) -> tuple[str, float]:
    row = connection.execute(
        f"SELECT stage_to, {_SHARE} FROM transitions WHERE candidate = ? ORDER BY id DESC LIMIT 1", [candidate]
    ).fetchone()
    return (str(row[0]), float(row[1])) if row else ("", 0.0)


def _append(
    connection: duckdb.DuckDBPyConnection,
    task: str,
    candidate: str,
    stage: str,
    share: float,
    reason: str,
    certificate: str | None,
) -> None:
    before, _ = _last(connection, candidate)
    connection.execute(
        "INSERT INTO transitions VALUES (?, now(), ?, ?, ?, ?, ?, ?, ?)",
        [ulid(), task, candidate, before, stage, reason, certificate, share],
    )
