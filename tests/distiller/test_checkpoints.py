from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.checkpoints import PROGRESS, Checkpoints, Journal, Reached, claim, digest_of, finish, latest

REACHED = Reached((1.5, 0.1 + 0.2), ((2, 0.75),), 3.25)


def written(own: Path, step: int) -> Path:
    checkpoint = own / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    return checkpoint


def test_the_last_finished_checkpoint_is_gone_on_from(tmp_path):
    assert latest(tmp_path) is None
    finish(written(tmp_path, 9), Reached())
    finish(written(tmp_path, 10), REACHED)
    written(tmp_path, 11)
    assert latest(tmp_path) == (tmp_path / "checkpoint-10", REACHED)


def test_a_journal_goes_on_where_the_checkpoint_was(tmp_path):
    finish(written(tmp_path, 2), REACHED)
    journal = Journal(latest(tmp_path))
    assert (journal.checkpoint, journal.losses, journal.scores) == (
        str(tmp_path / "checkpoint-2"),
        [1.5, 0.1 + 0.2],
        [(2, 0.75)],
    )
    assert journal.seconds >= 3.25
    assert Journal(None).checkpoint is None


def test_a_run_finds_only_its_own_and_only_what_is_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    other = claim(checkpoints, "other")
    own = claim(checkpoints, "own")
    finish(written(own, 1), REACHED)
    written(own, 2)
    (tmp_path / "somebody's").touch()
    assert claim(checkpoints, "own") == own
    assert not other.exists()
    assert [path.name for path in own.iterdir()] == ["checkpoint-1"]
    assert (tmp_path / "somebody's").exists()


def test_nothing_but_progress_is_added(tmp_path):
    checkpoint = written(tmp_path, 1)
    finish(checkpoint, REACHED)
    assert {path.name for path in checkpoint.iterdir()} == {"model.safetensors", PROGRESS}


PARTS = st.lists(
    st.dictionaries(st.text(max_size=3), st.integers() | st.floats(allow_nan=False), max_size=3), max_size=4
)


@given(PARTS, PARTS)
def test_a_digest_tells_inputs_apart(one: list[dict[str, float]], two: list[dict[str, float]]):
    assert (digest_of(one) == digest_of(two)) == (repr_of(one) == repr_of(two))


def repr_of(parts: list[dict[str, float]]) -> str:
    return repr([sorted(part.items()) for part in parts])


def test_what_cannot_be_told_apart_is_no_part_of_a_digest():
    with pytest.raises(TypeError):
        digest_of([object()])
