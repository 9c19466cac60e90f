from dataclasses import replace

import pytest

from distiller.conclusion import DISTILLABLE, MORE, NOT, UNKNOWN, Facts, conclude
from distiller.curve import Curve, Law
from distiller.payback import Figure
from distiller.stand_in import Outlook
from router.coverage import Threshold

CURVE = Curve(((100, 0.7), (400, 0.8)), Law(0.9, 0.1, 0.5, 400), 0.95, None, (None, None), 0.0, 0.02, (0.0, 0.04))
NOTHING = Outlook(Figure(0.8, ""), 0.5, Figure(0.1, ""), None, None, CURVE)
FOUND = Threshold(0.9, 0.6, 0.98, 0.95, 60, 300, 0.5, False)
FACTS = Facts(1000, 800, 0, 200, 0.5, "label", 0.05, NOTHING, "")


def test_what_can_be_proposed_is_distillable() -> None:
    found = conclude(replace(FACTS, outlook=replace(NOTHING, threshold=FOUND)))
    assert (found.word, found.more) == (DISTILLABLE, None)
    assert "60% of the exchanges with an agreement of at least 0.95" in found.why


def test_too_few_rows_need_more_and_what_is_dropped_is_reckoned_with() -> None:
    found = conclude(replace(FACTS, fit=150, outlook=None))
    assert (found.word, found.more) == (MORE, 334)
    none = conclude(replace(FACTS, fit=0, outlook=None))
    assert (none.word, none.more) == (MORE, None)


@pytest.mark.parametrize("facts", [replace(FACTS, calls=501, fit=0), replace(FACTS, evaluator="tools")])
def test_calls_of_tools_are_not_learned(facts: Facts) -> None:
    assert conclude(facts).word == NOT
    assert "students answer in text" in conclude(facts).why


def test_rows_that_would_be_left_out_for_their_length_are_not_counted_on() -> None:
    found = conclude(replace(FACTS, too_long=0.6))
    assert (found.word, "60% of the rows are longer than distiller.max_tokens" in found.why) == (NOT, True)
    assert conclude(replace(FACTS, too_long=None)).why == conclude(FACTS).why


def test_without_an_outlook_nothing_is_known() -> None:
    found = conclude(replace(FACTS, outlook=None, why_none="open answers"))
    assert (found.word, found.why, found.more) == (UNKNOWN, "open answers", None)


def test_a_small_holdout_needs_as_many_again() -> None:
    found = conclude(replace(FACTS, outlook=replace(NOTHING, times=3)))
    assert (found.word, found.more) == (MORE, 2000)


def test_a_curve_that_gets_there_says_when_in_exchanges() -> None:
    curve = replace(CURVE, more=400, more_interval=(200, None))
    found = conclude(replace(FACTS, outlook=replace(NOTHING, curve=curve)))
    assert (found.word, found.more) == (MORE, 1000)
    assert "from 200 to never" in found.why


def test_what_leads_nowhere_is_said_with_what_a_stand_in_cannot_know() -> None:
    found = conclude(FACTS)
    assert found.word == NOT
    assert "agrees on 80%" in found.why
    assert "a student can do better" in found.why
