import asyncio
import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response

from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log
from router.evaluators import normalise
from router.policy import Route
from router.registry import Candidate, candidates, register
from tests.logs import migrated

TASK = "triage"
PATH = "/v1/chat/completions"
LABELS = ("billing", "shipping")


def chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Say which queue."}, {"role": "user", "content": text}]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


@pytest.fixture
def ingest(log: Log, tmp_path: Path) -> Ingest:
    return Ingest(log, tmp_path / "spool", 7, ten_dollars)


def ten_dollars(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float | None:
    return 10.0 if model == "gpt-4o" and prompt and completion else None


def insert(log: Log, texts: Sequence[str], answer: str | None = "billing", **columns: Any) -> list[str]:
    """One exchange a text, each answered the same; returns their ids."""
    rows = [
        {
            "id": ulid(), "ts": datetime.now(UTC), "task": TASK, "model": "gpt-4o", "path": PATH, "method": "POST",
            "served_by": "teacher", "status": 200, "partial": False, "finish_reason": "stop", "answer": answer,
            "request": json.dumps({"model": "gpt-4o", "messages": chat(text)}), "request_encoding": "utf-8",
        }
        | columns
        for text in texts
    ]  # fmt: skip
    add_rows(log, "exchanges", rows)
    return [str(row["id"]) for row in rows]


def judged(log: Log, candidate: Candidate, verdicts: Sequence[float | None], first: int = 0, **columns: Any) -> None:
    """Verdicts as shadow would have recorded them, on exchanges numbered from `first`."""
    rows = [
        {
            "id": ulid(), "ts": datetime.now(UTC), "task": candidate.task, "candidate": candidate.id,
            "exchange": f"{number:06}", "kind": "shadow", "verdict": verdict, "confidence": 0.9, "covered": True,
        }
        | columns
        for number, verdict in enumerate(verdicts, first)
    ]  # fmt: skip
    add_rows(log, "verdicts", rows)


def spent(log: Log, kind: str, usd: float | None, exchange: str | None = None, task: str | None = TASK) -> None:
    row = {"id": ulid(), "ts": datetime.now(UTC), "task": task, "kind": kind, "exchange": exchange, "usd": usd}
    add_rows(log, "spend", [row | {"quantity": 1.0, "path": PATH if kind == "teacher" else None}])


def add_rows(log: Log, table: str, rows: Sequence[dict[str, Any]]) -> None:
    places = ", ".join(["(" + ", ".join("?" * len(rows[0])) + ")"] * len(rows))
    values = [value for row in rows for value in row.values()]
    log.query(f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES {places}", values)


def known(log: Log, name: str = "student-1", **changes: Any) -> Candidate:
    """A registered candidate, fresh in shadow."""
    card = {"data_until": "2020-01-01T00:00:00+00:00", "labels": list(map(normalise, LABELS)), "static": []}
    given: dict[str, Any] = {
        "candidate": name, "task": TASK, "kind": "student", "evaluator": "label", "threshold": 0.5, "margin": 0.05,
        "alpha": 0.05, "snapshot": 3, "bundle": f"bundles/{name}", "card": card | {"max_tokens": 16},
    }  # fmt: skip
    assert register(log, **(given | changes))
    return now(log, name)


def now(log: Log, name: str = "student-1") -> Candidate:
    """The candidate as the log has it at this moment."""
    (found,) = [candidate for candidate in candidates(log) if candidate.id == name]
    return found


def route_to(url: str, **changes: Any) -> Route:
    given: dict[str, Any] = {
        "candidate": "student-1", "url": url.removesuffix("/v1"), "stage": "live", "share": 1.0, "held_back": 0.0,
        "evaluator": "label", "threshold": 0.5, "labels": LABELS, "static": (), "extra_lines": None,
        "max_tokens": 16, "timeout": 10.0, "at_once": 8,
    }  # fmt: skip
    return Route(**(given | changes))


class Engine:
    """Speaks vLLM's chat completions; `say` gives the answer to the last message and its probability."""

    def __init__(self, say: Callable[[str], tuple[str, float]]) -> None:
        self.say = say
        self.asked: list[dict[str, Any]] = []
        self.status, self.delay, self.finish = 200, 0.0, "stop"
        self.raw: bytes | None = None
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route(PATH, self.chat, methods=["POST"])

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        await asyncio.sleep(self.delay)
        if self.raw is not None:
            return Response(self.raw, self.status, media_type="application/json")
        return Response(json.dumps(self.completion(body)), self.status, media_type="application/json")

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text, probability = self.say(body["messages"][-1]["content"])
        tokens = [{"token": text, "logprob": math.log(probability)}, {"token": "", "logprob": 0.0}]
        choice = {
            "index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": self.finish,
            "logprobs": {"content": tokens},
        }  # fmt: skip
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_tokens_details": None}
        return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}


class Hosted(Engine):
    """Somebody else's model behind a key: as above, without probabilities, and with what its provider counts."""

    def __init__(self, say: Callable[[str], str], key: str = "") -> None:
        super().__init__(lambda text: (say(text), 1.0))
        self.key = key
        self.usage: dict[str, Any] | None = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}

    async def chat(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return Response(json.dumps({"error": {"message": f"not {self.key}"}}), 401)
        return await super().chat(request)

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        said = super().completion(body)
        del said["choices"][0]["logprobs"]
        return said | {"usage": self.usage}


@pytest.fixture
def engine() -> Engine:
    return Engine(lambda text: ("billing", 0.9))
