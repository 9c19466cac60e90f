"""Owns processes of a benchmark: started on chosen cores, their CPU time as the kernel counts it, stopped for certain.

Must not know what they are, except that a `controller` works beside the request path and is counted apart.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from proxy.supervisor import end_with_parent

ROOT = Path(__file__).parents[2]
_STOP_SECONDS = 60.0


class Failed(Exception):
    """A row that cannot be measured, and why."""


@contextmanager
def running(
    command: Sequence[str], cores: set[int], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process and all it starts, on `cores`; at the end, however that comes, none of them is left."""

    def prepare() -> None:
        os.sched_setaffinity(0, cores)
        end_with_parent()

    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=prepare,
            start_new_session=True, env={**os.environ, **(environment or {})},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cpu_us(root: int) -> tuple[float, float]:
    """CPU microseconds of `root` and all its descendants, reaped ones included: all but the controller; the controller.

    utime, stime, cutime and cstime of /proc/PID/stat, proc(5).
    """
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = file.read_text().rpartition(")")[2].split()
            pid = int(file.parent.name)
            children.setdefault(int(fields[1]), []).append(pid)
            ticks[pid] = sum(int(field) for field in fields[11:15])
    counted = [0, 0]
    todo = [(root, False)]
    while todo:
        pid, aside = todo.pop()
        aside = aside or _is_controller(pid)
        counted[aside] += ticks.get(pid, 0)
        todo += [(child, aside) for child in children.get(pid, [])]
    tick = 1e6 / os.sysconf("SC_CLK_TCK")
    return counted[0] * tick, counted[1] * tick


def _is_controller(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"controller" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False
