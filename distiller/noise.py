"""Owns the doubt about single labels: rows whose given label a classifier that never saw them contradicts.

A flag is a question to a person or to the teacher, not a verdict: nothing is dropped here. Must not know the log.

Confident learning (Northcutt, Jiang & Chuang 2021, "Confident learning: estimating uncertainty in dataset labels",
JAIR 70, section 3): with out-of-fold probabilities p, the threshold of class j is the mean of p_j over the rows given
label j. A row given i is counted in the confident joint under the class j that is most probable among those at or above
their threshold; off the diagonal it is flagged. Here it also has to be that p_j > p_i, so that no flag argues for a
label the classifier itself believes less than the given one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distiller.curate import Recorded, together
from distiller.grams import fit, readings, vectorise
from proxy.errors import BadInput
from router.evaluators import normalise

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Flag:
    """One doubted label; probabilities in [0, 1] of a classifier that saw neither the row nor anything like it."""

    exchange_id: str
    given: str
    given_probability: float
    suggested: str
    suggested_probability: float

    @property
    def reason(self) -> str:
        """In words."""
        return (
            f"labelled {self.given!r} ({self.given_probability:.2f}), and rows like it are mostly {self.suggested!r} "
            f"({self.suggested_probability:.2f})"
        )


@dataclass(frozen=True, slots=True)
class Noise:
    """All flags, the surest first, of the `judged` rows: those whose label also stands in another fold."""

    flags: tuple[Flag, ...]
    judged: int
    unjudged: int
    """Rows whose label is found in no other group, so that nothing can be said of them."""
    confused: Mapping[tuple[str, str], int]
    """(given, suggested) -> flags, the most common first: two labels the teacher itself mixes up."""


def doubted(rows: Sequence[Recorded], aliases: Mapping[str, str] | None = None, folds: int = FOLDS) -> Noise:
    """Flag rows of a closed label set, as `router.evaluators.normalise` tells labels apart.

    Folds never part near-duplicates or the rows of a conversation. BadInput for fewer than 2 folds.
    """
    if folds < 2:
        raise BadInput(f"labels are doubted over at least 2 folds, not {folds}")
    labels = labels_of(rows, aliases)
    places = fold_numbers(together(rows), labels, folds)
    return confident_flags(*out_of_fold(rows, labels, places), [row.exchange_id for row in rows], labels)


def labels_of(rows: Sequence[Recorded], aliases: Mapping[str, str] | None = None) -> list[str]:
    """The label each row's answer is, normalised, through its alias where it has one."""
    meant = {normalise(alias): normalise(label) for alias, label in (aliases or {}).items()}
    return [meant.get(label, label) for label in (normalise(row.answer) for row in rows)]


def fold_numbers(groups: NDArray[np.int64], labels: Sequence[str], folds: int) -> NDArray[np.int64]:
    """A fold in [0, folds) for each row, shape (rows,): whole groups, dealt in turn within each label."""
    first = {group: place for place, group in reversed(list(enumerate(groups.tolist())))}
    order = sorted(first, key=lambda group: (labels[first[group]], first[group]))
    dealt = {group: turn % folds for turn, group in enumerate(order)}
    return np.array([dealt[group] for group in groups.tolist()], dtype=np.int64)


def out_of_fold(
    rows: Sequence[Recorded], labels: Sequence[str], places: NDArray[np.int64]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Probabilities of each row by a classifier fitted to the other folds, shape (rows, labels), and the labels.

    NaN where the row's own label stands in no other fold, or there is no other fold.
    """
    names = tuple(sorted(set(labels)))
    column = {name: number for number, name in enumerate(names)}
    found = np.zeros((len(rows), len(names)))
    if not rows:
        return found, names
    vectors = vectorise(readings(rows))
    for fold in np.unique(places):
        here, others = np.flatnonzero(places == fold), np.flatnonzero(places != fold)
        if not others.size:
            found[here] = np.nan
            continue
        made = fit(vectors[others], [labels[place] for place in others])
        columns = np.array([column[label] for label in made.labels])
        found[here[:, None], columns] = made.probabilities(vectors[here])
        found[[place for place in here if labels[place] not in made.labels]] = np.nan
    return found, names


def confident_flags(
    probabilities: NDArray[np.float64], names: Sequence[str], identities: Sequence[str], labels: Sequence[str]
) -> Noise:
    """The flags of out-of-fold `probabilities`, shape (rows, names); rows of NaN are not judged."""
    known = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    column = {name: number for number, name in enumerate(names)}
    given = np.array([column[label] for label in labels], dtype=np.int64)
    own = probabilities[known, given[known]]
    thresholds = np.array([_mean(own[given[known] == number]) for number in range(len(names))])
    flags = []
    for place in known:
        sure = np.where(probabilities[place] >= thresholds, probabilities[place], -1.0)
        best, mine = int(sure.argmax()), int(given[place])
        if sure[best] > probabilities[place, mine]:
            said = float(probabilities[place, mine]), names[best], float(sure[best])
            flags.append(Flag(identities[place], labels[place], *said))
    flags.sort(key=lambda flag: (flag.given_probability - flag.suggested_probability, flag.exchange_id))
    confused: defaultdict[tuple[str, str], int] = defaultdict(int)
    for flag in flags:
        confused[flag.given, flag.suggested] += 1
    ordered = dict(sorted(confused.items(), key=lambda item: (-item[1], item[0])))
    return Noise(tuple(flags), known.size, len(identities) - known.size, ordered)


def _mean(values: NDArray[np.float64]) -> float:
    """The threshold of a class; one that nobody was judged by is never reached."""
    return float(values.mean()) if values.size else np.inf
