from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from router.matching import best_pairs

worths = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(st.integers(0, 9), min_size=columns, max_size=columns), min_size=1, max_size=4)
)


@settings(deadline=None)  # The first pairing loads scipy.
@given(worths)
def test_no_other_pairing_is_worth_more(worth: list[list[int]]) -> None:
    pairs = best_pairs(worth)
    wide = worth if len(worth) <= len(worth[0]) else [list(column) for column in zip(*worth, strict=True)]
    most = max(
        sum(row[place] for row, place in zip(wide, places, strict=True))
        for places in permutations(range(len(wide[0])), len(wide))
    )
    assert sum(worth[i][j] for i, j in pairs) == most
    assert len(pairs) == len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(wide)


def test_nothing_to_pair() -> None:
    assert best_pairs([]) == best_pairs([[], []]) == []
