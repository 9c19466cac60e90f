from pathlib import Path

from distiller.running import controlled
from router.controller import only_one


def test_a_controller_is_seen_as_long_as_it_works(tmp_path: Path) -> None:
    assert not controlled(tmp_path / "no-home")
    with only_one(tmp_path):
        assert controlled(tmp_path)
        assert controlled(tmp_path)
    assert not controlled(tmp_path)
    with only_one(tmp_path):  # Who looked holds nothing.
        pass
