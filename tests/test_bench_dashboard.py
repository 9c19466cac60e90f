"""The benchmark of the dashboard on a short log: `make bench-dashboard` does the same on a long one."""

from pathlib import Path

from proxy.rollups import query
from tests.bench.dashboard import _agree, _questions, _timed
from tests.bench.dashboard_log import DAYS, fill, weight
from tests.logs import migrated


def test_a_log_is_made_and_counted_and_sums_agree_with_tables(tmp_path: Path) -> None:
    log, told = migrated(tmp_path), []
    made = fill(log, 900, 1, told.append)
    assert len(told) == DAYS
    assert log.query("SELECT count(*), count(DISTINCT id), count(DISTINCT request) FROM exchanges") == [(900,) * 3]
    assert query(log, "SELECT sum(exchanges) FROM hours") == [(900,)]
    assert log.query("SELECT count(DISTINCT task) > 5, count(DISTINCT served_by) > 1 FROM exchanges") == [(True, True)]
    assert _agree(log)
    log.query("DELETE FROM exchanges WHERE id = (SELECT min(id) FROM exchanges)")
    assert not _agree(log)
    log.query("CALL ducklake_flush_inlined_data('lake')")
    weights = {name: size for name, _, size in weight(log, tmp_path)}
    assert all(weights.values())
    assert len(_timed(tmp_path, _questions(made.until), 1)) == len(_questions(made.until))
