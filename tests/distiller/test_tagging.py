import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.extraction import Span
from distiller.tagging import likeliest, ngrams, spans_of, tags_of, units


def cut(text):
    return [text[start:end] for start, end in units(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rate gota's war 4/5!", ["rate", "gota", "'", "s", "war", "4", "/", "5", "!"]),
        ("7pm\tin Çeşme", ["7", "pm", "in", "Çeşme"]),
        ("有多热 in 東京", ["有", "多", "热", "in", "東", "京"]),
        ("मौसम कैसा", ["मौसम", "कैसा"]),
        ("أطفئ المنبه", ["أطفئ", "المنبه"]),
        (" \n", []),
    ],
)
def test_units_are_words_numbers_and_signs(text, words):
    assert cut(text) == words


@given(st.text())
def test_units_hold_everything_but_space(text):
    assert "".join(cut(text)) == "".join(c for c in text if not c.isspace() and cut(c))
    places = units(text)
    assert places == sorted(places)


def test_neighbouring_spans_of_one_field_stay_two():
    text = "in Urbank California now"
    spans = [Span(3, 9, 1), Span(10, 20, 1)]
    tags = tags_of(spans, units(text), 2)
    assert tags == [0, 2, 2, 0]
    assert [span for span, _ in spans_of(tags, units(text), 2)] == spans


def test_a_span_within_a_unit_has_no_tags():
    assert tags_of([Span(0, 3, 0)], units("albums"), 1) is None
    assert tags_of([Span(7, 9, 0)], units("albums"), 1) is None


@given(st.text(min_size=1, max_size=30), st.data())
def test_tags_mean_the_spans_they_were_made_of(text, data):
    places = units(text)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(places)), max_size=6)))
    spans = [
        Span(places[a][0], places[b - 1][1], data.draw(st.integers(0, 2)))
        for a, b in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    tags = tags_of(spans, places, 3)
    found = spans_of(tags, places, 3)
    assert [span for span, _ in found] == spans
    assert all(places[covered][0][0] == span.start and places[covered][-1][1] == span.end for span, covered in found)


def valid(tags, fields):
    pairs = zip((0, *tags), tags, strict=False)
    return all(tag <= fields or before in (tag, tag - fields) for before, tag in pairs)


@given(st.integers(1, 4), st.integers(0, 2), st.data())
def test_the_likeliest_valid_tags_are_found(length, fields, data):
    row = st.lists(st.floats(-9, 0), min_size=1 + 2 * fields, max_size=1 + 2 * fields)
    scores = np.array(data.draw(st.lists(row, min_size=length, max_size=length)))
    paths = [p for p in itertools.product(range(1 + 2 * fields), repeat=length) if valid(p, fields)]
    found = likeliest(scores, fields)
    total = {path: sum(scores[i][tag] for i, tag in enumerate(path)) for path in [*paths, tuple(found)]}
    assert valid(found, fields)
    assert total[tuple(found)] == pytest.approx(max(total[path] for path in paths))


def test_no_units_have_no_tags():
    assert likeliest(np.zeros((0, 3), np.float32), 1) == []


def test_words_that_share_letters_share_hashes():
    one, other, far = (set(ngrams(word, 2**14)) for word in ("热天", "热水", "book"))
    assert one & other
    assert not one & far
    assert ngrams("Book", 2**14) == ngrams("book", 2**14)
    assert all(0 <= value < 2**14 for value in one)
