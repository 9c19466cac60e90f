import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.accounts import Accounts, read_standing
from proxy.errors import Unavailable
from proxy.limits import NANO, Full, Limits, Need, Reservation, Used
from tests.bench.budget import COST, race

BUDGET = Limits(budget_usd=1.0)
NOW = 1_795_000_000.0
HOLDER = """
import sys, time
from pathlib import Path
from proxy.accounts import Accounts
from proxy.limits import Limits, Need, Used
accounts, now = Accounts(Path(sys.argv[1])), float(sys.argv[2])
limits = Limits(budget_usd=1.0)
accounts.settle(accounts.reserve("a", limits, Need(0, 250_000_000), now), Used(0, 250_000_000), now)
accounts.reserve("a", limits, Need(0, 700_000_000), now)
print("reserved", flush=True)
time.sleep(600)
"""


def test_a_killed_workers_reservation_is_released_and_its_spend_kept(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), str(NOW)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"reserved\n"
        assert accounts.reserve("a", BUDGET, Need(0, NANO // 4), NOW) == Full("budget", None)
        assert read_standing(tmp_path, "a", NOW).reserved == 0.7
        holder.send_signal(signal.SIGKILL)
    assert read_standing(tmp_path, "a", NOW).reserved == 0
    assert isinstance(accounts.reserve("a", BUDGET, Need(0, NANO // 4), NOW), Reservation)
    assert read_standing(tmp_path, "a", NOW).spent == 0.25
    assert read_standing(tmp_path, "a", NOW).reserved == 0.25
    accounts.close()


def test_a_new_worker_in_a_dead_ones_slot_starts_with_nothing_reserved(tmp_path: Path) -> None:
    first = Accounts(tmp_path)
    first.reserve("a", BUDGET, Need(0, NANO), NOW)
    first.close()
    second = Accounts(tmp_path)
    assert read_standing(tmp_path, "a", NOW).reserved == 0
    assert isinstance(second.reserve("a", BUDGET, Need(0, NANO), NOW), Reservation)
    second.close()


def test_processes_together_never_overspend_by_more_than_one_request(tmp_path: Path) -> None:
    found = race(tmp_path, processes=4, tries=1000, budget=50.0)
    assert found.tried == 4000
    assert found.admitted == round(found.spent / COST)
    assert found.refused
    assert found.budget <= found.spent <= found.budget + COST
    assert found.reserved == 0


def test_a_race_with_killed_processes_counts_all_that_was_settled(tmp_path: Path) -> None:
    found = race(tmp_path, processes=4, tries=100_000, budget=50.0, kill_after=400)
    assert found.admitted <= round(found.spent / COST) <= found.admitted + 4  # killed between settling and saying so
    assert found.spent <= found.budget + COST
    accounts = Accounts(tmp_path)
    accounts.reserve("raced", Limits(budget_usd=1e6), Need(), time.time())
    assert read_standing(tmp_path, "raced", time.time()).reserved == 0
    accounts.close()


class Model:
    """The accounts as one would write them for a single process that never dies."""

    def __init__(self) -> None:
        self.spent = 0
        self.open: list[tuple[int, Reservation, int]] = []

    def admits(self, nano: int) -> bool:
        reserved = sum(each for _, _, each in self.open)
        return self.spent + reserved + nano <= NANO or (not reserved and self.spent < NANO)


STEP = st.tuples(st.sampled_from(["ask", "ask", "settle", "crash"]), st.integers(0, 2), st.integers(0, NANO))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_whatever_happens_in_whatever_order_a_plain_model_agrees(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    folder, model = tmp_path_factory.mktemp("limits"), Model()
    workers = [Accounts(folder) for _ in range(3)]
    for step, who, amount in steps:
        if step == "ask":
            expected = model.admits(amount)
            made = workers[who].reserve("a", BUDGET, Need(0, amount), NOW)
            assert isinstance(made, Reservation) == expected
            if isinstance(made, Reservation):
                model.open.append((who, made, amount))
        elif step == "settle" and model.open:
            owner, made, bound = model.open.pop(amount % len(model.open))
            workers[owner].settle(made, Used(0, min(amount, bound)), NOW)
            model.spent += min(amount, bound)
        elif step == "crash":
            workers[who].close()  # The kernel does the same for a killed process.
            workers[who] = Accounts(folder)
            model.open = [each for each in model.open if each[0] != who]
        shown = read_standing(folder, "a", NOW)
        assert round(shown.spent * NANO) == model.spent
        assert round(shown.reserved * NANO) == sum(each for _, _, each in model.open)
    assert model.spent < 2 * NANO
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"\7" + data[1:], lambda data: bytes(4096)])
def test_a_damaged_account_is_not_counted_from_nothing(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    accounts.reserve("a", BUDGET, Need(0, 1), NOW)
    (file,) = tmp_path.glob("*.account")
    data = damage(file.read_bytes())
    file.write_bytes(data)
    with pytest.raises(Unavailable, match="is damaged"):
        accounts.reserve("a", BUDGET, Need(0, 1), NOW)
    with pytest.raises(Unavailable, match="is damaged"):
        read_standing(tmp_path, "a", NOW)
    accounts.close()
    Accounts(tmp_path).close()  # It is no reason not to start.
    assert file.read_bytes() == data


def test_accounts_are_the_operators_own_and_any_name_has_one(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "limits")
    accounts.reserve("../../Zoë / 団体", BUDGET, Need(0, NANO), NOW)
    assert read_standing(tmp_path / "limits", "../../Zoë / 団体", NOW).reserved == 1
    assert read_standing(tmp_path / "limits", "other", NOW).reserved == 0
    for file in (tmp_path / "limits").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "limits").stat().st_mode) == 0o700
    accounts.close()


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    accounts = Accounts(tmp_path)
    accounts.reserve("a", BUDGET, Need(), NOW)
    accounts.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
