from pathlib import Path

import pytest

from proxy.errors import Unavailable
from proxy.tokens import estimator, load_encoding


def test_the_encoding_is_o200k_base() -> None:
    assert load_encoding().encode_ordinary("hello worlds") == [24912, 38946]


def test_a_missing_encoding_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(Unavailable, match="o200k_base"):
        load_encoding()


def test_an_estimate_counts_texts_framing_tools_and_calls() -> None:
    estimate = estimator()
    one = {"messages": [{"role": "user", "content": "hello worlds"}]}
    assert estimate(one, "hello worlds", []) == (1 + 2 + 3 + 3, 2)
    with_tools = estimate({**one, "tools": [{"type": "function", "function": {"name": "f"}}]}, None, [])
    assert with_tools[0] > 9
    assert estimate(one, None, [{"function": {"name": "hello", "arguments": " worlds"}}])[1] == 2
