import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.cascade import FIRST, SECOND, Rule, Told, choose, load, save
from distiller.generate import Generated
from distiller.predict import FACTS, Predict, Prompt, write_facts
from proxy.errors import BadInput, Refused
from router.calibration import apply
from router.confidence import confidence
from tests.distiller.queues import asking

RULE = Rule(0.5, first=((0.0, 0.2), (1.0, 1.0)), second=((0.3, 0.4), (0.9, 0.8)))


def saying(name: str, sure: Sequence[float], asked: list[int]) -> Predict:
    """A part that answers its name, as sure of the prompt that is a number as it stands at that place in `sure`."""

    def predict(prompts: Sequence[Prompt]) -> list[Generated]:
        places = [int(prompt[-1]["content"]) for prompt in prompts]
        asked.extend(places)
        return [
            Generated(name, sure[at], True, (math.log(sure[at]),), 10) if sure[at] else Generated("", 0.0, False, ())
            for at in places
        ]

    return predict


def cascade(folder: Path, sure: Sequence[tuple[float, float]]) -> tuple[Predict, list[int], list[int]]:
    asked: dict[str, list[int]] = {FIRST: [], SECOND: []}
    own = {FIRST: [one for one, _ in sure], SECOND: [other for _, other in sure]}
    save(folder, RULE)
    found = load(folder, lambda part: saying(part.name, own[part.name], asked[part.name]))
    return found, asked[FIRST], asked[SECOND]


SURE = st.floats(0.01, 1.0)


@given(rows=st.lists(st.tuples(SURE, SURE), max_size=30))
def test_the_second_part_is_asked_for_what_the_first_is_unsure_of_and_for_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float]]
) -> None:
    predict, first, second = cascade(tmp_path_factory.mktemp("cascade"), rows)
    answers = predict([asking(str(place)) for place in range(len(rows))])
    assert first == list(range(len(rows)))
    assert second == [place for place, (sure, _) in enumerate(rows) if sure < RULE.threshold]
    for (sure, other), answer in zip(rows, answers, strict=True):
        stands = sure >= RULE.threshold
        good = apply(RULE.first, sure) if stands else apply(RULE.second, other)
        assert (answer.text, answer.prompt_tokens) == ((FIRST, 10) if stands else (SECOND, 20))
        assert answer.confidence == pytest.approx(good)
        assert answer.confidence == confidence(answer.logprobs)
        assert answer.likeliest == ((answer.text, answer.logprobs[0]),)


def test_what_the_second_part_cannot_read_is_not_answered(tmp_path: Path) -> None:
    predict, _, _ = cascade(tmp_path, [(0.1, 0.0), (0.9, 0.0)])
    unread, answered = predict([asking("0"), asking("1")])
    assert (unread.text, unread.finished, unread.confidence, unread.logprobs) == ("", False, 0.0, ())
    assert (answered.text, answered.finished) == (FIRST, True)


def test_the_rule_that_covers_most_is_chosen_and_asks_no_more_than_it_must() -> None:
    """The first part is right where it is sure, in half of the rows; the second everywhere but in some of those."""
    sure = [(place + 0.5) / 100 for place in range(100)]
    first = Told(sure, [float(one > 0.5) for one in sure])
    second = Told([0.9] * 100, [float(one < 0.7 or place % 2) for place, one in enumerate(sure)])
    found = choose(first, second, 0.95)
    assert found.first_coverage == pytest.approx(0.5, abs=0.03)
    assert found.coverage == 1.0
    assert found.rule.threshold == pytest.approx(0.5, abs=0.06)
    assert found.asked_twice == pytest.approx(found.rule.threshold, abs=0.01)


@pytest.mark.parametrize("good", [1.0, 0.0])
def test_a_second_part_that_adds_nothing_is_refused(good: float) -> None:
    sure = [place / 40 for place in range(40)]
    with pytest.raises(Refused, match=r"would not help: the first alone covers (100|0)% of the rows"):
        choose(Told(sure, [good] * 40), Told(sure, [good] * 40), 0.95)
    with pytest.raises(Refused, match="would not help"):
        choose(Told([0.5] * 40, [0.0] * 40), Told(sure, [1.0] * 40), 0.95)  # All of them alike: none is surer.
    with pytest.raises(Refused, match="would not help"):
        choose(Told([], []), Told([], []), 0.95)


TOLD = st.lists(st.tuples(SURE, st.sampled_from([0.0, 1.0]), SURE, st.sampled_from([0.0, 1.0])), max_size=40)


@given(TOLD)
def test_what_is_chosen_never_covers_less_than_the_first_part_alone(rows: list[tuple[float, ...]]) -> None:
    first, second = Told([r[0] for r in rows], [r[1] for r in rows]), Told([r[2] for r in rows], [r[3] for r in rows])
    try:
        found = choose(first, second, 0.8)
    except Refused:
        return
    assert found.coverage > found.first_coverage
    assert found.asked_twice == pytest.approx(sum(sure < found.rule.threshold for sure in first.sure) / len(rows))
    assert 0 < found.asked_twice < 1


@pytest.mark.parametrize("damage", ["threshold", "first"])
def test_a_damaged_cascade_is_not_served(tmp_path: Path, damage: str) -> None:
    save(tmp_path, RULE)
    facts = json.loads((tmp_path / FACTS).read_text())
    write_facts(tmp_path, facts.pop("kind"), facts | {damage: "none"})
    with pytest.raises(BadInput, match="holds a cascade that cannot be read"):
        load(tmp_path, lambda part: saying(part.name, [], []))
