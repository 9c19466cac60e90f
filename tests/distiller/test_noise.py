import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.curate import Recorded
from distiller.noise import confident_flags, doubted, fold_numbers, labels_of, out_of_fold
from proxy.errors import BadInput
from tests.distiller.test_curate import LONG, row

WORDS = {"billing": "refund card invoice charge payment", "delivery": "parcel courier late address tracking"}


def tickets(count: int, wrong: frozenset[int] = frozenset(), seed: int = 0) -> list[Recorded]:
    """Tickets of two queues; those numbered `wrong` carry the other label."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label, other = sorted(WORDS, reverse=number % 2 == 1)
        text = " ".join(rng.choices(WORDS[label].split(), k=4))
        rows.append(row(number, f"{text} n{number}", other if number in wrong else label))
    return rows


def test_wrong_labels_are_flagged_with_what_they_should_be() -> None:
    wrong = frozenset({4, 33, 70})
    found = doubted(tickets(120, wrong))
    assert {flag.exchange_id for flag in found.flags[:3]} == {f"e{number:04}" for number in wrong}
    assert len(found.flags) <= 6
    assert (found.judged, found.unjudged) == (120, 0)
    assert sum(found.confused.values()) == len(found.flags)
    first = found.flags[0]
    assert first.given_probability < first.suggested_probability
    assert f"labelled {first.given!r}" in first.reason


def test_right_labels_raise_no_flag() -> None:
    assert doubted(tickets(120)).flags == ()


def test_a_label_of_one_group_alone_is_not_judged() -> None:
    rows = [*tickets(40), row(41, LONG, "unique"), row(42, LONG + " eighteen", "unique"), row(43, "hm", "lonely")]
    found = doubted(rows)
    assert (found.judged, found.unjudged) == (40, 3)
    assert "unique" not in {flag.suggested for flag in found.flags}


def test_aliases_are_the_same_label() -> None:
    rows = [row(1, answer="Refund."), row(2, answer="refunds"), row(3, answer="other")]
    assert labels_of(rows, {"refund": "Refunds"}) == ["refunds", "refunds", "other"]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), min_size=1, max_size=40), st.integers(2, 6))
def test_no_group_stands_in_two_folds_and_folds_are_even(rows: list[tuple[int, str]], folds: int) -> None:
    groups, labels = np.array([group for group, _ in rows]), [label for _, label in rows]
    places = fold_numbers(groups, labels, folds)
    of_group = {group: set(places[groups == group].tolist()) for group in groups.tolist()}
    assert all(len(found) == 1 for found in of_group.values())
    held = [len({group for group, found in of_group.items() if found == {fold}}) for fold in range(folds)]
    assert max(held) - min(held) <= 1


def test_near_duplicates_do_not_vouch_for_each_other() -> None:
    """Two copies of one wrong row would confirm each other, were they in different folds."""
    text = "refund card invoice charge payment refund card charge invoice payment"
    rows = [*tickets(80), row(90, text, "delivery"), row(91, text.upper() + ".", "delivery")]
    assert {"e0090", "e0091"} <= {flag.exchange_id for flag in doubted(rows).flags}


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 4))
def test_flags_follow_the_confident_joint(seed: int, rows: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"l{number}" for number in range(classes)]
    labels = [names[number] for number in rng.integers(0, classes, rows)]
    p = rng.dirichlet(np.ones(classes), rows)
    p[rng.random(rows) < 0.2] = np.nan
    found = confident_flags(p, names, list(map(str, range(rows))), labels)
    known = [place for place in range(rows) if not np.isnan(p[place]).any()]
    assert (found.judged, found.unjudged) == (len(known), rows - len(known))
    own = {name: [p[place, names.index(name)] for place in known if labels[place] == name] for name in names}
    expected = {}
    for place in known:
        over = [name for name in names if own[name] and p[place, names.index(name)] >= np.mean(own[name])]
        best = max(over, key=lambda name: p[place, names.index(name)], default=labels[place])
        if p[place, names.index(best)] > p[place, names.index(labels[place])]:
            expected[str(place)] = best
    assert {flag.exchange_id: flag.suggested for flag in found.flags} == expected


def test_what_cannot_be_folded_is_said() -> None:
    with pytest.raises(BadInput, match="at least 2 folds"):
        doubted(tickets(10), folds=1)
    assert doubted([]).judged == 0
    found, names = out_of_fold(tickets(4), ["a", "a", "b", "b"], np.zeros(4, dtype=np.int64))
    assert (np.isnan(found).all(), names) == (True, ("a", "b"))
