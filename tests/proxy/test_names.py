import json
import string
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.names import MOST, People, TooLong
from proxy.patterns import Redaction
from proxy.redact import Redactor

KNOWN = ("Ann Lee", "Siobhan O'Connor", "Karl-Heinz Müller", "Bob")


def named(text: str) -> list[str]:
    """What a model that knew these would say."""
    return [name for name in KNOWN if name in text.replace("%20", " ")]


def redactor(**options: bool) -> Redactor:
    return Redactor(Redaction(names=True, **options), People(named))


def packed(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def redacted(value: Any, **options: bool) -> Any:
    return json.loads(redactor(**options).exchange(packed(value), b"")[0])


def deltas(*texts: str) -> bytes:
    chunks = [{"id": "Bob", "choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    return b"".join(b"data: " + packed(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def said(stream: bytes | bytearray) -> str:
    events = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    return "".join(event["choices"][0]["delta"]["content"] for event in events)


def cut(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted(position % (len(text) + 1) for position in at), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def test_a_person_has_one_placeholder_in_request_and_answer() -> None:
    request = packed(["I am Ann Lee (ann@x.org)", "Bob is my boss"])
    response = deltas("Dear B", "ob, A", "nn", " Lee left")
    answers = redactor(emails=True).exchange(request, response)
    assert answers[0] == packed(["I am [NAME_1] ([EMAIL_1])", "[NAME_2] is my boss"])
    assert said(answers[1]) == "Dear [NAME_2], [NAME_1] left"


def test_without_the_option_nobody_is_looked_for() -> None:
    body = packed("I am Ann Lee")
    assert Redactor(Redaction()).exchange(body, b"")[0] is body


def test_a_redactor_that_cannot_find_names_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing finds them"):
        Redactor(Redaction(names=True))


def test_keys_and_what_a_protocol_says_stay() -> None:
    value = {"model": "Bob", "Bob": "Bob", "messages": [{"role": "Bob", "content": "to Bob"}]}
    assert redacted(value) == {
        "model": "Bob", "Bob": "[NAME_1]", "messages": [{"role": "Bob", "content": "to [NAME_1]"}],
    }  # fmt: skip


@pytest.mark.parametrize("body", [b"Bob: no JSON", b'{"a":"Bob', b"\xff Bob \x80", b': Bob\ndata: {"a":"x"}\n\n'])
def test_what_is_no_json_is_looked_at_as_text(body: bytes) -> None:
    assert redactor().exchange(body, b"")[0] == body.replace(b"Bob", b"[NAME_1]")


def test_a_query_names_people_too() -> None:
    assert redactor().text("q=Ann%20Lee&to=Bob") == "q=[NAME_1]&to=[NAME_2]"


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("Bobby, Bob's, BOB, bob_1, Bob_1, 3Bob", "Bobby, [NAME_1]'s, BOB, bob_1, Bob_1, 3Bob"),
        ("Ann Lee, Ann  Lee, Ann\nLee, Ann, Lee Ann", "[NAME_1], [NAME_2], [NAME_3], Ann, Lee Ann"),
        ("Siobhan O'Connor, O'Connor", "[NAME_1], O'Connor"),
        ("Karl-Heinz Müller, Karl-Heinz", "[NAME_1], Karl-Heinz"),
        ('{"to":"\\nBob","from":"Ann Lee\\n"}', '{"to":"\\n[NAME_1]","from":"[NAME_2]\\n"}'),
        ("C:\\Users\\Bob and %20Bob", "C:\\Users\\[NAME_1] and %20[NAME_1]"),
        ("[NAME_1] knows Bob", "[NAME_1] knows [NAME_2]"),
    ],
)
def test_a_name_is_whole_words(text: str, after: str) -> None:
    assert redacted([text]) == [after]


def test_of_overlapping_values_the_surer_kind_names_the_whole() -> None:
    assert redacted(["Bob@x.org and Bob"], emails=True) == ["[EMAIL_1] and [NAME_1]"]


def test_what_names_nobody_is_not_looked_at() -> None:
    looked: list[str] = []
    People(lambda text: looked.append(text) or [])(["low", "", "Ann [NAME_1]", "Zx" * 50, "\\nBob", "\ud800B"])
    assert looked == ["Ann  ", " ", " Bob", "?B"]


def test_a_text_is_looked_at_once() -> None:
    looked: list[str] = []
    people = People(lambda text: looked.append(text) or [])
    for texts in (["Ann", "Ann"], ["Ann", "Bob"]):
        people(texts)
    assert looked == ["Ann", "Bob"]


def test_a_long_text_is_looked_at_in_pieces_that_end_with_a_line_or_a_word() -> None:
    looked: list[str] = []
    text = "Ann " * 999 + "Ann\nLee " + "Ann " * 1000 + "." * 8999 + "!"
    People(lambda piece: looked.append(piece) or [])([text])
    assert [len(piece) for piece in looked] == [4000, 4000, 4, 4000, 1000]  # One was the same as another.
    assert looked[0].endswith("Ann\n")
    assert looked[1].endswith("Ann ")
    assert looked[4].endswith("!")


def test_more_text_than_can_be_looked_at_is_refused() -> None:
    text = "A b " * (MOST // 4)
    assert list(People(named)([text])("Bob")) == []
    with pytest.raises(TooLong):
        People(named)([text, "Bob"])


def test_values_of_the_model_become_words() -> None:
    people = People(lambda _: ['Ann"\nLee', "the x", "X", "Sarah's", "7", " ".join(string.ascii_uppercase)])(["A"])
    text = "Ann Lee the x X Sarah's 7 A B C D E F G H I"
    assert [text[start:end] for start, end in people(text)] == ["Ann", "Lee", "Sarah", "A B C D E F G H"]


TEXTS = st.text(st.sampled_from(" \n\"'\\/é漢\U0001f600,.abcXYZ"), max_size=12)


@given(name=st.sampled_from(KNOWN), before=TEXTS, after=TEXTS, at=st.lists(st.integers(0, 99), max_size=9))
def test_no_name_survives_any_chunking(name: str, before: str, after: str, at: list[int]) -> None:
    body = deltas(*cut(f"{before} {name} {after}", at))
    request, answer = redactor().exchange(b"{}", body)
    assert said(answer) == f"{before} [NAME_1] {after}"
    assert answer.count(b'"id":"Bob"') == len(at) + 1
    again = redactor().exchange(request, answer)
    assert again[1] is answer


@given(words=st.lists(st.sampled_from(["Bob", "Ann", "Lee", "a@x.org", "[NAME_1]", " ", '"', "\\", "\\n", "{", ","])))
def test_redacting_twice_is_redacting_once_and_json_stays_json(words: list[str]) -> None:
    body = packed({"a": ["".join(words)], "b": "".join(words)})
    once = redactor(emails=True).exchange(body, body)
    assert json.loads(once[0]).keys() == {"a", "b"}
    assert redactor(emails=True).exchange(*once) == once
