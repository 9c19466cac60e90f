from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller.pauses import Pause, lift, paused, put
from proxy.errors import BadInput
from tests.logs import migrated

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_last_pause_counts(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    assert paused(log) == {}
    put(log, "retention", "a migration", NOW)
    put(log, "distill:a", "audit week", NOW)
    assert paused(log) == {"retention": Pause(NOW, "a migration"), "distill:a": Pause(NOW, "audit week")}
    lift(log, "retention", "done", NOW)
    assert paused(log) == {"distill:a": Pause(NOW, "audit week")}
    with pytest.raises(BadInput, match="retention is not paused"):
        lift(log, "retention", "again", NOW)
