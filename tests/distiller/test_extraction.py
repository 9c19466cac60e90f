import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller.extraction import Span, Targets, form_from, learn, write
from distiller.fields import Closed, Copied
from proxy.errors import BadInput, Refused

PLAY = {"intent": "PlayMusic", "slots": {}}


def rows(*pairs):
    return [
        (text, answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)) for text, answer in pairs
    ]


def made_again(pairs):
    """Learns the form of the rows and returns what it writes for those that fit."""
    learned = learn(pairs)
    found = zip(pairs, learned.targets, strict=True)
    return learned, [None if targets is None else write(learned.form, text, targets) for (text, _), targets in found]


def test_classes_and_copies_are_told_apart():
    pairs = rows(
        ("play Jazz by Émile", {"intent": "PlayMusic", "slots": {"genre": "Jazz", "artist": "Émile"}}),
        ("play by Ann", {"intent": "PlayMusic", "slots": {"artist": "Ann"}}),
        ("rate it", {"intent": "Rate", "slots": {}}),
        ("rate that", {"intent": "Rate", "slots": {}}),
    )
    learned, again = made_again(pairs)
    assert learned.form.closed == (Closed(("intent",), ('"PlayMusic"', '"Rate"')),)
    assert [one.where for one in learned.form.copied] == [("slots", "genre"), ("slots", "artist")]
    assert learned.targets[0] == Targets((0,), (Span(5, 9, 0), Span(13, 18, 1)))
    assert again == [answer for _, answer in pairs]
    assert learned.round_trip == 1


def test_a_list_of_neighbouring_words_stays_a_list():
    pairs = rows(
        ("bölgeye komşu Fairview'da bir masa", {"location": ["bölgeye", "komşu", "Fairview'da"]}),
        ("a table in Rome", {"location": "Rome"}),
    )
    learned, again = made_again(pairs)
    assert learned.targets[0].spans == (Span(0, 7, 0), Span(8, 13, 0), Span(14, 25, 0))
    assert again == [answer for _, answer in pairs]


@pytest.mark.parametrize("nothing", ["null", "[]", '""', None])
def test_nothing_to_copy_is_written_as_the_teacher_does(nothing):
    empty = "{}" if nothing is None else f'{{"names": {nothing}}}'
    pairs = rows(("hello Ann and Bo", {"names": ["Ann", "Bo"]}), ("hello Cy", {"names": ["Cy"]}), ("hello", empty))
    learned, again = made_again(pairs)
    assert learned.form.copied == (Copied(("names",), "", "", False, True, nothing or ""),)
    assert again == [answer for _, answer in pairs]


def test_numbers_are_copied_as_numbers_and_flags_are_classes():
    pairs = rows(
        ("4 people, 2.5 hours", {"people": 4, "hours": 2.5, "smoking": False, "note": None}),
        ("12 people, 1 hour", {"people": 12, "hours": 1, "smoking": True, "note": None}),
        ("11 people, 3 hours", {"people": 11, "hours": 3, "smoking": True, "note": None}),
        ("9 people, 7 hours", {"people": 9, "hours": 7, "smoking": False, "note": None}),
    )
    learned, again = made_again(pairs)
    assert [(one.where, one.number) for one in learned.form.copied] == [(("people",), True), (("hours",), True)]
    assert {one.where: one.values for one in learned.form.closed}[("smoking",)] == ("false", "true")
    assert again == [answer for _, answer in pairs]
    assert write(learned.form, "no people", Targets((0, 0), (Span(3, 9, 0),))) == '{"smoking": false, "note": null}'


def test_an_optional_class_may_be_absent():
    pairs = rows(*[("text", '{"urgent": true}'), ("text", "{}")] * 2)
    learned, again = made_again(pairs)
    assert learned.form.closed == (Closed(("urgent",), ("true", "")),)
    assert again == [answer for _, answer in pairs]


def test_a_label_is_one_class_in_its_most_common_spelling():
    learned, again = made_again([("a", "bug"), ("b", "Bug."), ("c", "bug"), ("d", "feature"), ("e", "feature\n")])
    assert learned.form.plain
    assert learned.form.copied == ()
    assert again == ["bug", "bug", "bug", "feature", "feature"]
    assert learned.round_trip == 1


def test_a_plain_copy_is_a_form_too():
    pairs = [("I am Ann.", "Ann"), ("Call me Bo", "Bo"), ("This is Cy", "Cy")]
    learned, again = made_again(pairs)
    assert again == ["Ann", "Bo", "Cy"]
    assert write(learned.form, "hello", Targets((), ())) == ""


def test_an_array_may_be_the_whole_answer():
    pairs = rows(("Ann met Bo", '["Ann", "Bo"]'), ("Cy slept", '["Cy"]'), ("rain", "[]"))
    assert made_again(pairs)[1] == [answer for _, answer in pairs]


def test_a_list_of_objects_is_a_field_for_each_kind_of_object():
    pairs = rows(
        ("Ann met Bo in Rome", [("Ann", "who"), ("Bo", "who"), ("Rome", "where")]),
        ("Oslo likes Ann", [("Oslo", "where"), ("Ann", "who")]),
        ("rain", []),
    )
    pairs = [(t, json.dumps({"found": [{"text": a, "type": b} for a, b in json.loads(names)]})) for t, names in pairs]
    learned, again = made_again(pairs)
    assert [one.element for one in learned.form.copied] == [
        '{"text": null, "type": "who"}',
        '{"text": null, "type": "where"}',
    ]
    assert learned.targets[0].spans == (Span(0, 3, 0), Span(8, 10, 0), Span(14, 18, 1))
    assert again == [answer for _, answer in pairs]


def test_a_form_is_the_same_after_a_way_through_json():
    pairs = rows(("play Ann", {"a": {"b": "Ann"}, "c": 1}), ("play Bo", {"a": {"b": "Bo"}, "c": 1}))
    form = learn(pairs).form
    assert form_from(json.loads(json.dumps(asdict(form)))) == form


def test_rows_that_do_not_fit_are_dropped_by_reason():
    good = rows(*[(f"play song {n} now", {"intent": "Play", "slots": {"name": f"song {n}"}}) for n in range(50)])
    bad = rows(
        ("x", "Sorry, I cannot."),
        ("x", '{"intent": "Once", "slots": {}}'),
        ("x", '{"intent": "Play", "slots": "none"}'),
        ("x", '{"intent": "Play", "slots": {"name": "not there"}}'),
        ("play it", '{"intent": "Play", "slots": {"name": ["it", "it"]}}'),
    )
    learned, again = made_again(good + bad[:5])
    assert learned.dropped == {"not_json": 1, "rare_value": 1, "other_form": 1, "not_copied": 1, "overlapping": 1}
    assert again == [answer for _, answer in good] + [None] * 5
    assert learned.round_trip == pytest.approx(50 / 55)


def test_a_task_of_free_answers_is_refused_with_counts():
    texts = [(f"question {n}", json.dumps({"reason": f"because of {n * n}!", "ok": True})) for n in range(20)]
    with pytest.raises(Refused, match=r"0\.0% of 20 answers .*rare_value 20"):
        learn(texts)
    with pytest.raises(Refused, match="different keys"):
        learn([("text", json.dumps({f"key {n}": n})) for n in range(201)])
    with pytest.raises(BadInput):
        learn([])


WORD = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd"]), min_size=1, max_size=6)
KEYS = ["city", "who", 'a "quoted".key']


@st.composite
def records(draw):
    """Rows of one made-up teacher: an optional flag, an intent, and lists copied from words that stand only once."""
    intents = st.sampled_from(["Play", "Été", "热"])
    made = []
    for _ in range(draw(st.integers(10, 14))):
        words = draw(st.lists(WORD.map(lambda word: f"«{word}»"), unique=True, min_size=3, max_size=6))
        slots = {}
        for key, word in zip(draw(st.permutations(KEYS)), words, strict=False):
            slots |= {key: word} if draw(st.booleans()) else {}
        made.append((" ".join(words), {"intent": draw(intents), "deep": {"slots": slots}}))
    return made, draw(st.booleans()), draw(st.sampled_from([None, 2]))


@given(records())
@settings(max_examples=40)
def test_every_answer_of_a_regular_teacher_is_made_again(teacher):
    made, escaped, indent = teacher
    pairs = [(text, json.dumps(answer, ensure_ascii=escaped, indent=indent)) for text, answer in made * 2]
    learned, again = made_again(pairs)
    assert again == [answer for _, answer in pairs]
    assert learned.round_trip == 1


@given(st.data())
@settings(max_examples=40)
def test_whatever_is_found_is_written_as_json(data):
    pairs = rows(("Ann is 4", {"name": "Ann", "age": 4}), ("Bo is 7", {"name": "Bo", "age": 7}), ("x", {}), ("y", {}))
    form = learn(pairs).form
    text = data.draw(st.text(min_size=1, max_size=12))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [Span(a, b, data.draw(st.integers(0, 1))) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    assert set(json.loads(write(form, text, Targets((), tuple(spans))))) <= {"name", "age"}
