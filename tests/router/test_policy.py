import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy import Policy, PolicyWatcher, load_policy, save_policy
from tests.router.conftest import route_to

KNOTS = ((0.2, 0.1), (0.9, 0.7))
POLICY = Policy(
    {
        "triage": route_to("http://127.0.0.1:1", calibration=KNOTS),
        "other": route_to("http://127.0.0.1:2", threshold=None),
    }
)
CUT = b'{"routes": {"t": {"labels": [], "static": [], "calibration": [[0.5]]}}}'
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("routes"), inner),
    max_leaves=8,
)


async def soon(watcher: PolicyWatcher, wanted: Policy) -> None:
    """Return when the watcher holds the policy; a policy must arrive within two seconds."""
    async with asyncio.timeout(2):
        while watcher.policy != wanted:
            await asyncio.sleep(0.01)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "policy.json"
    save_policy(POLICY, path)
    assert load_policy(path) == POLICY
    assert [entry.name for entry in path.parent.iterdir()] == ["policy.json"]


def test_a_policy_from_before_calibration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    save_policy(POLICY, path)
    older = json.loads(path.read_text())
    for route in older["routes"].values():
        del route["calibration"]
    path.write_text(json.dumps(older))
    assert load_policy(path).routes["other"] == POLICY.routes["other"]
    assert load_policy(path).routes["triage"].calibration == ()


def test_an_unchanged_policy_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    save_policy(POLICY, path)
    before = path.stat()
    save_policy(POLICY, path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_without_a_file_the_teacher_answers(tmp_path: Path) -> None:
    assert load_policy(tmp_path / "none.json") == Policy()


@pytest.mark.parametrize(
    "damaged", [b"", b"{", b"[]", b"5", b"{}", b"\xff", b'{"routes": []}', b'{"routes": {"t": {"labels": []}}}', CUT]
)
def test_a_damaged_file_means_the_teacher_answers(
    damaged: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "policy.json").write_bytes(damaged)
    assert load_policy(tmp_path / "policy.json") == Policy()
    assert "the teacher answers everything" in caplog.text


def test_a_file_that_cannot_be_read_means_the_teacher_answers(tmp_path: Path) -> None:
    (tmp_path / "policy.json").mkdir()
    assert load_policy(tmp_path / "policy.json") == Policy()


@given(JSON)
def test_no_content_makes_reading_fail(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any-policy.json"
    path.write_text(json.dumps(content))
    assert load_policy(path).routes == {}


async def test_a_watcher_follows_the_file_and_its_loss(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    watcher = PolicyWatcher(path)
    assert watcher.policy == Policy()
    async with watcher.watching():
        for policy in (POLICY, Policy({"triage": POLICY.routes["triage"]})):
            save_policy(policy, path)
            await soon(watcher, policy)
        path.unlink()
        await soon(watcher, Policy())


async def test_a_watcher_outlives_a_file_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    save_policy(POLICY, path)
    watcher = PolicyWatcher(path, seconds=0.01)
    assert watcher.policy == POLICY
    async with watcher.watching():
        path.unlink()
        path.mkdir()
        await soon(watcher, Policy())
        path.rmdir()
        save_policy(POLICY, path)
        await soon(watcher, POLICY)
