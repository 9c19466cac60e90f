"""What each hostile input of `tests.hostile` gets from a real deployment, as a table.

    python -m tests.bench.hostile

The same attacks as tests/test_hostile.py, which also proves that nobody else is harmed. Exit code 1 where one got what
it should not.
"""

import re
import tempfile
from pathlib import Path

import httpx

from tests.deployment import deployed
from tests.hostile import ATTACKS, ROW, SETTINGS, connected, read, said


def main() -> int:
    """Attack and print; returns the exit code."""
    wrong = 0
    print("| attack | what came back |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder, deployed(Path(folder), [ROW], SETTINGS) as running:
        port = httpx.URL(running.url).port or 0
        for group, cases in ATTACKS.items():
            for name, (data, expected) in cases.items():
                with connected(port, data) as connection:
                    got = said(read(connection))
                mark = "" if re.fullmatch(expected, got) else " **unexpected**"
                wrong += bool(mark)
                print(f"| {group}: {name} | {got or 'closed'}{mark} |", flush=True)
        counted = running.counters()
    print(f"\n{wrong} unexpected; requests {counted['requests']:.0f}, captured {counted['captured']:.0f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
