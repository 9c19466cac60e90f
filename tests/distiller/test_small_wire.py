import json
import math
from typing import Any

import pytest

from distiller.generate import Generated
from distiller.small_wire import completion, events

LIKELIEST = (("billing", math.log(0.7)), ("größe", math.log(0.2)), ("login", math.log(0.1)))
ANSWER = Generated("billing", 0.7, True, (math.log(0.7),), 9, LIKELIEST)


def read(pieces: list[bytes]) -> list[dict[str, Any]]:
    assert pieces[-1] == b"data: [DONE]\n\n"
    return [json.loads(piece.removeprefix(b"data: ").removesuffix(b"\n\n")) for piece in pieces[:-1]]


def test_a_whole_answer() -> None:
    body = completion("s", ANSWER, 2)
    choice = body["choices"][0]
    assert (body["object"], body["model"], choice["finish_reason"]) == ("chat.completion", "s", "stop")
    assert choice["message"] == {"role": "assistant", "content": "billing", "refusal": None}
    assert body["usage"] == {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    (token,) = choice["logprobs"]["content"]
    assert (token["token"], bytes(token["bytes"]), token["logprob"]) == ("billing", b"billing", math.log(0.7))
    assert [(one["token"], bytes(one["bytes"]).decode()) for one in token["top_logprobs"]] == [
        ("billing", "billing"),
        ("größe", "größe"),
    ]


def test_log_probabilities_are_told_when_asked() -> None:
    assert completion("s", ANSWER, None)["choices"][0]["logprobs"] is None
    assert completion("s", ANSWER, 0)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_stream_is_the_same_answer(with_usage: bool) -> None:
    chunks = read(events("s", ANSWER, 3, with_usage))
    whole = completion("s", ANSWER, 3)
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert "".join(choice["delta"]["content"] for choice in choices) == "billing"
    assert [choice["finish_reason"] for choice in choices] == [None, "stop"]
    assert choices[1]["logprobs"] == whole["choices"][0]["logprobs"]
    usages = [chunk.get("usage", "absent") for chunk in chunks]
    assert usages == ([None, None, whole["usage"]] if with_usage else ["absent", "absent"])


def test_an_answer_of_several_tokens_tells_each() -> None:
    answer = Generated('{"a": 1}', 0.25, False, (math.log(0.5), math.log(0.5)), 3)
    choice = completion("s", answer, 5)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert [token["token"] for token in choice["logprobs"]["content"]] == ['{"a": 1}', ""]
    assert [token["logprob"] for token in choice["logprobs"]["content"]] == [math.log(0.5)] * 2
    assert completion("s", answer, 5)["usage"]["completion_tokens"] == 2
