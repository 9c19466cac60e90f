from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.books import Entry, Means, Volume
from router.totals import BUSY, COSTS, GROUPS, IDLE, Rival, totals

DAY = date(2026, 6, 7)
MEANS = Means({}, {("t", date(2026, 6, 1)): (Decimal(10), 5), ("u", date(2026, 6, 1)): (Decimal(9), 1)})


def entry(kind: str, usd: str, unpriced: int = 0, **changes: Any) -> Entry:
    given = {"day": DAY, "task": "t", "model": None, "unit": "exchange", "events": 1 + unpriced, "quantity": Decimal(1)}
    return Entry(kind=kind, usd=Decimal(usd), unpriced=unpriced, **(given | changes))  # type: ignore[arg-type]


def volume(exchanges: int, served_by: str = "student-1", task: str = "t") -> Volume:
    return Volume(DAY, task, served_by, exchanges, 1)


def test_the_net_is_what_was_avoided_less_all_that_it_took() -> None:
    entries = [entry(kind, "0.5") for kinds in GROUPS.values() for kind in kinds]
    found = totals(entries, [volume(7), volume(4, "teacher")], MEANS, {})
    assert (found.exchanges, found.served, found.fallbacks) == (11, 7, 2)
    assert (found.avoided, found.usd["hosted"], found.usd["audit"]) == (14, Decimal("1.5"), 1)
    assert found.net == 14 - sum(found.usd[group] for group in COSTS) == 14 - 11 * Decimal("0.5")


def test_what_is_unpriced_is_counted_and_known_to_be_unknown() -> None:
    found = totals([entry("teacher", "0", 1, events=1), entry("audit", "0.25", 2)], [], MEANS, {})
    assert (found.unpriced["teacher"], found.unpriced["audit"]) == (1, 2)
    assert (found.paid("teacher"), found.paid("audit"), found.paid("judge")) == (None, Decimal("0.25"), 0)
    assert totals([entry("candidate", "1", 1)], [], MEANS, {}).net is None
    assert totals([entry("fallback", "0", 1)], [], MEANS, {}).net == 0
    assert totals([], [volume(1, task="unknown")], MEANS, {}).net is None


def test_hours_are_told_apart_by_what_the_machine_did() -> None:
    units = {BUSY: 3, IDLE: 20, "hour": 1}
    entries = [entry("serving", "1", unit=unit, quantity=Decimal(n), task=None) for unit, n in units.items()]
    found = totals([*entries, entry("training", "1", unit="hour")], [], MEANS, {})
    assert (found.hours, found.usd["serving"]) == (units, 3)


@pytest.mark.parametrize(("rival", "against"), [("1.5", 15), ("2.5", 20), (None, 20)])
def test_against_the_cheapest_that_passes_the_teacher_included(rival: str | None, against: int) -> None:
    rivals = {} if rival is None else {"t": Rival("rival-1", Decimal(rival))}
    found = totals([entry("judge", "0.5")], [volume(10), volume(1, task="u")], MEANS, rivals)
    assert (found.avoided, found.rival_avoided) == (29, against + 9)
    assert (found.net, found.rival_net) == (Decimal("28.5"), against + 9 - Decimal("0.5"))


def test_a_rival_has_a_price_where_the_teacher_has_none() -> None:
    found = totals([], [volume(2, task="new")], MEANS, {"new": Rival("rival-1", Decimal(3))})
    assert (found.avoided, found.rival_avoided, found.net, found.rival_net) == (None, 6, None, 6)


def test_a_rival_that_passed_at_an_unknown_price_leaves_the_comparison_open() -> None:
    found = totals([], [volume(2)], MEANS, {"t": Rival("rival-1", None)})
    assert found.avoided is not None
    assert (found.rival_avoided, found.rival_net) == (None, None)


def test_what_broke_off_avoided_nothing() -> None:
    whole, broken = (totals([], [replace(volume(3), partials=partials)], MEANS, {}) for partials in (0, 1))
    assert whole.avoided is not None
    assert broken.avoided == whole.avoided * 2 / 3


def test_a_cost_without_any_price_leaves_the_net_open() -> None:
    unknown = replace(entry("judge", "0"), events=2, unpriced=2)
    assert totals([unknown], [volume(2)], MEANS, {}).net is None
    assert totals([unknown, entry("judge", "1")], [volume(2)], MEANS, {}).net is not None


KINDS = st.sampled_from([kind for kinds in GROUPS.values() for kind in kinds])
ENTRIES = st.lists(st.builds(entry, KINDS, st.decimals(0, 10**6, places=9).map(str), st.integers(0, 3)))


@given(ENTRIES, ENTRIES)
def test_sums_of_parts_are_the_whole_to_the_last_digit(one: list[Entry], other: list[Entry]) -> None:
    first, second, whole = (totals(entries, [volume(3)], MEANS, {}) for entries in (one, other, [*other, *one]))
    for group in GROUPS:
        assert first.usd[group] + second.usd[group] == whole.usd[group]
        assert first.unpriced[group] + second.unpriced[group] == whole.unpriced[group]
    if first.net is not None and second.net is not None:
        assert whole.net == first.net + second.net - 6
