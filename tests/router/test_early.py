"""A student whose first tokens decide, on a real engine's wire and behind the real relay."""

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from proxy.app import create_app
from proxy.deciding import Answer, CandidateFailed
from proxy.derive import CHAT, derive
from proxy.replay import create_replay
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.traffic_file import Row
from router.candidates import check
from router.decide import Router
from router.early import TOO_SLOW
from router.policy import Policy, PolicyWatcher, Route, save_policy
from tests.proxies import Proxy
from tests.router.conftest import PATH, TASK, chat, route_to
from tests.servers import eventually, free_port, serving

TEXT = "where is my invoice?"
TEACHER = "the teacher's answer"
# Tokens of the engine's answer with their probabilities, end of turn included.
SURE = (("bill", 0.9), ("ing and ", 0.5), ("more", 0.5), ("", 0.9))


class Flowing:
    """Streams as vLLM does, one token an event; after `pause_at` tokens it waits for `go`, then may `die`."""

    def __init__(self, tokens: tuple[tuple[str, float], ...] = SURE) -> None:
        self.tokens, self.pause_at, self.die = tokens, len(tokens), False
        self.status, self.finish, self.odd = 200, "stop", b""
        self.go, self.left, self.asked = threading.Event(), threading.Event(), list[dict[str, Any]]()
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route(PATH, self.chat, methods=["POST"])

    async def chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        if self.status != 200:
            return Response(b"{}", self.status)
        return StreamingResponse(self.events(self.asked[-1]), media_type="text/event-stream")

    async def events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        shown = self.tokens[: body["max_tokens"]]
        finish = self.finish if len(shown) == len(self.tokens) else "length"
        try:
            yield _event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
            for place, (text, probability) in enumerate(shown):
                if place == self.pause_at:
                    while not self.go.is_set():
                        await asyncio.sleep(0.01)
                    if self.odd:
                        yield self.odd
                    if self.die:
                        return
                logprobs = {"content": [{"token": text, "logprob": math.log(probability)}]}
                last = finish if place == len(shown) - 1 else None
                yield _event({"delta": {"content": text}, "logprobs": logprobs, "finish_reason": last})
            usage = {"prompt_tokens": 9, "completion_tokens": len(shown), "total_tokens": 9 + len(shown)}
            yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        finally:
            self.left.set()


def _event(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


@pytest.fixture
def engine() -> Iterator[Flowing]:
    made = Flowing()
    yield made
    made.go.set()


@contextmanager
def routed(engine: Flowing | str, folder: Path, **route: Any) -> Iterator[Proxy]:
    """The real relay and router, a replayed teacher behind them, and the engine as the task's student."""
    with serving(engine.app) if isinstance(engine, Flowing) else serving_nothing(engine) as url:
        given = {"first_tokens": 1, "threshold": 0.8, "extra_lines": None} | route
        save_policy(Policy({TASK: route_to(url, **given)}), folder / "policy.json")
        one = Router(PolicyWatcher(folder / "policy.json"))
        row = Row(tuple(chat(TEXT)), TEACHER, None, "gpt-4o", None)
        with serving(create_replay((row,))) as teacher:
            app = create_app(
                ProxySettings(), TeacherSettings(url=teacher), SpoolSettings(rotate_seconds=0.05), folder / "spool",
                one.decide, running=one.running,
            )  # fmt: skip
            with serving(app) as proxy:
                yield Proxy(proxy, folder / "spool")


@contextmanager
def serving_nothing(url: str) -> Iterator[str]:
    yield url


def stream(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="gpt-4o", messages=chat(TEXT), stream=True, extra_headers={"x-stillroom-task": TASK}, **fields  # type: ignore[arg-type]
    )
