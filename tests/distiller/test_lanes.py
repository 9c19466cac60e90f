import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller.lanes import Lanes, lanes
from tests.servers import eventually


@given(st.integers(1, 4), st.lists(st.integers(), max_size=9))
@settings(deadline=None)
def test_results_come_in_the_order_of_the_items(count: int, items: list[int]):
    with lanes(count) as some:
        assert list(some.each(lambda item: item + 1, items)) == [item + 1 for item in items]


def test_whichever_is_done_first():
    first = threading.Event()

    def work(item: str) -> str:
        if item == "late":
            assert first.wait(30)
        else:
            first.set()
        return item

    with lanes(2) as two:
        assert list(two.each(work, ["late", "early"])) == ["late", "early"]


def test_each_lane_computes_with_one_core_and_the_caller_keeps_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with lanes(3) as three:
            both = threading.Barrier(3)
            seen = list(three.each(lambda _: (both.wait(30), torch.get_num_threads())[1], range(3)))
            assert (seen, torch.get_num_threads()) == ([1, 1, 1], 2)
            assert list(three.each(lambda _: torch.get_num_threads(), [0])) == [2]
        with lanes(5) as five:
            assert list(five.each(lambda _: torch.get_num_threads(), [0, 1])) == [2, 2]
        heard: list[int] = []
        late = threading.Thread(target=lambda: heard.append(torch.get_num_threads()))
        late.start()
        late.join()
        assert (heard, torch.get_num_threads()) == ([2], 2)
    finally:
        torch.set_num_threads(before)


def test_a_lane_has_the_autograd_mode_of_its_caller():
    def modes(_: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with lanes(2) as two:
        assert list(two.each(modes, range(2))) == [(True, False)] * 2
        with torch.no_grad():
            assert list(two.each(modes, range(2))) == [(False, False)] * 2
        with torch.inference_mode():
            assert list(two.each(modes, range(2))) == [(False, True)] * 2
        assert list(two.each(modes, range(2))) == [(True, False)] * 2


class Broken(Exception):
    pass


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_reaches_the_caller_in_its_turn_and_nothing_runs_on(count: int):
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise Broken
        time.sleep(0.01)  # Or all are done before the caller looks.
        return item

    done: list[int] = []
    with lanes(count) as some, pytest.raises(Broken):
        done.extend(some.each(work, range(1000)))
    assert done == [0]
    assert not threads_of_lanes()
    assert len(begun) < 1000


def test_a_caller_that_goes_no_further_waits_for_what_was_begun():
    ended: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.02)
        ended.append(item)
        return item

    with lanes(2) as two:
        results = two.each(work, range(1000))
        assert list(islice(results, 1)) == [0]
        results.close()  # type: ignore[attr-defined]
        seen = len(ended)
        assert 1 <= seen < 1000
        time.sleep(0.1)
        assert len(ended) == seen


class Queued(list[int]):
    """Items that tell when the last of them was taken."""

    def __init__(self, items: range) -> None:
        super().__init__(items)
        self.all = threading.Event()

    def __iter__(self) -> Iterator[int]:
        yield from super().__iter__()
        self.all.set()


def test_an_interrupt_leaves_no_thread():
    """Ctrl-C while the caller waits for a lane.

    Between two instructions of a lock it would leave that lock taken for ever, which no caller of Python's can help; so
    the lane sees to it that the caller waits.
    """
    items, begun, caller = Queued(range(1000)), list[int](), threading.get_ident()

    def work(item: int) -> None:
        begun.append(item)
        if item == 2:
            assert items.all.wait(60)
            eventually(lambda: sys._current_frames()[caller].f_code.co_name == "wait", 60)
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # One of several test processes ignores it.
    try:
        with pytest.raises(KeyboardInterrupt), lanes(2) as two:
            list(two.each(work, items))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not threads_of_lanes()
    assert len(begun) < 1000


def test_one_lane_is_the_caller():
    with lanes(1) as one:
        assert one == Lanes(1)
        assert list(one.each(lambda _: threading.current_thread(), range(2))) == [threading.current_thread()] * 2


def threads_of_lanes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lane")]
