"""Owns champion against challenger: a new student beside the one that answers the task now, on the same exchanges.

Asked is what neither has learned: the new one's holdout without the rows in the other's weights; of those the first
`control_rows` where a judge is paid for each. Both are scored by the same evaluator, and d is the verdict of the new
one minus that of the other, in [-1, 1]; a conversation counts once, with the mean of its rows.

What is claimed. `low` and `high` bound the mean of d, each at alpha over the number of things looked at (the whole, and
every slice that is not just the same rows; a union bound: Bonferroni), by one planned look of `router.parity`'s bets at
(1 + d) / 2, which need no distribution. Worse is where `high` is below 0: so a student that is nowhere worse is called
so anywhere with probability at most alpha; one that is not called so may still be worse where too little was seen. Rows
of the holdout that resemble what only the older one learned favour that one, which is the safe side.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distiller.adapter_student import ADAPTER, threads
from distiller.base import base_identity
from distiller.curate import Recorded
from distiller.dataset import Dataset
from distiller.embedding import Encoders
from distiller.engines import SMALL, VLLM
from distiller.generate import Generated, generate
from distiller.incumbent import Incumbent
from distiller.proposal import judge
from distiller.recipes import Report
from distiller.scoring import Score
from distiller.settings import Settings
from distiller.small import load_small
from proxy.errors import BadInput, Refused, Unavailable
from proxy.log import Log
from router.evaluators import JUDGE
from router.parity import lower_bound
from router.prompt import student_messages
from router.slices import members

WHOLE = ("all", "")


@dataclass(frozen=True, slots=True)
class Compared:
    """One slice: `rows` in `conversations`, both mean verdicts, and the mean difference with its bounds."""

    facet: str
    value: str
    rows: int
    conversations: int
    challenger: float
    champion: float
    difference: float
    low: float
    high: float
    worse: bool
    """Whether the new student surely is: `high` is below 0."""


@dataclass(frozen=True, slots=True)
class Duel:
    """Against the student `champion` at `stage`; the first of the table is the whole. Empty where it could not be."""

    champion: str
    stage: str
    table: tuple[Compared, ...]
    why: str = ""

    @property
    def lost(self) -> tuple[Compared, ...]:
        """Where the new student is worse."""
        return tuple(one for one in self.table if one.worse)


def duel(
    log: Log, data: Dataset, verdicts: Sequence[float], settings: Settings, score: Score, on_progress: Report
) -> Duel | None:
    """Compare; `verdicts` are the new student's on `data.holdout`. None where the task has no student yet."""
    champion = data.incumbent
    if champion is None:
        return None
    fair = [place for place, row in enumerate(data.holdout) if row.exchange_id not in champion.learned]
    if data.evaluator == JUDGE:
        fair = fair[: settings.distiller.control_rows]
    rows = [data.holdout[place] for place in fair]
    try:
        others = judge(rows, _answers(champion, rows, settings, on_progress), score)
    except (BadInput, Refused, Unavailable) as error:
        return Duel(champion.id, champion.stage, (), str(error))
    table = compare(log, rows, [verdicts[place] for place in fair], others, settings.router.alpha)
    return Duel(champion.id, champion.stage, table)


def compare(
    log: Log, rows: Sequence[Recorded], challenger: Sequence[float], champion: Sequence[float], alpha: float
) -> tuple[Compared, ...]:
    """The whole and every slice of `rows` that is another set of them, by the verdicts of both in [0, 1]."""
    slices, _ = members(log, [row.exchange_id for row in rows])
    distinct: dict[tuple[int, ...], tuple[str, str]] = {tuple(range(len(rows))): WHOLE}
    for name, places in sorted(slices.items()):
        distinct.setdefault(tuple(places), name)
    return tuple(
        compared(name, [(rows[at], challenger[at], champion[at]) for at in places], alpha / len(distinct))
        for places, name in distinct.items()
    )


def compared(name: tuple[str, str], pairs: Sequence[tuple[Recorded, float, float]], alpha: float) -> Compared:
    """One slice, of rows with the verdicts of the new student and of the older one; each bound holds at `alpha`."""
    talks: defaultdict[str, list[float]] = defaultdict(list)
    for row, new, old in pairs:
        talks[row.conversation or row.exchange_id].append(new - old)
    means = [sum(own) / len(own) for own in talks.values()]
    better, worse = ([min(max((1 + sign * mean) / 2, 0.0), 1.0) for mean in means] for sign in (1, -1))
    low, high = 2 * lower_bound(better, alpha) - 1, 1 - 2 * lower_bound(worse, alpha)
    challenger, champion = sum(new for _, new, _ in pairs) / len(pairs), sum(old for *_, old in pairs) / len(pairs)
    difference = sum(means) / len(means)
    return Compared(*name, len(pairs), len(means), challenger, champion, difference, low, high, high < 0)


def in_words(found: Duel) -> str:
    """What came of it, in one line."""
    if found.why:
        return f"not compared with {found.champion}, at stage {found.stage}: {found.why}"
    whole, *_ = found.table
    line = (
        f"beside {found.champion}, at stage {found.stage}, on {whole.rows} exchanges neither learned: "
        f"{whole.challenger:.3f} to {whole.champion:.3f}, difference {whole.difference:+.3f} "
        f"({whole.low:+.3f} to {whole.high:+.3f})"
    )
    if not found.lost:
        return f"{line}; surely worse in none of {len(found.table) - 1} slices"
    return f"{line}; worse: {'; '.join(map(_where, found.lost))}: kept, but no candidate"


def _where(one: Compared) -> str:
    name = "on the whole" if (one.facet, one.value) == WHOLE else f"{one.facet} {one.value}"
    return f"{name} by {-one.difference:.3f} (at least {-one.high:.3f}) on {one.rows}"


def _answers(champion: Incumbent, rows: Sequence[Recorded], settings: Settings, on_progress: Report) -> list[Generated]:
    """Of the older student, in the form it was taught; Refused where that cannot be had."""
    if champion.broken:
        raise Refused(champion.broken)
    if not rows:
        raise Refused("it has learned every row of the holdout")
    card = champion.manifest["card"]
    base = Path(card["base"])
    if base_identity(base) != champion.manifest["base_sha256"]:
        raise Refused(f"its base model is not at {base} any more")
    asked = [student_messages(row.messages, frozenset(card["static"])) for row in rows]
    if card.get("engine", VLLM) == SMALL:
        return load_small(champion.path / SMALL, Encoders([base, *map(Path, card.get("reads", ()))]))(asked)
    return generate(
        base, champion.path / ADAPTER, asked, card["max_tokens"], threads(settings.distiller),
        lambda i, n: on_progress("the student before", i, n),
    )  # fmt: skip
