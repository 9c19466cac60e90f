"""What deciding early is worth to a client that streams: how soon the first byte of a student's answer can go out.

    python -m tests.bench.held [--answers N] [--tokens N]      (make bench-held; about 3 minutes)

The small base model stands for a student, in real vLLM on this CPU, asked one request after the other by the router's
own functions: whole and checked, or decided after its first tokens. Every answer is sure enough, so that only the
waiting differs; what the confidence of the first tokens is worth, `make bench-gate` says. Must not know the relay.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from proxy.deciding import Answer
from router.candidates import answer
from router.early import early
from router.policy import Route
from tests.bench.evidence import table
from tests.bench.processes import Failed
from tests.conformance.calls import KEY, MODEL
from tests.conformance.clients import KEPT
from tests.conformance.upstreams import vllm

FIRST = (0, 1, 4, 16)
"""Tokens that decide; 0: the whole answer is held."""
_WORDS = ("lamp", "kettle", "ladder", "pillow", "engine", "bottle", "window", "garden")


def main() -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=int, default=20, help="asked for in each way")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    given = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=KEPT) as folder, vllm(Path(folder)) as url:
            rows = asyncio.run(_measured(url.removesuffix("/v1"), given.answers, given.tokens))
    except KeyboardInterrupt:
        return 130
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    head = ("decided after", "first byte, ms: median", "90 %", "last byte, ms: median", "90 %")
    table(f"{given.answers} streamed answers of at most {given.tokens} tokens", head, rows)
    return 0


async def _measured(url: str, answers: int, tokens: int) -> list[tuple[str, ...]]:
    """A row for each way; the ways take turns, so that a slow moment hits all of them."""
    times: dict[int, list[tuple[float, float]]] = {first: [] for first in FIRST}
    # What vLLM is asked with everywhere, as its key here; a student's engine wants none.
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as session:
        for body in _bodies(answers):
            for first in FIRST:
                times[first].append(await _timed(session, _route(url, first, tokens), body))
            print(f"{len(times[0])} of {answers}", file=sys.stderr, flush=True)
    return [_row(first, np.array(found) * 1000) for first, found in times.items()]


async def _timed(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds until the first byte could go out, and until the last."""
    started = time.perf_counter()
    asked = early(session, route, body, lambda: None) if route.first_tokens else answer(session, route, body)
    arrived = [time.perf_counter() - started async for _ in _pieces(await asked)]
    return arrived[0], arrived[-1]


async def _pieces(said: Answer) -> AsyncIterator[bytes]:
    if said.flow is None:
        yield said.body
        return
    try:
        async for piece in said.flow.pieces():
            yield piece
    finally:
        said.flow.close()


def _bodies(answers: int) -> Iterator[dict[str, Any]]:
    for number in range(answers):
        text = f"In one short sentence: what would {number + 2} people do with one {_WORDS[number % len(_WORDS)]}?"
        yield {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": text}]}


def _route(url: str, first: int, tokens: int) -> Route:
    return Route(
        candidate=MODEL, url=url, stage="live", share=1.0, held_back=0.0, evaluator="judge", threshold=None, labels=(),
        static=(), extra_lines=None, max_tokens=tokens, timeout=120.0, at_once=1, first_tokens=first, hold=120.0,
    )  # fmt: skip


def _row(first: int, found: np.ndarray) -> tuple[str, ...]:
    middle, late = np.quantile(found, 0.5, axis=0), np.quantile(found, 0.9, axis=0)
    name = f"{first} tokens" if first > 1 else "the prompt" if first else "the whole answer"
    return name, *(f"{value:,.0f}" for value in (middle[0], late[0], middle[1], late[1]))


if __name__ == "__main__":
    sys.exit(main())
