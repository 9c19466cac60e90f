"""Owns what is asked and answered in a benchmark: one chat completion, plain and streamed, the same for every proxy.

Must not know who carries it.
"""

import json
from typing import Any

ANSWER_BYTES = 1000
MODEL = "bench"
_WORDS = "The parcel left the depot on Tuesday and reaches you by Friday at the latest. "
_HEAD = {"id": "chatcmpl-bench0001", "created": 1_760_000_000, "model": MODEL}
_USAGE = {"prompt_tokens": 210, "completion_tokens": 160, "total_tokens": 370}


def question(size: int, chunks: int) -> bytes:
    """A request body of exactly `size` bytes; with `chunks`, for a stream of as many (at least 3)."""
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0}
    if chunks:  # The teacher's stand-in sends as many chunks as it may tokens.
        asked |= {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": chunks}
    system = {"role": "system", "content": "Answer the customer in one short paragraph."}
    return _filled(size, lambda text: {**asked, "messages": [system, {"role": "user", "content": text}]})


def answer() -> bytes:
    """The plain answer's body: ANSWER_BYTES long."""
    return _filled(
        ANSWER_BYTES,
        lambda text: {
            **_HEAD,
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"},
            ],
            "usage": _USAGE,
        },
    )


def events(chunks: int) -> list[bytes]:
    """The stream's server-sent events: text, the end, the usage (`chunks` together), and then `[DONE]`."""
    deltas: list[dict[str, Any]] = [{"content": f"word{i:03} "} for i in range(chunks - 2)]
    deltas[0]["role"] = "assistant"
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices += [[{"index": 0, "delta": {}, "finish_reason": "stop"}], []]
    bodies = [{**_HEAD, "object": "chat.completion.chunk", "choices": each} for each in choices]
    bodies[-1]["usage"] = _USAGE
    return [b"data: " + _json(body) + b"\n\n" for body in bodies] + [b"data: [DONE]\n\n"]


def text_of(body: bytes, streamed: bool) -> str:
    """What the assistant says in an answer's body; ValueError, KeyError or IndexError for what is no answer."""
    if not streamed:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    lines = [line.removeprefix(b"data:").strip() for line in body.splitlines() if line.startswith(b"data:")]
    if lines[-1] != b"[DONE]":
        raise ValueError("the stream does not end with [DONE]")
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def _filled(size: int, body: Any) -> bytes:
    missing = size - len(_json(body("")))
    return _json(body((_WORDS * (missing // len(_WORDS) + 1))[:missing]))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
