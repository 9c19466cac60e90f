"""Owns how a small student's answer looks on OpenAI's wire, whole or as a stream, log-probabilities included.

Must not know servers or students.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from distiller.generate import Generated
from proxy.ids import ulid


def completion(model: str, answer: Generated, told: int | None) -> dict[str, Any]:
    """A `chat.completion`; `told` is how many of the likeliest tokens it tells, None: no log-probabilities at all."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": _logprobs(answer, told), "finish_reason": _finish(answer)}
    return {**_head(model), "object": "chat.completion", "choices": [choice], "usage": _usage(answer)}


def events(model: str, answer: Generated, told: int | None, with_usage: bool) -> list[bytes]:
    """The same as server-sent events, the log-probabilities with the text they belong to."""
    head = {**_head(model), "object": "chat.completion.chunk"} | ({"usage": None} if with_usage else {})
    role, text = {"role": "assistant", "content": ""}, {"content": answer.text}
    chunks = [
        {**head, "choices": [{"index": 0, "delta": role, "logprobs": None, "finish_reason": None}]},
        {**head, "choices": [
            {"index": 0, "delta": text, "logprobs": _logprobs(answer, told), "finish_reason": _finish(answer)}
        ]},
    ]  # fmt: skip
    if with_usage:
        chunks.append({**head, "choices": [], "usage": _usage(answer)})
    return [*(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]


def _head(model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{ulid()}", "created": int(time.time()), "model": model}


def _finish(answer: Generated) -> str:
    return "stop" if answer.finished else "length"


def _usage(answer: Generated) -> Mapping[str, int]:
    read, written = answer.prompt_tokens, len(answer.logprobs)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _logprobs(answer: Generated, told: int | None) -> dict[str, Any] | None:
    """One entry a token. Small students do not write in tokens: the first is the whole text, the rest are empty."""
    if told is None:
        return None
    texts = [answer.text, *[""] * (len(answer.logprobs) - 1)]
    entries: Sequence[dict[str, Any]] = [_token(*one) for one in zip(texts, answer.logprobs, strict=False)]
    for entry in entries:
        entry["top_logprobs"] = []
    if entries:
        entries[0]["top_logprobs"] = [_token(*one) for one in answer.likeliest[:told]]
    return {"content": entries, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob}
