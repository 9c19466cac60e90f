from hypothesis import given
from hypothesis import strategies as st

from distiller.label_trie import PROMPT, label_trie

END = 9  # of a turn: it ends every label and stands in none


def test_what_labels_begin_with_alike_stands_there_once() -> None:
    trie = label_trie([[1, 2, END], [1, 3, END], [1, END], [4, END]])
    assert trie.tokens == (1, 2, 3, 4)
    assert trie.parents == (PROMPT, 0, 0, PROMPT)
    assert trie.depths == (0, 1, 1, 0)
    assert trie.steps == (
        ((PROMPT, 1), (0, 2), (1, END)), ((PROMPT, 1), (0, 3), (2, END)), ((PROMPT, 1), (0, END)),
        ((PROMPT, 4), (3, END)),
    )  # fmt: skip


LABELS = st.lists(st.lists(st.integers(0, 3), max_size=5).map(lambda label: [*label, END]), min_size=1, unique_by=tuple)


@given(LABELS)
def test_every_label_is_read_off_its_own_path_and_nothing_stands_in_the_tree_twice(labels: list[list[int]]) -> None:
    trie = label_trie(labels)
    assert all(parent < place for place, parent in enumerate(trie.parents))

    def path(place: int) -> tuple[int, ...]:
        return () if place == PROMPT else (*path(trie.parents[place]), trie.tokens[place])

    paths = [path(place) for place in range(len(trie.tokens))]
    assert len(set(paths)) == len(paths)
    assert trie.depths == tuple(len(one) - 1 for one in paths)
    for label, steps in zip(labels, trie.steps, strict=True):
        assert [token for _, token in steps] == label
        assert [path(place) for place, _ in steps] == [tuple(label[:end]) for end in range(len(label))]
