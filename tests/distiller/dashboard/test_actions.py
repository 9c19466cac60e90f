from pathlib import Path

from distiller.dashboard.actions import Action, recent, record
from distiller.dashboard.guard import Deed
from tests.logs import migrated


def test_deeds_are_kept_in_order_and_the_newest_come_first(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    for number in range(3):
        record(log, Deed("127.0.0.1", "operator", "keys/create", f"key {number}", "", "done"))
    found = recent(log, 2)
    assert [one.target for one in found] == ["key 2", "key 1"]
    assert found[0] == Action(found[0].ts, "127.0.0.1", "operator", "keys/create", "key 2", "", "done")
    log.close()
