"""Owns the question whether a budget holds when many processes spend it at once.

    python -m tests.bench.budget        (seconds)

Every process asks as fast as it can, with some reservations open at any time.
Prints one row a race. Fails where more was spent than the budget and one request, or where the account does not say
exactly what was settled.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from proxy.accounts import Accounts, read_standing
from proxy.limits import NANO, Limits, Need, Reservation, Used

COST = 0.03  # US dollars a request; no whole number of them makes a budget
_NAME = "raced"
_OPEN = 3  # reservations a process holds at most
_HEAD = ("processes", "killed", "tried", "admitted", "refused", "spent", "budget", "overshoot", "us / try")


@dataclass(frozen=True, slots=True)
class Raced:
    """What came of one race; US dollars. Of killed processes only what they said before is counted as tried."""

    tried: int
    admitted: int
    spent: float
    reserved: float
    budget: float
    seconds: float

    @property
    def refused(self) -> int:
        """Requests that were not admitted."""
        return self.tried - self.admitted


def main() -> int:
    """Run the races; the exit code says whether the budget held."""
    print("| " + " | ".join(_HEAD) + " |\n|" + " --: |" * len(_HEAD))
    held = True
    for processes, kill_after in ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 100)):
        with tempfile.TemporaryDirectory() as scratch:
            found = race(Path(scratch), processes, 100_000 if kill_after else 2000, 10.0, kill_after)
        over = max(0.0, found.spent - found.budget)
        lost = found.admitted - round(found.spent / COST)  # A killed process may have settled one it did not tell of.
        held = held and over <= COST and (-processes <= lost <= 0 if kill_after else lost == 0)
        cells = (
            processes, processes * bool(kill_after), f"{found.tried:,}", f"{found.admitted:,}", f"{found.refused:,}",
            f"${found.spent:.2f}", f"${found.budget:.2f}", f"${over:.4f}",
            f"{found.seconds / max(found.tried, 1) * 1e6:.1f}",
        )  # fmt: skip
        print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
    return 0 if held else 1


def race(folder: Path, processes: int, tries: int, budget: float, kill_after: int = 0) -> Raced:
    """Let processes spend one budget, all at once; with `kill_after` each is killed (-9) once it has tried so often."""
    command = [sys.executable, "-m", "tests.bench.budget", str(folder), str(tries), str(budget)]
    runners = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(processes)]
    for runner in runners:
        _line(runner)
    started = time.perf_counter()
    for runner in runners:
        assert runner.stdin is not None
        runner.stdin.write(b"\n")
        runner.stdin.flush()
    said = [_watched(runner, kill_after) for runner in runners]
    seconds = time.perf_counter() - started
    account = read_standing(folder, _NAME, time.time())
    words = [word for each in said for word in each]
    return Raced(len(words), words.count(b"settled"), account.spent, account.reserved, budget, seconds)


def _watched(runner: "subprocess.Popen[bytes]", kill_after: int) -> list[bytes]:
    """Every outcome a process told of; what a killed one wrote before it died is still in the pipe."""
    said: list[bytes] = []
    if kill_after:
        said = [_line(runner) for _ in range(kill_after)]
        runner.kill()
    with runner:  # Not communicate: it passes by what readline has read ahead.
        assert runner.stdout is not None
        said += runner.stdout.read().split()
    return said


def _line(runner: "subprocess.Popen[bytes]") -> bytes:
    assert runner.stdout is not None
    return runner.stdout.readline().strip()


def _run(folder: Path, tries: int, budget: float) -> None:
    """One process of a race: tells of every try by one write, so that no word is lost when it is killed."""
    accounts, limits = Accounts(folder), Limits(budget_usd=budget)
    need, used = Need(0, round(COST * NANO)), Used(0, round(COST * NANO))
    os.write(1, b"ready\n")
    sys.stdin.readline()
    held: list[Reservation] = []
    for _ in range(tries):
        made = accounts.reserve(_NAME, limits, need, time.time())
        if isinstance(made, Reservation):
            held.append(made)
        else:
            os.write(1, b"refused\n")
        while held and (len(held) >= _OPEN or not isinstance(made, Reservation)):
            accounts.settle(held.pop(), used, time.time())
            os.write(1, b"settled\n")
    for made in held:
        accounts.settle(made, used, time.time())
        os.write(1, b"settled\n")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        _run(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    else:
        sys.exit(main())
