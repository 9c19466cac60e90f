import pytest

from proxy.errors import Refused
from router.planted import Planted, plant

ROWS = [
    ([{"role": "user", "content": f"How many is {n}?"}], f'It is {n} of them. They "are" in row {n + 1}. All gone.')
    for n in range(40)
]  # fmt: skip
BARE = [([{"role": "user", "content": f"q{n}"}], f"word{n}") for n in range(40)]


def by_kind(pairs: list[Planted]) -> dict[str, list[Planted]]:
    kinds = {pair.kind for pair in pairs}
    return {kind: [pair for pair in pairs if pair.kind == kind] for kind in kinds}


def test_every_kind_is_planted_as_often_and_says_what_it_is() -> None:
    found = by_kind(plant(ROWS, 6))
    assert {kind: (len(pairs), pairs[0].worse) for kind, pairs in found.items()} == {
        "truncated": (6, True), "sentence gone": (6, True), "another's answer": (6, True), "number changed": (6, True),
        "negated": (6, True), "gibberish": (6, True), "identical": (6, False), "respaced": (6, False),
    }  # fmt: skip


def test_a_worse_copy_differs_in_words_and_an_equal_one_does_not() -> None:
    for pair in plant(ROWS, 6):
        plain = pair.other.replace("'", '"').split() == pair.answer.split()
        assert plain is not pair.worse
        assert (list(pair.request), pair.answer) in ROWS
    assert all(pair.other == pair.answer for pair in by_kind(plant(ROWS, 6))["identical"])


def test_what_is_changed_is_what_the_kind_says() -> None:
    found = by_kind(plant(ROWS, 6))
    assert all(pair.answer.startswith(pair.other[:5]) for pair in found["truncated"])
    assert all(len(pair.other.split()) <= len(pair.answer.split()) / 2 for pair in found["truncated"])
    assert all("not" in pair.other.split() for pair in found["negated"])
    assert all(sorted(pair.other) == sorted(pair.answer) for pair in found["gibberish"])
    assert all(pair.other in {answer for _, answer in ROWS} for pair in found["another's answer"])
    assert all(pair.other.split()[:4] == pair.answer.split()[:4] for pair in found["number changed"])


def test_the_same_seed_plants_the_same() -> None:
    assert plant(ROWS, 4, 1) == plant(ROWS, 4, 1) != plant(ROWS, 4, 2)


def test_kinds_that_do_not_fit_the_answers_are_left_out() -> None:
    assert set(by_kind(plant(BARE, 12))) == {"another's answer", "number changed", "gibberish", "identical", "respaced"}


@pytest.mark.parametrize("rows", [[], [([], " ")] * 50, ROWS[:1], BARE[:2]])
def test_too_little_to_plant_in_is_refused(rows: list[tuple[list[dict[str, str]], str]]) -> None:
    with pytest.raises(Refused, match="record more of this task"):
        plant(rows, 12)
