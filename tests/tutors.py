"""A teacher on loopback that says why it answered as it did, and can misbehave in the ways teachers do."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse


@dataclass
class Tutor:
    """Answers with `text`; fails with `status` at question `fails_at` (from 0) and `fails` after it, None: all."""

    text: str = "Because it says so."
    finish: str = "stop"
    tokens: int = 20
    usage: bool = True
    status: int = 503
    fails_at: int | None = None
    fails: int | None = None
    breaks: bool = False
    delay: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        return app

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append({**body, "authorization": request.headers.get("authorization")})
        number = len(self.asked)  # Before others come in meanwhile.
        await asyncio.sleep(self.delay)
        first = self.fails_at
        if first is not None and number > first and (self.fails is None or number <= first + 1 + self.fails):
            if self.breaks:
                return Response(b"{", 200, {"content-length": "100"}, "application/json")
            return JSONResponse({"error": {"message": "no", "type": "t", "code": None, "param": None}}, self.status)
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        used = {"prompt_tokens": 50, "completion_tokens": self.tokens, "total_tokens": 50 + self.tokens}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return JSONResponse({**answer, "choices": [choice]} | ({"usage": used} if self.usage else {}))
