"""What deciding early is worth: seconds until a streaming client has its first words, on a vLLM that runs already.

The same prompts, once for each number of first tokens, through the router's own functions: 0 holds the whole answer.
Every answer counts as sure, so that only the waiting differs. Must not judge answers.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import aiohttp

from router.candidates import answer
from router.early import early
from router.policy import Route

FIRST = (0, 1, 4)
TIMEOUT = 120.0  # seconds
HEADER = ("first tokens", "median s to the first words", "95th percentile", "median s to the end", "answers")


@dataclass(frozen=True, slots=True)
class Waited:
    """Seconds from the request on, until the first words were there and until the answer was whole."""

    first: float
    whole: float


def main() -> int:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of vLLM, without the /v1")
    parser.add_argument("student", help="the name it serves the adapter or the base under")
    parser.add_argument("--requests", type=int, default=100, help="a number of first tokens")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="an answer has at most")
    options = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for tokens in FIRST:
        route = _route(options.url, options.student, tokens, options.tokens)
        asyncio.run(_measured(route, min(8, options.requests), options.at_once))  # Warm.
        waited = asyncio.run(_measured(route, options.requests, options.at_once))
        print(f"| {' | '.join(_line(tokens, waited))} |", flush=True)
    return 0


def _route(url: str, student: str, first_tokens: int, max_tokens: int) -> Route:
    return Route(
        candidate=student, url=url, stage="live", share=1.0, held_back=0.0, evaluator="exact", threshold=None,
        labels=(), static=(), extra_lines=None, max_tokens=max_tokens, timeout=TIMEOUT, at_once=1,
        first_tokens=first_tokens, hold=TIMEOUT,
    )  # fmt: skip


async def _measured(route: Route, requests: int, at_once: int) -> list[Waited]:
    numbers = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> list[Waited]:
        return [await _waited(session, route, number) for number in numbers]

    async with aiohttp.ClientSession() as session:
        found = await asyncio.gather(*(client(session) for _ in range(at_once)))
    return [one for some in found for one in some]


async def _waited(session: aiohttp.ClientSession, route: Route, number: int) -> Waited:
    words = " ".join(f"item {place} of order {number}" for place in range(number % 16 + 1))
    body = {"messages": [{"role": "user", "content": f"Say in some words what this is about: {words}"}], "stream": True}
    started = time.perf_counter()
    if not route.first_tokens:
        await answer(session, route, body)
        whole = time.perf_counter() - started
        return Waited(whole, whole)
    sent = await early(session, route, body, lambda: None)
    assert sent.flow is not None
    first = None
    try:
        async for _ in sent.flow.pieces():
            first = first or time.perf_counter() - started
    finally:
        sent.flow.close()
    whole = time.perf_counter() - started
    return Waited(first or whole, whole)


def _line(tokens: int, waited: Sequence[Waited]) -> tuple[str, ...]:
    first = [one.first for one in waited]
    late = quantiles(first, n=20)[-1] if len(first) > 1 else first[0]
    whole = median(one.whole for one in waited)
    return str(tokens), f"{median(first):.3f}", f"{late:.3f}", f"{whole:.3f}", str(len(waited))


if __name__ == "__main__":
    sys.exit(main())
