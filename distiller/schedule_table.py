"""Owns how the schedule is read in the terminal. Must not know where any of it comes from."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distiller.printable import printable
from distiller.terminal import money

NOBODY = "no controller runs here: it is done once `stillroom serve` does"


def schedule_table(found: Mapping[str, Any]) -> None:
    """`stillroom schedule list`: the jobs, the latest runs, and whether anybody works on them."""
    console = Console()
    console.print(_jobs(found["jobs"]))
    if found["runs"]:
        console.print(_runs(found["runs"]))
    quiet = f"quiet hours {found['quiet_hours']}" if found["quiet_hours"] else "no quiet hours"
    waits = f": nothing heavy begins before {_when(found['quiet_until'])}" if found["quiet_until"] else ""
    console.print(f"times in {found['timezone']}; {quiet}{waits}", highlight=False)
    if not found["controller"]:
        console.print("no controller runs here: nothing of this happens before `stillroom serve` is started")


def asked_lines(found: Mapping[str, Any]) -> None:
    """`stillroom schedule run | pause | resume`."""
    if found["action"] == "run":
        for run in found["runs"]:
            print(f"{printable(run['job'])} is queued, and begins when its place is free (run {run['id']})")
    else:
        said = "is paused: it begins nothing by itself" if found["action"] == "pause" else "goes on by itself"
        print(f"{printable(found['job'])} {said}")
    if not found["controller"]:
        print(NOBODY)


def _jobs(jobs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("job", "when", "next", "last", title="Jobs")
    for job in jobs:
        last, paused = job["last"], job["paused"]
        came = f"{_when(last['queued'])} {last['outcome'] or last['state']}" if last else "-"
        due = f"paused: {printable(paused['reason'])}" if paused else _when(job["next"])
        table.add_row(*map(Text, (printable(job["name"]), job["when"] or "by hand", due, came)))
    return table


def _runs(runs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("run of", "queued", "because", "outcome", "cost", title="Latest runs")
    for run in runs:
        outcome = run["outcome"] or run["state"]
        detail = f"{outcome}: {printable(run['detail'])}" if run["detail"] else outcome
        again = f" (attempt {run['attempt']})" if run["attempt"] > 1 else ""
        cost = "-" if run["ended"] is None else "" if run["kind"] != "distill" else _cost(run["usd"])
        because = printable(run["reason"]) + again
        table.add_row(*map(Text, (printable(run["job"]), _when(run["queued"]), because, detail, cost)))
    return table


def _cost(usd: Any) -> str:
    return money(None if usd is None else float(usd))


def _when(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
