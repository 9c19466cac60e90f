"""Owns counting tokens as gpt-4o does: o200k_base, which litellm ships, and OpenAI's published chat framing.

How OpenAI renders tools and tool calls is not published; they are counted as compact JSON, near the bill and not equal
to it. Must never stand in for a count the provider gave.
"""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from proxy.derive import Estimate
from proxy.errors import Unavailable
from proxy.traffic_file import message_text

O200K_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"  # tiktoken's cache name: sha1 of the encoding's public address


def load_encoding() -> tiktoken.Encoding:
    """o200k_base from the installed files, never from the network; `Unavailable` where it is not there."""
    spec = importlib.util.find_spec("litellm")  # finds the folder without running litellm
    homes = spec.submodule_search_locations if spec else None
    shipped = [str(Path(home, "litellm_core_utils", "tokenizers")) for home in homes or ()]
    chosen = os.environ.get("TIKTOKEN_CACHE_DIR")
    folder = next((place for place in ([chosen] if chosen else shipped) if Path(place, O200K_FILE).is_file()), None)
    if folder is None:
        raise Unavailable("the o200k_base encoding is missing; install litellm and leave TIKTOKEN_CACHE_DIR unset")
    os.environ["TIKTOKEN_CACHE_DIR"] = folder  # tiktoken takes its folder no other way
    return tiktoken.get_encoding("o200k_base")


def estimator() -> Estimate:
    """Counts with the encoding loaded once."""
    encoding = load_encoding()

    def estimate(body: Mapping[str, Any], answer: str | None, tool_calls: Sequence[Any]) -> tuple[int, int]:
        prompt = prompt_tokens(encoding, body.get("messages") or (), body.get("tools") or ())
        return prompt, answer_tokens(encoding, answer, tool_calls)

    return estimate


def prompt_tokens(encoding: tiktoken.Encoding, messages: Sequence[Any], tools: Sequence[Any]) -> int:
    """3 a message, 3 to prime the answer, and the texts."""
    texts = [part for turn in messages for part in (turn["role"], message_text(turn), *_calls(turn.get("tool_calls")))]
    if tools:
        texts.append(_compact(tools))
    return _count(encoding, texts) + 3 * len(messages) + 3


def answer_tokens(encoding: tiktoken.Encoding, answer: str | None, tool_calls: Sequence[Any] | None) -> int:
    """Tokens of an answer's text and calls."""
    return _count(encoding, [answer, *_calls(tool_calls)])


def _count(encoding: tiktoken.Encoding, texts: Sequence[str | None]) -> int:
    return sum(len(encoding.encode_ordinary(text)) for text in texts if text)


def _calls(calls: Sequence[Any] | None) -> list[str]:
    functions = [call["function"] for call in calls or ()]
    return [text for function in functions for text in (function["name"], function.get("arguments") or "")]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
