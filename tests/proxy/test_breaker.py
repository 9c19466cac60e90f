from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.breaker import FIRST_PAUSE, LONGEST_PAUSE, OPENS_AFTER, Breaker
from proxy.failover import GIVE_UP


def opened(now: float = 0.0, draw: float = 0.0) -> Breaker:
    breaker = Breaker(lambda: draw)
    for _ in range(OPENS_AFTER):
        breaker.asked(now)
        breaker.failed(now)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(OPENS_AFTER - 1):
        breaker.failed(1.0)
    breaker.succeeded()
    for _ in range(OPENS_AFTER - 1):
        breaker.failed(1.0)
    assert (breaker.state, breaker.ready_at) == ("closed", 0.0)
    breaker.failed(1.0)
    assert breaker.state == "open"
    assert breaker.ready_at > 1.0
    assert breaker.failures == 2 * OPENS_AFTER - 1


def test_after_the_pause_one_request_is_let_through_and_its_success_closes() -> None:
    breaker = opened()
    now = breaker.ready_at
    breaker.asked(now)
    assert breaker.state == "half_open"
    assert breaker.ready_at > now
    breaker.succeeded()
    assert (breaker.state, breaker.ready_at) == ("closed", 0.0)
    breaker.failed(now)
    assert breaker.state == "closed"


def test_failed_probes_make_the_pause_grow_up_to_its_bound_and_a_success_makes_it_short_again() -> None:
    breaker, now, pauses = opened(draw=1.0), 0.0, []
    for _ in range(9):
        pauses.append(breaker.ready_at - now)
        now = breaker.ready_at
        breaker.asked(now)
        breaker.failed(now)
    assert pauses == [min(FIRST_PAUSE * 2.0**probe, LONGEST_PAUSE) for probe in range(9)]
    breaker.succeeded()
    for _ in range(OPENS_AFTER):
        breaker.failed(now)
    assert breaker.ready_at - now == FIRST_PAUSE


def test_the_pause_begins_when_a_slow_probe_has_failed() -> None:
    breaker = opened()
    breaker.asked(breaker.ready_at)
    breaker.failed(1000.0)
    assert breaker.ready_at > 1000.0


def test_what_is_sent_in_spite_of_an_open_circuit_does_not_prolong_it_and_may_close_it() -> None:
    breaker = opened()
    until = breaker.ready_at
    for _ in range(100):
        breaker.asked(0.1)
        breaker.failed(0.1)
    assert (breaker.state, breaker.ready_at) == ("open", until)
    breaker.succeeded()
    assert breaker.state == "closed"


def test_a_rest_outlasts_successes_of_requests_that_were_under_way() -> None:
    breaker = Breaker()
    breaker.rest(10.0, 5.0)
    breaker.rest(10.0, 2.0)
    breaker.succeeded()
    assert (breaker.state, breaker.ready_at) == ("closed", 15.0)


@given(st.floats(0, 1e9), st.floats(0, allow_nan=False))
def test_no_rest_is_longer_than_a_pause_may_be(now: float, seconds: float) -> None:
    breaker = Breaker()
    breaker.rest(now, seconds)
    assert now <= breaker.ready_at <= now + LONGEST_PAUSE


def test_a_long_rest_is_too_long_for_any_request_to_wait_for() -> None:
    assert GIVE_UP < LONGEST_PAUSE


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.failed_in_a_row, self.failures = 0.0, 0, 0
        self.breaker = Breaker(lambda: self.drawn)
        self.drawn = 0.0

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(draw=st.floats(0, 1, exclude_max=True))
    def it_is_asked(self, draw: float) -> None:
        self.drawn = draw
        before, was_ready = self.breaker.state, self.breaker.ready_at <= self.now
        self.breaker.asked(self.now)
        if before != "closed" and was_ready:
            assert self.breaker.state == "half_open"
            assert self.breaker.ready_at > self.now, "a second probe would go at once"
        else:
            assert self.breaker.state == before

    @rule()
    def it_succeeds(self) -> None:
        self.breaker.succeeded()
        self.failed_in_a_row = 0
        assert self.breaker.state == "closed"

    @rule(draw=st.floats(0, 1, exclude_max=True))
    def it_fails(self, draw: float) -> None:
        self.drawn = draw
        self.breaker.failed(self.now)
        self.failures += 1
        self.failed_in_a_row += 1
        assert self.breaker.state != "half_open"

    @rule(seconds=st.floats(0, 1e6))
    def it_asks_for_a_rest(self, seconds: float) -> None:
        before = self.breaker.ready_at
        self.breaker.rest(self.now, seconds)
        assert self.breaker.ready_at >= before

    @invariant()
    def it_is_closed_until_enough_failures_came_in_a_row(self) -> None:
        assert (self.breaker.state == "closed") == (self.failed_in_a_row < OPENS_AFTER)
        assert self.breaker.failures == self.failures

    @invariant()
    def nothing_is_left_alone_for_long(self) -> None:
        assert self.breaker.ready_at <= self.now + LONGEST_PAUSE


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=40)
