from pathlib import Path

import pytest

from distiller.demo import SAMPLE, SAMPLE_EARLIER, _fresh, load_traffic
from distiller.sample_traffic import sample_traffic, write_traffic
from proxy.errors import BadInput


def test_generated_traffic_has_two_tasks_and_a_later_part(tmp_path: Path) -> None:
    traffic = load_traffic(None, tmp_path)
    assert (len(traffic.earlier), len(traffic.later)) == (SAMPLE_EARLIER, SAMPLE - SAMPLE_EARLIER)
    earlier = {row.messages[-1]["content"] for row in traffic.earlier}
    assert earlier.isdisjoint(row.messages[-1]["content"] for row in traffic.later)


def test_the_test_file_beside_it_is_the_later_part(tmp_path: Path) -> None:
    rows = sample_traffic(30, 1)
    write_traffic(rows[:20], tmp_path / "train.jsonl")
    write_traffic(rows[20:], tmp_path / "test.jsonl")
    traffic = load_traffic(tmp_path / "train.jsonl", tmp_path)
    assert (len(traffic.earlier), len(traffic.later), len(traffic.files)) == (20, 10, 2)


def test_without_one_the_last_fifth_is(tmp_path: Path) -> None:
    write_traffic(sample_traffic(30, 1), tmp_path / "all.jsonl")
    traffic = load_traffic(tmp_path / "all.jsonl", tmp_path)
    assert (len(traffic.earlier), len(traffic.later)) == (24, 6)


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="not empty and not a demo's"):
        _fresh(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_demos_folder_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "stillroom.toml").touch()
    (tmp_path / "old").touch()
    _fresh(tmp_path)
    assert list(tmp_path.iterdir()) == []
