import json
import string
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.patterns import Redaction
from proxy.redact import Redactor

ALL = Redactor(Redaction(emails=True, phones=True, cards=True, ibans=True, ips=True))
SECRETS_ONLY = Redactor(Redaction())
KEY = "sk-proj-aB3dE5gH7jK9mN1pQ2rS4tU6"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
SECRETS = st.sampled_from(
    [KEY, JWT, "AKIAIOSFODNN7EXAMPLE", "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA75\n-----END PRIVATE KEY-----"]
) | st.text(string.ascii_letters + string.digits, min_size=24, max_size=60).map("sk-1{}".format)
PERSONAL = st.sampled_from(
    [
        "john.doe@example.com",
        "+49 30 1234567",
        "4111 1111 1111 1111",
        "DE89370400440532013000",
        "192.168.17.4",
        "2001:db8::17",
    ]
)
CANARIES = st.tuples(SECRETS, st.sampled_from([ALL, SECRETS_ONLY])) | st.tuples(PERSONAL, st.just(ALL))
PLAIN = st.text(st.sampled_from(" \n\"'\\/<>é漢\U0001f600,abcXYZ"), max_size=12)


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": content}], "seed": 1.5} | fields


def packed(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def piece(delta: Any, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1712345678, "choices": [choice]}


def stream(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def events(body: bytes | bytearray) -> list[Any]:
    return [json.loads(line[5:]) for line in body.split(b"\n") if line.startswith(b"data:") and b"[DONE]" not in line]


def content(body: bytes | bytearray, index: int = 0) -> str:
    choices = [choice for event in events(body) for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def shape(value: Any) -> Any:
    """A JSON value less what its strings and keys say."""
    if isinstance(value, dict):
        return [shape(item) for item in value.values()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "" if isinstance(value, str) else value


def cut(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted(position % (len(text) + 1) for position in at), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def test_one_value_has_one_placeholder_in_request_and_answer() -> None:
    request = packed(chat("I am a@x.org, my boss is b@x.org, my key " + KEY))
    response = packed(chat("Hello b@x.org and a@x.org and c@x.org"))
    redacted = ALL.exchange(request, response)
    assert redacted == (
        packed(chat("I am [EMAIL_1], my boss is [EMAIL_2], my key [SECRET_1]")),
        packed(chat("Hello [EMAIL_2] and [EMAIL_1] and [EMAIL_3]")),
    )


def test_each_exchange_counts_from_one() -> None:
    for mail in ("a@x.org", "b@x.org"):
        assert ALL.exchange(packed(mail), b"") == (b'"[EMAIL_1]"', b"")


def test_a_placeholder_that_a_body_has_already_is_not_given_again() -> None:
    redacted = ALL.exchange(packed("[EMAIL_1] and a@x.org"), packed("[EMAIL_2]"))
    assert redacted == (packed("[EMAIL_1] and [EMAIL_3]"), packed("[EMAIL_2]"))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"12", b"{}", b'"a"', b"{", b"data:", b"data: {\n", b"\xff\xfe\x80", b"[" * 100_000,
        packed(chat("a long talk about secret passwords, task-123 and sk-learn \u20ac")),
        b'{ "a" : "caf\\u00e9 \\u003cb\\u003e", "n": 1.0, "max_tokens": 1e2 }',
        stream(piece({"role": "assistant"}), piece({"content": "hello"}), piece({"content": " secret"})),
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_bodies_without_anything_to_hide_are_the_same_objects(body: bytes) -> None:
    answer = bytearray(body)
    for redactor in (SECRETS_ONLY, ALL):
        redacted = redactor.exchange(body, answer)
        assert redacted[0] is body
        assert redacted[1] is answer


def test_text_is_redacted_and_the_same_object_otherwise() -> None:
    plain = "order=1234567890&from=me"
    assert SECRETS_ONLY.text(plain) is plain
    assert SECRETS_ONLY.text(f"api_key={KEY}&x=1 \udcff") == "api_key=[SECRET_1]&x=1 \udcff"


@pytest.mark.parametrize(
    ("body", "redacted"),
    [
        (b'{"a":"john\\u0040x.org"}', b'{"a":"[EMAIL_1]"}'),
        (b'{"a":"\\u0073k-proj-aB3dE5gH7jK9mN1pQ2rS4tU6"}', b'{"a":"[SECRET_1]"}'),
        (b'{"a":"\\njohn@x.org\\/"}', b'{"a":"\\n[EMAIL_1]/"}'),
        (b'{"john@x.org":{"john@x.org":1},"b":["john@x.org"]}', b'{"[EMAIL_1]":{"[EMAIL_1]":1},"b":["[EMAIL_1]"]}'),
        (b'{"args":"{\\"to\\":\\"\\\\njohn@x.org\\"}"}', b'{"args":"{\\"to\\":\\"\\\\n[EMAIL_1]\\"}"}'),
        (b'{"password":"open sesame","n":1}', b'{"password":"[SECRET_1]","n":1}'),
        (b'{"a":"john@x.org","a":"b"}', b'{"a":"[EMAIL_1]","a":"b"}'),
        (b'{"a":"john@x.org \\ud800"}', b'{"a":"[EMAIL_1] \\ud800"}'),
        ('{"a":"john@x.org"}'.encode("utf-16"), b'{"a":"[EMAIL_1]"}'),
        (b'\xef\xbb\xbf{"a":"john@x.org"}', b'{"a":"[EMAIL_1]"}'),
        (b'{"a":"john@x.org', b'{"a":"[EMAIL_1]'),
        (b"\xff john@x.org \xc3\xa9\x80", b"\xff [EMAIL_1] \xc3\xa9\x80"),
        (b"[" * 100_000 + b'"john@x.org"', b"[" * 100_000 + b'"[EMAIL_1]"'),
        (b"a@b.co1.2.3.4", b"[EMAIL_1][IP_1]"),
    ],
    ids=lambda body: repr(body[-20:]),
)
def test_values_are_found_however_a_body_spells_them(body: bytes, redacted: bytes) -> None:
    assert ALL.exchange(body, b"") == (redacted, b"")


def test_a_value_in_many_deltas_is_put_where_it_begins_and_other_events_keep_their_bytes() -> None:
    first = b'event: x\r\nid: 7\r\ndata:{"choices": [ {"index":0,"delta":{"content":"I am "}}]}\r\n\r\n'
    first += b": ping a@x.org\r\n"
    deltas = [b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text for text in
              (b"joh", b"n@exa", b"mple.com!", b" bye")]  # fmt: skip
    rest = b'data: [DONE]\n\ndata: {"choices":[{"a":"b@x.org'
    redacted = ALL.exchange(b"", first + b"".join(deltas) + rest)[1]
    assert redacted == (
        first.replace(b"a@x.org", b"[EMAIL_2]")
        + deltas[0].replace(b"joh", b"[EMAIL_1]")
        + deltas[1].replace(b"n@exa", b"")
        + deltas[2].replace(b"mple.com", b"")
        + deltas[3]
        + rest.replace(b"b@x.org", b"[EMAIL_3]")
    )


def test_deltas_of_different_choices_are_different_texts() -> None:
    parts = [(0, "a@x"), (1, "b@x.o"), (0, ".org"), (1, "rg")]
    body = stream(*[piece({"content": text}, index) for index, text in parts])
    redacted = ALL.exchange(b"", body)[1]
    assert (content(redacted, 0), content(redacted, 1)) == ("[EMAIL_1]", "[EMAIL_2]")


def test_arguments_of_tool_calls_are_put_together_by_their_index() -> None:
    parts = [(0, '{"to": "a@'), (1, '{"to": "b@'), (0, 'x.org"}'), (1, 'x.org"}')]
    body = stream(*[piece({"tool_calls": [{"index": at, "function": {"arguments": text}}]}) for at, text in parts])
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in events(ALL.exchange(b"", body)[1])]
    assert [call["function"]["arguments"] for call in calls] == ['{"to": "[EMAIL_1]', '{"to": "[EMAIL_2]', '"}', '"}']


def test_strings_that_every_event_repeats_are_not_put_together() -> None:
    chunk = piece({"content": "x"}) | {"id": "411111", "system_fingerprint": "1111111111"}
    body = stream(*[chunk] * 4)
    assert ALL.exchange(b"", body)[1] is body


def test_token_lists_say_nothing_of_what_was_taken_out() -> None:
    tokens = ["I", " am", " joh", "n@exa", "mple.com", "!"]
    said = [{"token": token, "bytes": list(token.encode())} for token in tokens]
    entries = [one | {"top_logprobs": [one | {"logprob": -1}]} for one in said]
    choice = {"index": 0, "message": {"content": "".join(tokens)}, "logprobs": {"content": entries}}
    body = packed({"choices": [choice]})
    redacted = json.loads(ALL.exchange(b"", body)[1])
    after = redacted["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in after] == ["I", " am", " [EMAIL_1]", "", "", "!"]
    assert after[3] == {"token": "", "bytes": [0] * 5, "top_logprobs": [{"token": "", "bytes": [0] * 5, "logprob": -1}]}
    assert [after[i] for i in (0, 1, 5)] == [entries[i] for i in (0, 1, 5)]
    assert shape(redacted)[0][0][1] == shape(json.loads(body))[0][0][1]


@given(planted=CANARIES, before=PLAIN, after=PLAIN, at=st.lists(st.integers(0, 200), max_size=12), ascii=st.booleans())
def test_no_canary_survives_any_chunking(
    planted: tuple[str, Redactor], before: str, after: str, at: list[int], ascii: bool
) -> None:
    canary, redactor = planted
    chunks = [piece({"content": text}) for text in cut(f"{before} {canary} {after}", at)]
    body = b"".join(b"data: " + json.dumps(chunk, ensure_ascii=ascii).encode() + b"\n\n" for chunk in chunks)
    redacted = redactor.exchange(b"{}", body)[1]
    assert canary not in content(redacted)
    assert content(redacted).startswith(f"{before} [")
    assert content(redacted).endswith(f"_1] {after}")
    assert shape(events(redacted)) == shape(chunks)
    assert redactor.exchange(b"{}", redacted)[1] is redacted


@given(planted=CANARIES, before=PLAIN, after=PLAIN, escaped=st.lists(st.booleans(), min_size=1), as_key=st.booleans())
def test_no_canary_survives_any_escaping(
    planted: tuple[str, Redactor], before: str, after: str, escaped: list[bool], as_key: bool
) -> None:
    canary, redactor = planted
    text = f"{before} {canary} {after}"
    value = {text: 1, "x": [{"y": text}]} if as_key else {"x": [text, {"y": text}], "n": 1.25}
    plain = json.dumps(canary)[1:-1].replace("\\n", "\n")
    spelled = "".join(f"\\u{ord(c):04x}" if escaped[i % len(escaped)] else c for i, c in enumerate(plain))
    body = json.dumps(value).replace(json.dumps(canary)[1:-1], spelled.replace("\n", "\\n")).encode()
    assert json.loads(body) == value
    redacted = redactor.exchange(body, b"{}")[0]
    again = json.loads(redacted)
    assert canary not in str(again)
    assert canary.encode() not in redacted
    assert (next(iter(again)) if as_key else again["x"][0]).startswith(f"{before} [")
    assert shape(again) == shape(value)
    assert redactor.exchange(redacted, b"{}")[0] is redacted


FRAGMENTS = st.sampled_from(
    [
        "john@x.org",
        KEY,
        "4111111111111111",
        "1.2.3.4",
        "::1",
        "+49 30 1234567",
        "[EMAIL_1]",
        "password",
        "=",
        ": ",
        "@",
        "a",
    ]
) | st.sampled_from(
    ['"', "\\", "\\n", "\\u0040", "data: ", "\n", "{", "}", "[", "]", ",", "-----BEGIN PRIVATE KEY-----", "Bearer "]
)


@given(request=st.lists(FRAGMENTS, max_size=10).map("".join), response=st.lists(FRAGMENTS, max_size=10).map("".join))
def test_redacting_twice_is_redacting_once(request: str, response: str) -> None:
    once = ALL.exchange(request.encode(), packed(response))
    twice = ALL.exchange(*once)
    assert twice[0] is once[0]
    assert twice[1] is once[1]
    assert b"john@x.org" not in once[0] + once[1]
    text = ALL.text(request)
    assert ALL.text(text) is text
