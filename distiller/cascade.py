"""Owns a student of two parts: a cheap one answers what it is sure of, a dearer one is asked for the rest only.

small.json           how sure the first part must be, and what each part's confidence means
first/ second/       the parts, each a small student of its own kind

Both parts' confidences are turned into the probability of a good answer (`router.calibration`), so that one threshold
above them means the same for either. Where neither is sure the teacher answers, as of any student. After Viola and
Jones, "Rapid object detection using a boosted cascade of simple features" (2001). Must not know the parts' kinds,
exchanges or servers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from distiller.generate import Generated
from distiller.predict import Predict, Prompt, read_facts, write_facts
from proxy.errors import BadInput, Refused
from router.calibration import Knots, apply, calibrated_elsewhere, fit
from router.confidence import confidence
from router.coverage import coverage_at

KIND = "cascade"
FIRST, SECOND = "first", "second"
_CUTS = 20  # thresholds that are tried: more would be chosen by luck


@dataclass(frozen=True, slots=True)
class Rule:
    """The least confidence (the first part's own) with which its answer stands, and each part's calibration."""

    threshold: float
    first: Knots
    second: Knots


@dataclass(frozen=True, slots=True)
class Told:
    """What one part says of rows: its confidences, and the verdicts on its answers; both in [0, 1]."""

    sure: Sequence[float]
    verdicts: Sequence[float]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A rule, with the shares in [0, 1] of the rows that are covered by it and by the first part alone, or asked twice.

    Of the rows it was chosen on, so a little too good.
    """

    rule: Rule
    coverage: float
    first_coverage: float
    asked_twice: float


def choose(first: Told, second: Told, agreement: float) -> Chosen:
    """The rule under which most rows are covered with a mean verdict of `agreement`, of equals the one asking least.

    Refused where the first part alone covers as many: then the second would only cost.
    """
    alone = coverage_at(calibrated_elsewhere(first.sure, first.verdicts), first.verdicts, agreement)
    found = [_with(first, second, cut, agreement, alone) for cut in _cuts(first.sure)]
    best = max(found, key=lambda one: (one.coverage, -one.asked_twice), default=None)
    if best is None or best.coverage <= alone:
        raise Refused(f"a second part would not help: the first alone covers {alone:.0%} of the rows that judged it")
    return best


def save(folder: Path, rule: Rule) -> None:
    """Makes the parts in `folder` one student."""
    write_facts(folder, KIND, asdict(rule))


def load(folder: Path, part: Callable[[Path], Predict]) -> Predict:
    """The student in `folder`, its parts loaded by `part`; BadInput where it cannot be read.

    An answer has one log-probability, that of being good; `prompt_tokens` are those that both parts read.
    """
    facts = read_facts(folder)
    try:
        rule = Rule(float(facts["threshold"]), _knots(facts["first"]), _knots(facts["second"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{folder} holds a cascade that cannot be read ({type(error).__name__}): distill again"
        ) from None
    first, second = part(folder / FIRST), part(folder / SECOND)

    def predict(prompts: Sequence[Prompt]) -> list[Generated]:
        said = first(prompts)
        unsure = [place for place, one in enumerate(said) if one.confidence < rule.threshold]
        answers = [_calibrated(one, rule.first) for one in said]
        for place, one in zip(unsure, second([prompts[place] for place in unsure]), strict=True):
            read = said[place].prompt_tokens + one.prompt_tokens
            answers[place] = replace(_calibrated(one, rule.second), prompt_tokens=read)
        return answers

    return predict


def _with(first: Told, second: Told, cut: float, agreement: float, alone: float) -> Chosen:
    """What the rows say of one threshold, each row calibrated by others."""
    stands = [sure >= cut for sure in first.sure]
    parts = [_where(first, stands, True), _where(second, stands, False)]
    sure = [one for part in parts for one in calibrated_elsewhere(part.sure, part.verdicts)]
    covered = coverage_at(sure, [one for part in parts for one in part.verdicts], agreement)
    rule = Rule(cut, *(fit(part.sure, part.verdicts) for part in parts))
    return Chosen(rule, covered, alone, 1 - sum(stands) / len(stands))


def _where(told: Told, stands: Sequence[bool], wanted: bool) -> Told:
    rows = [
        row for row, stood in zip(zip(told.sure, told.verdicts, strict=True), stands, strict=True) if stood == wanted
    ]
    return Told([sure for sure, _ in rows], [verdict for _, verdict in rows])


def _cuts(sure: Sequence[float]) -> list[float]:
    """Confidences of rows, at equal shares of them: some of the rows are always below, some at or above."""
    if not sure:
        return []
    shares = np.quantile(np.array(sure), np.linspace(0, 1, _CUTS + 1)[1:], method="higher")
    return sorted(set(shares.tolist()) - {min(sure)})


def _calibrated(one: Generated, knots: Knots) -> Generated:
    """The answer with the logarithm of its probability to be good; one that has no probability stays without."""
    if not one.logprobs:
        return one
    good = math.log(max(apply(knots, one.confidence), math.ulp(0.0)))
    return replace(one, confidence=confidence([good]), logprobs=(good,), likeliest=((one.text, good),))


def _knots(told: Sequence[Sequence[float]]) -> Knots:
    return tuple((float(sure), float(good)) for sure, good in told)
