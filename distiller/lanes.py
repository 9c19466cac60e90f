"""Owns work done several pieces at once: each in a lane, a thread that computes with a core of its own.

Small matrices keep one core busy, and two cores waiting for one another: two lanes are faster than one computation on
two cores. Must not know what is computed: neither losses, nor models, nor rows.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Lanes:
    """So many lanes; a single one is the calling thread itself, with all the cores it has."""

    count: int
    pool: ThreadPoolExecutor | None = None

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """What `work` makes of each item, in the items' order, whichever is done first.

        In the caller's autograd mode, as that belongs to a thread. Where items are fewer than lanes each has more
        cores, and a single one the calling thread with all of its. Where one fails its error is raised in its turn, and
        where the caller goes no further, no more items are begun; in both cases what has been begun is waited for.
        """
        if self.pool is None or len(items) == 1:
            yield from map(work, items)
            return
        inside = _as_here(work, max(1, self.count // max(1, len(items))))
        futures = [self.pool.submit(inside, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


@contextmanager
def lanes(count: int) -> Iterator[Lanes]:
    """So many lanes, which are gone afterwards. On a GPU there is one: it is one queue however many threads fill it."""
    if count == 1 or torch.cuda.is_available():
        yield Lanes(1)
        return
    cores, pool = torch.get_num_threads(), ThreadPoolExecutor(count, "lane")
    try:
        yield Lanes(count, pool)
    finally:
        pool.shutdown(cancel_futures=True)  # An interrupt amid queueing leaves items that no caller knows of.
        torch.set_num_threads(cores)  # Threads to come would begin with what a lane set last.


def _as_here(work: Callable[[Item], Result], cores: int) -> Callable[[Item], Result]:
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def inside(item: Item) -> Result:
        torch.set_num_threads(cores)  # Of this thread alone.
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(item)

    return inside
