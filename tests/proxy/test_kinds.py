import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.kinds import Call, Kinds, kinds_of

MESSAGE = {
    "input_tokens": 9, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 20, "output_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 0},
    "service_tier": "standard", "server_tool_use": None, "inference_geo": "not_available",
}  # fmt: skip


def of(usage: Any, cached: int | None = 0, tier: str | None = None) -> dict[str, Any] | None:
    """What is not zero of a call of 100 tokens that was answered with 30."""
    found = kinds_of(Call("m", 100, cached, 30, None if usage is None else json.dumps(usage), tier))
    if found is None:
        return None
    assert found.prompt == 100
    named = {one.name: getattr(found, one.name) for one in fields(Kinds) if one.name != "prompt"}
    return {name: value for name, value in named.items() if value}


@pytest.mark.parametrize(
    ("usage", "cached", "expected"),
    [
        (None, None, {"input": 100, "output": 30}),
        ({}, 40, {"input": 60, "cached_input": 40, "output": 30}),
        (None, 400, {"cached_input": 100, "output": 30}),
        (
            {"completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": None}},
            0,
            {"input": 100, "output": 10, "reasoning": 20},
        ),
        (
            {"prompt_tokens_details": {"audio_tokens": 30}, "completion_tokens_details": {"audio_tokens": 25}},
            10,
            {"input": 60, "cached_input": 10, "audio_input": 30, "output": 5, "audio_output": 25},
        ),
        (
            {"prompt_tokens_details": {"audio_tokens": 80}},
            50,
            {"cached_input": 20, "audio_input": 50, "cached_audio_input": 30, "output": 30},
        ),
        (
            {"prompt_tokens_details": {"audio_tokens": 80, "cached_tokens_details": {"audio_tokens": 50}}},
            50,
            {"input": 20, "audio_input": 30, "cached_audio_input": 50, "output": 30},
        ),
        ({"input_tokens_details": {"image_tokens": 64}}, 0, {"input": 36, "image_input": 64, "output": 30}),
        ({"output_tokens_details": {"image_tokens": 30}}, 0, {"input": 100, "image_output": 30}),
        ({"input_tokens_details": {"cache_write_tokens": 40}}, 0, {"input": 60, "cache_write": 40, "output": 30}),
        (MESSAGE, 20, {"input": 76, "cached_input": 20, "cache_write": 4, "output": 30}),
        (
            {"cache_creation_input_tokens": 40, "cache_creation": {"ephemeral_1h_input_tokens": 30}},
            0,
            {"input": 60, "cache_write": 10, "cache_write_hour": 30, "output": 30},
        ),
    ],
)
def test_each_token_counts_in_its_kind(usage: Any, cached: int | None, expected: dict[str, int]) -> None:
    assert of(usage, cached) == expected


@pytest.mark.parametrize(
    ("usage", "tier", "expected"),
    [
        (None, None, None), (None, "default", None), ({"service_tier": "standard"}, "priority", None),
        (None, "flex", "flex"), ({"service_tier": "batch"}, None, "batch"), ({"service_tier": None}, "scale", "scale"),
    ],
)  # fmt: skip
def test_the_tier_is_what_the_answer_says(usage: Any, tier: str | None, expected: str | None) -> None:
    assert (of(usage, tier=tier) or {}).get("tier") == expected


@pytest.mark.parametrize(
    "usage",
    [
        {**MESSAGE, "server_tool_use": {"web_search_requests": 1}},
        {**MESSAGE, "iterations": [{"type": "message"}, {"type": "compaction"}]},
        {**MESSAGE, "speed": "fast"},
        {**MESSAGE, "inference_geo": "us"},
        {**MESSAGE, "cache_creation_input_tokens": "5"},
        {**MESSAGE, "cache_creation_input_tokens": -5000},
        {**MESSAGE, "cache_creation_input_tokens": 1 << 66},
        {"num_search_queries": 2},
        {"prompt_tokens_details": {"audio_tokens": 101}},
        {"prompt_tokens_details": {"cached_tokens_details": {"audio_tokens": 5}}},
        {"completion_tokens_details": {"reasoning_tokens": 31}},
        {"completion_tokens_details": {"reasoning_tokens": True}},
        {"completion_tokens_details": []},
        {"completion_tokens_details": [1]},
        [],
        "usage",
    ],
)
def test_what_makes_no_sense_or_is_not_all_has_no_kinds(usage: Any) -> None:
    assert of(usage) is None or usage == {"completion_tokens_details": []}


def test_words_of_others_mean_nothing_in_other_forms() -> None:
    told = {"server_tool_use": {"web_search_requests": 0}, "iterations": [{"type": "message"}], "speed": 77}
    assert of(told) == {"input": 100, "output": 30}


@pytest.mark.parametrize("call", [Call("m", None, 0, 1), Call("m", 1, 0, None)])
def test_without_counts_nothing_is_known(call: Call) -> None:
    assert kinds_of(call) is None


VALUE = st.none() | st.integers(-5, 1 << 65) | st.text(max_size=3) | st.lists(st.integers(), max_size=1)
NAMES = (
    "prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "cache_creation", "iterations",
    "server_tool_use", "speed", "service_tier", "input_tokens", "cache_creation_input_tokens",
)  # fmt: skip
INNER = ("audio_tokens", "image_tokens", "reasoning_tokens", "cached_tokens_details", "cache_write_tokens")


@given(
    st.none() | st.integers(0, 1 << 63),
    st.none() | st.integers(0, 1 << 63),
    st.none() | st.integers(0, 1 << 63),
    st.dictionaries(
        st.sampled_from(NAMES), VALUE | st.dictionaries(st.sampled_from([*INNER, "ephemeral_1h_input_tokens"]), VALUE)
    ),
)
def test_whatever_a_provider_says_no_token_is_lost_or_counted_twice(
    prompt: int | None, cached: int | None, completion: int | None, usage: dict[str, Any]
) -> None:
    found = kinds_of(Call("m", prompt, cached, completion, json.dumps(usage)))
    if found is not None:
        ways_in = (
            found.input, found.cached_input, found.cache_write, found.cache_write_hour, found.audio_input,
            found.cached_audio_input, found.image_input,
        )  # fmt: skip
        ways_out = (found.output, found.reasoning, found.audio_output, found.image_output)
        assert (sum(ways_in), sum(ways_out)) == (prompt, completion)
        assert min(*ways_in, *ways_out) >= 0
