"""Owns what pages show of students: where each comes from, how it did, what it cost, and how two of them differ.

Read from the students' folders and the log, and nothing is trained or judged anew. Comparing two is no test: means
over what both answered stand side by side. Must not know how a page looks.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distiller.bundle import MANIFEST, listed, read_manifest
from distiller.course import Course, courses
from distiller.dashboard.differing import Difference, difference
from distiller.settings import Settings
from proxy.errors import BadInput
from proxy.log import Log
from router.registry import STUDENT, Candidate, candidates
from router.slices import members
from router.verdicts import SCORE

LINEAGE, HOLDOUT, LOSSES = "lineage.json", "holdout.jsonl", "losses.json"
POINTS = 200  # of a curve
EXAMPLES = 20  # of answers that differ
_DOLLARS = "TRY_CAST(usd AS DECIMAL(38, 15))"
_COST = f"""
SELECT model, CASE WHEN count({_DOLLARS}) = count(*) THEN CAST(sum({_DOLLARS}) AS DOUBLE) END, sum(quantity)
FROM spend WHERE kind = 'training' AND model IS NOT NULL GROUP BY model
"""
_HELD = "SELECT count(*), min(ts), max(ts) FROM exchanges WHERE id IN (SELECT unnest(CAST(? AS VARCHAR[])))"
_SPEED = """
SELECT count(latency_ms), quantile_cont(latency_ms, 0.5), quantile_cont(latency_ms, 0.95)
FROM verdicts WHERE candidate = ? AND kind = 'shadow' AND answer IS NOT NULL
"""
_SAID = f"""
SELECT v.exchange, e.answer, v.answer, {SCORE} FROM verdicts v LEFT JOIN exchanges e ON e.id = v.exchange
WHERE v.candidate = ? AND v.kind = 'shadow' AND v.answer IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Student:
    """One student; `stage` is empty where it is no candidate. What its folder does not tell is None.

    `score` is its mean verdict on the holdout, `base_score` and `majority` are the controls beside it. `usd` is what
    training took, None where that is unpriced; `broken` says why its folder cannot be read.
    """

    id: str
    task: str
    kind: str
    stage: str
    made: datetime | None
    base: str | None
    rank: int | None
    size: int | None
    snapshot: int | None
    score: float | None
    base_score: float | None
    majority: float | None
    coverage: float | None
    usd: float | None
    hours: float | None
    broken: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a student, with its SHA-256 and bytes."""

    name: str
    sha256: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Origin:
    """The exchanges a student learned from and was judged on; `held` are still in the log, from `first` to `last`."""

    learned: int
    inherited: int
    judged: int
    held: int
    first: datetime | None
    last: datetime | None
    until: str | None
    parent: str | None


@dataclass(frozen=True, slots=True)
class Detail:
    """Everything about one student."""

    student: Student
    manifest: Mapping[str, Any]
    origin: Origin | None
    files: tuple[File, ...]
    leaks: Mapping[str, Any] | None
    doubted: Mapping[str, Any] | None
    losses: tuple[tuple[int, float], ...]
    """(step, nats a token), thinned; the extremes stay."""
    course: Course | None
    speed: tuple[int, float | None, float | None]
    """Shadow answers, and their median and 95th percentile in milliseconds."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one student said to one exchange, and the teacher's answer to it."""

    teacher: str | None
    text: str
    verdict: float | None


@dataclass(frozen=True, slots=True)
class Apart:
    """An exchange to which two students said different things."""

    exchange: str
    one: Said
    other: Said
    difference: Difference


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of what both answered, with the mean verdict of each."""

    facet: str
    value: str
    n: int
    one: float
    other: float


@dataclass(frozen=True, slots=True)
class Beside:
    """Two students side by side; `both` is how many exchanges both answered, `parts` begins with all of those."""

    one: Detail
    other: Detail
    settings: tuple[tuple[str, Any, Any], ...]
    both: int
    parts: tuple[Part, ...]
    apart: tuple[Apart, ...]
    differing: int


def students(log: Log, settings: Settings) -> list[Student]:
    """All there are, the newest first: those with a folder, and candidates whose folder is not here."""
    known = {one.id: one for one in candidates(log) if one.kind == STUDENT}
    costs = {model: (usd, hours) for model, usd, hours in log.query(_COST)}
    names = {place.parent.name for place in settings.students.glob(f"*/{MANIFEST}")} | known.keys()
    found = [_student(settings.students / name, known.get(name), costs.get(name)) for name in names]
    oldest = datetime.min.replace(tzinfo=UTC)
    return sorted(found, key=lambda one: (one.made or oldest, one.id), reverse=True)


def detail(log: Log, settings: Settings, name: str) -> Detail:
    """One of them; BadInput where there is none of this name."""
    student = next((one for one in students(log, settings) if one.id == name), None)
    if student is None:
        raise BadInput(f"there is no student {name!r}")
    folder = settings.students / student.id
    there = folder.is_dir() and not student.broken
    ((answers, median, most),) = log.query(_SPEED, [name])
    return Detail(
        student=student,
        manifest=read_manifest(folder) if there else {},
        origin=_origin(log, folder) if there else None,
        files=_files(folder) if there else (),
        leaks=_json(folder / "leak_report.json"),
        doubted=_json(folder / "doubted_labels.json"),
        losses=thinned(list(enumerate(_json(folder / LOSSES) or (), 1))),
        course=next((one for one in courses(settings.courses) if one.student == name), None),
        speed=(answers, median, most),
    )


def beside(log: Log, settings: Settings, one: str, other: str) -> Beside:
    """Two students by all that can be compared without asking anybody."""
    first, second = detail(log, settings, one), detail(log, settings, other)
    said = [_all_said(log, settings, name) for name in (one, other)]
    both = sorted(said[0].keys() & said[1].keys())
    differ = [exchange for exchange in both if said[0][exchange].text != said[1][exchange].text]
    differ.sort(key=lambda exchange: -_distance(said[0][exchange], said[1][exchange]))
    apart = [
        Apart(exchange, a, b, difference(a.text, b.text))
        for exchange in differ[:EXAMPLES]
        for a, b in [(said[0][exchange], said[1][exchange])]
    ]
    parts = _parts(log, both, said)
    return Beside(first, second, _differing(first, second), len(both), parts, tuple(apart), len(differ))


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> tuple[tuple[int, float], ...]:
    """At most so many points and two more: the first and the last, and of each stretch the lowest and the highest."""
    if len(points) <= most:
        return tuple(points)
    kept = {points[0], points[-1]}
    stretches = max(1, most // 2)
    for number in range(stretches):
        some = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        kept |= {min(some, key=lambda point: point[1]), max(some, key=lambda point: point[1])}
    return tuple(sorted(kept))


def _student(folder: Path, candidate: Candidate | None, cost: tuple[float | None, float] | None) -> Student:
    manifest: Mapping[str, Any] = {}
    broken, made, size = "", candidate.created_at if candidate else None, None
    try:
        manifest = read_manifest(folder)
        made = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except (BadInput, OSError) as error:
        broken = str(error) if isinstance(error, BadInput) else f"its folder {folder} cannot be read"
    holdout, threshold = manifest.get("holdout") or {}, manifest.get("threshold") or {}
    card = manifest.get("card") or (candidate.card if candidate else {})
    grown = manifest.get("settings") or {}
    of_base = (manifest.get("kind") or "") not in ("head", "encoder")
    return Student(
        id=folder.name,
        task=str(manifest.get("task") or (candidate.task if candidate else "")),
        kind=str(manifest.get("kind") or card.get("engine") or STUDENT),
        stage=candidate.stage if candidate else "",
        made=made,
        base=Path(str(card["base"])).name if card.get("base") else None,
        rank=grown.get("rank") if of_base else None,
        size=size,
        snapshot=manifest.get("snapshot", candidate.snapshot if candidate else None),
        score=holdout.get("student"),
        base_score=holdout.get("base"),
        majority=holdout.get("majority"),
        coverage=threshold.get("coverage"),
        usd=cost[0] if cost else None,
        hours=cost[1] if cost else None,
        broken=broken,
    )


def _origin(log: Log, folder: Path) -> Origin | None:
    told = _json(folder / LINEAGE)
    if told is None:
        return None
    learned, inherited = told["exchanges"], told.get("inherited", [])
    judged = [line["exchange"] for line in _lines(folder)]
    ((held, first, last),) = log.query(_HELD, [[*learned, *inherited, *judged]])
    until = read_manifest(folder).get("card", {}).get("data_until")
    return Origin(len(learned), len(inherited), len(judged), held, first, last, until, told.get("parent"))


def _files(folder: Path) -> tuple[File, ...]:
    found = []
    for name, digest in listed(folder).items():
        place = folder / name
        found.append(File(name, digest, place.stat().st_size if place.is_file() else None))
    return tuple(found)


def _json(place: Path) -> Any:
    """What stands in a file; None where it is not there, or not readable."""
    with suppress(OSError, ValueError):
        return json.loads(place.read_text(encoding="utf-8"))
    return None


def _lines(folder: Path) -> list[dict[str, Any]]:
    with suppress(OSError, ValueError):
        return [json.loads(line) for line in (folder / HOLDOUT).read_text(encoding="utf-8").split("\n") if line]
    return []


def _all_said(log: Log, settings: Settings, name: str) -> dict[str, Said]:
    """By exchange: answers in shadow, and where there are none those on the holdout."""
    found = {
        line["exchange"]: Said(line["teacher"], line["text"], line["verdict"])
        for line in _lines(settings.students / name)
    }
    return found | {
        exchange: Said(teacher, text, verdict) for exchange, teacher, text, verdict in log.query(_SAID, [name])
    }


def _distance(one: Said, other: Said) -> float:
    return -1.0 if one.verdict is None or other.verdict is None else abs(one.verdict - other.verdict)


def _parts(log: Log, both: Sequence[str], said: Sequence[Mapping[str, Said]]) -> tuple[Part, ...]:
    """Means over all that both answered and was judged, and over each slice of that."""
    pairs: list[tuple[str, float, float]] = []
    for exchange in both:
        verdicts = said[0][exchange].verdict, said[1][exchange].verdict
        if verdicts[0] is not None and verdicts[1] is not None:
            pairs.append((exchange, verdicts[0], verdicts[1]))
    if not pairs:
        return ()
    groups, _ = members(log, [exchange for exchange, *_ in pairs])
    places = {("all", ""): list(range(len(pairs))), **dict(sorted(groups.items()))}
    return tuple(_part(name, [pairs[place] for place in own]) for name, own in places.items())


def _part(name: tuple[str, str], pairs: Sequence[tuple[str, float, float]]) -> Part:
    one, other = sum(verdict for _, verdict, _ in pairs), sum(verdict for *_, verdict in pairs)
    return Part(*name, len(pairs), one / len(pairs), other / len(pairs))


def _differing(one: Detail, other: Detail) -> tuple[tuple[str, Any, Any], ...]:
    """The settings they were made with that are not the same, by name."""
    first, second = one.manifest.get("settings") or {}, other.manifest.get("settings") or {}
    names = sorted(first.keys() | second.keys())
    return tuple((name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name))
