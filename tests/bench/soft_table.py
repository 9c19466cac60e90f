"""Owns the tables of the soft labels' benchmark: each student with hard labels beside itself with soft ones.

Must not know models, logs or processes.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from distiller.ab import CONFIDENCE, Compared, compare
from distiller.projection import SOFT
from router.calibration import reliability
from tests.bench.distill_table import paired
from tests.bench.soft_students import Held, Student

HARD_KIND, SOFT_KIND = "adapter", "soft"


def tables(students: Sequence[Student], seed: int) -> str:
    """Markdown: what the projection gave, the students, and hard against soft."""
    return "\n\n".join("\n".join(part) for part in (_projections(students), _each(students), _pairs(students, seed)))


def _projections(students: Sequence[Student]) -> Iterator[str]:
    yield f"| student | rows soft / hard | soft coverage | {' | '.join(SOFT)} | hard, by reason | mass kept | unseen |"
    yield "|---|--:|--:|--:|--:|--:|---|--:|--:|"
    for one in students:
        if one.report is None:
            continue
        told = one.report
        cells = [
            one.base, f"{told['rows_soft']} / {told['rows_hard']}", f"{told['coverage']:.1%}",
            *(str(told["soft"][kind]) for kind in SOFT),
            ", ".join(f"{reason} {count}" for reason, count in told["hard"].items()),
            _number(told["mass_kept"]), _number(told["unseen"]),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _each(students: Sequence[Student]) -> Iterator[str]:
    yield (
        "| student | labels | agreement (rows) | KL, nats | first token: ECE to answers | ECE to odds "
        "| holdout | untuned base | majority | rows learned | steps | tokens/s | minutes |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for one in students:
        cells = [
            one.base, "hard" if one.kind == HARD_KIND else "soft",
            f"{np.mean(one.verdicts):.3f} ({len(one.verdicts)})", _number(_mean(_divergences(one.held))),
            _number(_ece(one.held, answers=True)), _number(_ece(one.held, answers=False)), f"{one.holdout:.3f}",
            _number(one.untuned), f"{one.majority:.3f}", str(len(one.exchanges)), str(one.steps),
            f"{one.tokens_per_second:,.0f}", f"{one.seconds / 60:.1f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _pairs(students: Sequence[Student], seed: int) -> Iterator[str]:
    yield (
        f"| student | agreement: soft - hard ({CONFIDENCE:.0%}) | better / worse on rows | p | significant "
        "| answers' ECE: hard / soft | KL: soft - hard (95%) |"
    )
    yield "|---|---|--:|--:|---|--:|---|"
    for name, pair in groupby(students, key=lambda one: one.base):
        by_kind = {one.kind: one for one in pair}
        if len(by_kind) == 2:
            hard, soft = by_kind[HARD_KIND], by_kind[SOFT_KIND]
            yield _pair(name, compare(hard.verdicts, soft.verdicts, seed, hard.sure, soft.sure), hard, soft, seed)


def _pair(name: str, found: Compared, hard: Student, soft: Student, seed: int) -> str:
    one, other = _divergences(hard.held), _divergences(soft.held)
    known = ~np.isnan(one)
    drift = paired(other[known], one[known], seed) if known.any() else None
    eces = [_number(each and each.ece) for each in (found.one_reliability, found.other_reliability)]
    cells = [
        name, f"{found.difference:+.3f} ({found.lower:+.3f}..{found.upper:+.3f})", f"{found.won} / {found.lost}",
        f"{found.p:.3f} ({found.test})", "yes" if found.p < 1 - CONFIDENCE else "no", " / ".join(eces),
        "-" if drift is None else f"{drift[0]:+.3f} ({drift[1]:+.3f}..{drift[2]:+.3f})",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _divergences(held: Sequence[Held]) -> NDArray[np.float64]:
    """Shape (rows,); NaN where a row has no soft position."""
    return np.array([np.nan if row.divergence is None else row.divergence for row in held])


def _ece(held: Sequence[Held], answers: bool) -> float | None:
    """Of the first token: to whether the teacher wrote it, or to the probability the teacher gave it."""
    told = [(row.sure, float(row.right) if answers else row.odds) for row in held]
    pairs = [(sure, truth) for sure, truth in told if truth is not None]
    found = reliability([sure for sure, _ in pairs], [min(truth, 1.0) for _, truth in pairs])
    return found and found.ece


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
