import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.log import Log
from router.certificate import certificate, with_examples
from router.lifecycle import rollback
from router.registry import CANARY, Candidate, move
from router.signing import signed
from router.verification import Verification, verify
from tests.router.conftest import TASK, judged, known, now
from tests.router.test_certificate import FLOOR, compared

Leaf = tuple[str | int, ...]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "certificate.key"


@pytest.fixture
def candidate(log: Log) -> Candidate:
    made = known(log)
    compared(log, made, [1.0] * 150 + [0.0] + [1.0] * 150)
    return made


@pytest.fixture
def document(log: Log, key: Path, candidate: Candidate) -> dict[str, Any]:
    """Issued, promoted with, and written with examples."""
    stored = signed(certificate(log, candidate, FLOOR), key)
    move(log, candidate, CANARY, "proved", stored)
    return dict(json.loads(json.dumps(signed(with_examples(log, stored), key))))


def wrong(found: Verification) -> list[str]:
    return [line.what for line in found.lines if line.ok is False]


def unknown(found: Verification) -> list[str]:
    return [line.what for line in found.lines if line.ok is None]


def leaves(value: Any, path: Leaf = ()) -> Iterator[Leaf]:
    """Paths to everything that is no container, and to containers that are empty."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for name, one in inner for leaf in leaves(one, (*path, name))]
    yield from found or [path]


def test_a_sound_certificate_holds(log: Log, key: Path, document: dict[str, Any]) -> None:
    found = verify(log, document, key, FLOOR)
    assert (wrong(found), unknown(found)) == ([], [])
    assert (found.holds, found.conclusion) == (True, "holds")
    assert {"signature", "parity", "path", "slices", "examples", "then", "now", "stage"} <= {
        line.what for line in found.lines
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_breaks_the_signature(
    log: Log, key: Path, document: dict[str, Any], data: st.DataObject
) -> None:
    *path, last = data.draw(st.sampled_from(list(leaves(document))))
    changed = copy.deepcopy(document)
    inner: Any = changed
    for name in path:
        inner = inner[name]
    other = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    inner[last] = data.draw(other.filter(lambda value: json.dumps(value) != json.dumps(inner[last])))
    found = verify(log, changed, key, FLOOR)
    assert (found.holds, len(found.lines)) == (False, 1)
    assert found.conclusion.startswith("does not hold: signature:")


def test_the_key_of_somebody_else_proves_nothing(log: Log, tmp_path: Path, key: Path, document: dict[str, Any]) -> None:
    found = verify(log, signed(document, tmp_path / "another.key"), key, FLOOR)
    assert found.conclusion == "does not hold: signature: sound, but by another key than that of this installation"


def test_an_older_certificate_without_signature_does_not_hold(log: Log, key: Path, document: dict[str, Any]) -> None:
    del document["signature"]
    assert "nobody vouches" in verify(log, document, key, FLOOR).conclusion


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("UPDATE verdicts SET verdict = 1.0 WHERE verdict = 0.0", {"verdicts", "parity", "path", "disagreements"}),
        ("UPDATE verdicts SET covered = false WHERE verdict = 0.0", {"verdicts", "parity", "coverage"}),
        ("UPDATE exchanges SET answer = 'forged'", {"examples"}),
        ("UPDATE exchanges SET tenant = id", {"slices"}),
        ("UPDATE candidates SET alpha = 0.5, evaluator = 'json'", {"candidate"}),
        ("DELETE FROM candidates", {"candidate"}),
    ],
)
def test_a_log_that_was_changed_is_seen(
    log: Log, key: Path, document: dict[str, Any], change: str, broken: set[str]
) -> None:
    log.query(change)
    expire(log)
    found = verify(log, document, key, FLOOR)
    assert not found.holds
    assert broken <= set(wrong(found))


def test_at_its_snapshot_later_changes_do_not_matter_to_what_was_said(
    log: Log, key: Path, document: dict[str, Any]
) -> None:
    log.query("UPDATE verdicts SET verdict = 0.9 WHERE verdict = 0.0")
    found = verify(log, document, key, FLOOR)
    assert found.holds


def test_a_snapshot_past_retention_is_read_by_the_verdicts_ids(
    log: Log, key: Path, candidate: Candidate, document: dict[str, Any]
) -> None:
    judged(log, candidate, [1.0] * 5)
    expire(log)
    found = verify(log, document, key, FLOOR)
    assert found.holds
    assert "read by the verdicts' ids" in next(line.said for line in found.lines if line.what == "source")


def test_verdicts_that_are_gone_cannot_be_computed_again(log: Log, key: Path, document: dict[str, Any]) -> None:
    log.query("DELETE FROM verdicts WHERE id = ?", [document["verdicts"]["first"]])
    expire(log)
    found = verify(log, document, key, FLOOR)
    assert found.conclusion == "does not hold: verdicts: 1 of 301 verdicts are gone: cannot be computed again"


def test_exchanges_that_are_gone_leave_the_proof_and_it_says_what_cannot_be_told(
    log: Log, key: Path, document: dict[str, Any]
) -> None:
    log.query("DELETE FROM exchanges WHERE id = ?", [document["examples"]["quoted"][0]["exchange"]])
    found = verify(log, document, key, FLOOR)
    assert (found.holds, unknown(found)) == (True, ["slices", "examples"])
    assert "1 exchanges are gone" in next(line.said for line in found.lines if line.what == "slices")


def test_a_yardstick_that_was_changed_is_seen(log: Log, key: Path, document: dict[str, Any]) -> None:
    log.query("UPDATE verdicts SET yardstick = 0.9")
    expire(log)
    assert {"verdicts", "parity", "ceiling"} <= set(wrong(verify(log, document, key, FLOOR)))


def test_a_candidate_that_was_taken_back_holds_no_more(log: Log, key: Path, document: dict[str, Any]) -> None:
    rollback(log, TASK, "wrong on refunds")
    found = verify(log, document, key, FLOOR)
    assert wrong(found) == ["stage"]
    assert found.conclusion == "does not hold: stage: retired: rolled back: wrong on refunds"


def test_audits_that_refute_end_it(log: Log, key: Path, candidate: Candidate, document: dict[str, Any]) -> None:
    judged(log, candidate, [0.0] * 60, kind="audit")
    assert wrong(verify(log, document, key, FLOOR)) == ["audits"]


def test_shadow_that_contradicts_ends_it(log: Log, key: Path, candidate: Candidate, document: dict[str, Any]) -> None:
    judged(log, candidate, [0.0] * 400)
    assert "now" in wrong(verify(log, document, key, FLOOR))


def test_a_slice_that_fell_far_behind_since_ends_it(
    log: Log, key: Path, candidate: Candidate, document: dict[str, Any]
) -> None:
    compared(log, candidate, [0.0] * 20)
    log.query("UPDATE exchanges SET tenant = 'late' WHERE id IN (SELECT id FROM exchanges ORDER BY id DESC LIMIT 20)")
    found = verify(log, document, key, FLOOR)
    assert "slices now" in wrong(found)
    assert "tenant late" in next(line.said for line in found.lines if line.what == "slices now")


def test_what_was_not_proved_did_not_hold_then(log: Log, key: Path) -> None:
    candidate = known(log)
    compared(log, candidate, [1.0] * 5)
    found = verify(log, signed(certificate(log, now(log), FLOOR), key), key, FLOOR)
    assert wrong(found) == ["then", "now"]


def expire(log: Log) -> None:
    """What retention does to older snapshots."""
    log.query("CALL ducklake_expire_snapshots('lake', older_than => now())")
