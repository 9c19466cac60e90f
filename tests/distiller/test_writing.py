import json

from hypothesis import given
from hypothesis import strategies as st

from distiller.writing import Container, Spelling, assemble, learn_containers, learn_spelling

values = st.dictionaries(st.text(min_size=1), st.text() | st.lists(st.integers(), max_size=3), max_size=4)


@given(
    st.lists(values, min_size=1, max_size=5),
    st.sampled_from([Spelling(), Spelling(None, ",", ":"), Spelling(2, ",", ": ")]),
    st.booleans(),
)
def test_a_spelling_is_known_by_its_texts(answers, shape, escaped):
    spelling = Spelling(shape.indent, shape.comma, shape.colon, escaped)
    texts = [spelling.write(answer) for answer in answers]
    assert [learn_spelling(texts).write(answer) for answer in answers] == texts


def test_the_most_common_spelling_wins():
    assert learn_spelling(['{"a":1}', '{"a": 1}', '{"a":2}']) == Spelling(None, ",", ":")
    assert learn_spelling(['{"a": "\\u00e9"}', '{"a": "b"}']) == Spelling(escaped=True)


@given(st.permutations(["a", "b", "c", "d"]), st.lists(st.sets(st.sampled_from("abcd")), min_size=1))
def test_an_order_that_is_always_the_same_is_learned(order, present):
    rows = [({key: 1 for key in order if key in keys}, {}) for keys in present]
    (container,) = learn_containers([()], rows)
    for answer, _ in rows:
        written = assemble([container], {(key,): (1, None) for key in reversed(answer)})
        assert list(written) == list(answer)


def test_keys_may_go_by_the_places_of_their_values():
    rows = [
        ({"kind": 0, "a": 1, "b": 2}, {("a",): 3, ("b",): 9}),
        ({"kind": 0, "b": 1, "a": 2}, {("a",): 9, ("b",): 3}),
    ]
    (container,) = learn_containers([()], rows)
    assert container.by_text
    leaves = {("a",): ("x", 7), ("b",): ("y", 2), ("kind",): ("z", None)}
    assert json.dumps(assemble([container], leaves)) == '{"kind": "z", "b": "y", "a": "x"}'


def test_an_object_stands_where_its_first_value_stands():
    outer, inner = Container((), ("a", "in"), True, True), Container(("in",), ("b",), False, True)
    leaves = {("a",): ("x", 7), ("in", "b"): ("y", 2)}
    assert list(assemble([outer, inner], leaves)) == ["in", "a"]


def test_empty_objects_are_written_as_the_teacher_does():
    always = learn_containers([(), ("in",)], [({"in": {}}, {}), ({"in": {"a": 1}}, {})])
    never = learn_containers([(), ("in",)], [({}, {}), ({"in": {"a": 1}}, {})])
    assert assemble(always, {}) == {"in": {}}
    assert assemble(never, {}) == {}


def test_a_lone_leaf_is_the_answer():
    assert assemble([], {(): (["a", "b"], 4)}) == ["a", "b"]
