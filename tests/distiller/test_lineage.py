import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.bundle import Bundle, seal
from distiller.distill import distill
from distiller.lineage import lineage, rebuild, student_of
from distiller.settings import Settings
from proxy.errors import BadInput, Refused
from proxy.log import Log
from tests.distiller.toy_task import toy_log, toy_settings
from tests.router.conftest import TASK, insert


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return toy_log(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return toy_settings(tmp_path)


@pytest.fixture
def student(log: Log, settings: Settings) -> Bundle:
    return distill(log, settings, TASK, lambda *_: None).bundle


def test_a_student_is_traced_to_its_exchanges_and_made_again_from_them(
    log: Log, settings: Settings, student: Bundle
) -> None:
    insert(log, ["lamp 150 is red"], "stop")  # What came after it was made must not matter,
    changed = replace(settings, distiller=replace(settings.distiller, epochs=1, seed=7))  # nor what is set by now.
    found = lineage(log, student_of(changed, student.id))
    assert (found.task, found.kind, found.held) == (TASK, "adapter", 150)
    ids = [name for (name,) in log.query("SELECT id FROM exchanges ORDER BY id LIMIT 150")]
    assert [*found.trained, *found.judged] == ids
    done = rebuild(log, changed, student, lambda *_: None)
    assert (done.same, done.rebuilt, done.differ) == (True, student.id, [])
    assert not list(settings.students.glob(".rebuilding-*"))


def test_a_student_that_learned_why_is_made_again_whatever_was_told_since(log: Log, settings: Settings) -> None:
    tell = (
        "INSERT INTO rationales (id, ts, exchange, text, finish) "
        "SELECT id, now(), id, 'because ' || answer, 'stop' FROM exchanges WHERE answer "
    )
    log.query(tell + "<> 'go'")
    options = replace(settings.distiller, students=("explained",), epochs=1)
    done = distill(log, replace(settings, distiller=options), TASK, lambda *_: None)
    assert (done.kind, done.trained["rationales"]) == ("explained", 80)
    log.query(tell + "= 'go'")
    assert rebuild(log, settings, done.bundle, lambda *_: None).same


def test_a_student_that_went_on_from_another_is_traced_through_it_and_made_again(
    log: Log, settings: Settings, student: Bundle
) -> None:
    for number in range(150, 200):
        insert(log, [f"lamp {number} is red"], "stop")
    options = replace(
        settings.distiller, init="previous", max_rows=150, half_life_days=1.0, teacher_terms_ack=("openai",)
    )
    on = replace(settings, distiller=options)
    second = distill(log, on, TASK, lambda *_: None)
    assert (second.trained["parent"], second.trained["from_base_because"]) == (student.id, "")
    assert second.trained_rows < 120
    found = lineage(log, student_of(on, second.bundle.id))
    assert (found.parent, len(found.trained), len(found.inherited)) == (student.id, 120, 50)
    first = lineage(log, student)
    assert set(found.trained) | set(found.inherited) >= set(first.trained)
    assert [(one.provider, one.acknowledged) for one in found.terms] == [("openai", True)]
    assert json.loads((second.bundle.path / "lineage.json").read_text())["teacher_terms_ack"] == ["openai"]
    assert rebuild(log, settings, second.bundle, lambda *_: None).same
    shutil.rmtree(student.path)
    with pytest.raises(Refused, match=f"went on from {student.id}, which cannot be read"):
        rebuild(log, settings, second.bundle, lambda *_: None)


def test_files_that_differ_are_named(log: Log, settings: Settings, student: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(student.path, folder)
    (folder / "losses.json").write_text("[]")
    (folder / "more.txt").write_text("x")
    other = seal(folder, settings.students, student.manifest)
    done = rebuild(log, settings, other, lambda *_: None)
    assert (done.same, done.rebuilt, done.differ) == (False, student.id, ["losses.json", "more.txt"])


def test_without_its_exchanges_or_its_base_it_is_not_made_again(
    log: Log, settings: Settings, student: Bundle, tmp_path: Path
) -> None:
    tokenizer = tmp_path / "toy" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"more": 1}))
    steps: list[str] = []
    with pytest.raises(Refused, match="is not the one student-"):
        rebuild(log, settings, student, lambda step, *_: steps.append(step))
    assert steps == []  # It was seen before anything was trained.
    log.query("DELETE FROM exchanges WHERE id IN (SELECT id FROM exchanges ORDER BY id LIMIT 2)")
    with pytest.raises(Refused, match="2 of the 150 exchanges are no longer in the log"):
        rebuild(log, settings, student, lambda *_: None)
    assert lineage(log, student).held == 148


def test_a_name_that_is_no_students_is_said(settings: Settings) -> None:
    with pytest.raises(BadInput, match="no student 'student-0'"):
        student_of(settings, "student-0")
