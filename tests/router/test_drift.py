import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadInput
from router.drift import drifted, log_detector
from router.parity import parity

BAR = 0.95
rows = st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), max_size=60)


def falling(before: float, after: float, paths: int, calm: int, n: int) -> np.ndarray:
    means = np.concatenate([np.full(calm, before), np.full(n, after)])
    return (np.random.default_rng(31).random((paths, calm + n)) < means).astype(float)


def test_at_the_bar_alarms_are_as_rare_as_declared() -> None:
    paths, n, every = 1000, 1000, 5000
    alarms = (log_detector(falling(BAR, BAR, paths, 0, n), BAR) >= np.log(every)).any(axis=1).mean()
    assert alarms <= n / every
    lower = (log_detector(falling(BAR, 0.9, paths, 0, n), BAR) >= np.log(every)).any(axis=1).mean()
    assert lower > 0.9  # the simulation does notice a mean below the bar


def test_a_fall_after_a_long_good_time_is_seen_soon() -> None:
    row = falling(0.98, 0.78, 1, 2000, 200)[0]
    found = drifted(row, BAR)
    assert found.found
    assert found.at is not None
    assert found.since is not None
    assert found.recent is not None
    assert 2000 < found.at < 2120
    assert found.since < 200
    assert found.recent < BAR
    assert not parity(row[: found.at], 1 - BAR, 0.05).refuted  # The bound on the whole history is later.


@settings(deadline=None)
@given(rows, st.integers(1, 8), st.floats(0.5, 0.99), st.integers(2, 1000))
def test_more_bad_verdicts_never_hide_an_alarm(row: list[float], times: int, bar: float, every: int) -> None:
    found = drifted(row * times, bar, every)
    worse = drifted([*(row * times), 0.0], bar, every)
    assert worse.found >= found.found
    if found.found:
        assert (worse.at, worse.since) == (found.at, found.since)
        assert found.recent is not None
        assert found.recent < bar or every <= found.n
    assert drifted([v * 0.9 for v in row * times], bar, every).found >= found.found
    assert drifted(row * times, bar, every * 2).found <= found.found


@settings(deadline=None)
@given(rows.filter(bool), st.floats(0.5, 0.99))
def test_the_detector_is_the_sum_over_all_starts(row: list[float], bar: float) -> None:
    gain = (1 - np.array(row)) / (1 - bar) - 1
    starts = [np.mean([np.prod(1 + bet * gain[j:]) for bet in (0.02, 0.05, 0.1, 0.2, 0.4)]) for j in range(len(row))]
    assert log_detector(np.array(row), bar)[-1] == pytest.approx(np.log(sum(starts)), abs=1e-6)


def test_nothing_and_perfection_are_no_drift() -> None:
    assert not drifted([], BAR).found
    assert not drifted([1.0] * 20_000, BAR).found
    assert drifted([0.0] * 20, BAR).since == drifted([0.0] * 20, BAR).at


@pytest.mark.parametrize(
    ("row", "bar", "every"), [([1.1], 0.9, 10), ([float("nan")], 0.9, 10), ([1], 1.0, 10), ([1], 0.9, 0)]
)
def test_nonsense_is_refused(row: list[float], bar: float, every: int) -> None:
    with pytest.raises(BadInput):
        drifted(row, bar, every)
