"""Judges on loopback that speak OpenAI's API and whose ways are known; the model's name says how they judge."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

USAGE = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
WAYS = ("perfect", "always-a", "leans-to-a", "longest", "random", "verbose", "echoing", "silent", "declining", "gone")


@dataclass(frozen=True)
class Asked:
    """What a judge reads from a question, tokens included."""

    key: str
    request: str
    a: str
    b: str


def read(messages: list[dict[str, Any]]) -> Asked:
    told, data = messages[0]["content"], messages[1]["content"]
    (key,) = set(re.findall(r"^(\w+) (?:A|B|TIE)$", told, re.MULTILINE))
    (fence,) = set(re.findall(r"^\[request (\w+)\]$", data, re.MULTILINE))
    parts = [
        re.search(rf"\[{name} {fence}\]\n(.*)\n\[end of {name} {fence}\]", data, re.DOTALL)
        for name in ("request", "answer A", "answer B")
    ]
    return Asked(key, *(part[1] if part else "" for part in parts))


@dataclass
class Judges:
    """`right` has the answer to each request's last message: what is not it is worse."""

    right: Mapping[str, str]
    asked: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        return app

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append({**body, "headers": dict(request.headers)})
        way = body["model"]
        if way in ("declining", "gone"):
            error = {"message": "too long", "type": "invalid_request_error", "code": None, "param": None}
            return JSONResponse({"error": error}, 400 if way == "declining" else 503)
        choice = {"index": 0, "message": {"role": "assistant", "content": self.say(way, body["messages"])}}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": way, "usage": USAGE}
        return JSONResponse({**answer, "choices": [{**choice, "finish_reason": "stop"}]})

    def say(self, way: str, messages: list[dict[str, Any]]) -> str:
        """The reply of a judge with this way."""
        asked = read(messages)
        match way:
            case "echoing":
                return f"{asked.a}\n{asked.b}"
            case "verbose":
                return f"Both have merits. After much thought I choose {self.better(asked)}."
            case "silent":
                return ""
        return f"{asked.key} {self.choice(way, asked)}"

    def choice(self, way: str, asked: Asked) -> str:
        pair = zlib.crc32("".join(sorted((asked.a, asked.b))).encode())
        match way:
            case "always-a":
                return "A"
            case "leans-to-a" if pair % 2:
                return "A"
            case "longest":
                lengths = len(asked.a), len(asked.b)
                return "TIE" if lengths[0] == lengths[1] else "AB"[lengths[0] < lengths[1]]
            case "random":
                return ("A", "B", "TIE")[zlib.crc32(f"{asked.a}|{asked.b}".encode()) % 3]
        return self.better(asked)

    def better(self, asked: Asked) -> str:
        (right,) = [answer for text, answer in self.right.items() if asked.request.endswith(f"user:\n{text}")]
        good = [_plain(answer) == _plain(right) for answer in (asked.a, asked.b)]
        return "TIE" if good[0] == good[1] else "AB"[good[1]]


def _plain(text: str) -> list[str]:
    return text.casefold().replace('"', "'").split()
