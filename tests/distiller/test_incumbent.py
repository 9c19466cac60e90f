import json
from pathlib import Path

import pytest

from distiller.bundle import Bundle, seal
from distiller.incumbent import incumbent
from proxy.log import Log
from router.registry import CANARY, LIVE, RETIRED, SHADOW, move
from tests.logs import migrated
from tests.router.conftest import TASK, known, now


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def sealed(students: Path, text: str, **lineage: object) -> Bundle:
    folder = students.parent / "making"
    folder.mkdir()
    (folder / "weights").write_text(text)
    (folder / "lineage.json").write_text(json.dumps({"exchanges": [text], **lineage}))
    return seal(folder, students, {"kind": "adapter"})


def registered(log: Log, bundle: Bundle, stage: str) -> str:
    """A student at this stage; those in shadow before it are superseded."""
    known(log, bundle.id, bundle=str(bundle.path))
    move(log, now(log, bundle.id), stage, "a test", share=0.1)
    return bundle.id


def test_who_answers_is_before_who_waits_and_who_was_taken_back_is_never_it(log: Log, tmp_path: Path) -> None:
    assert incumbent(log, TASK) is None
    students = tmp_path / "students"
    registered(log, sealed(students, "a"), RETIRED)
    known(log, "rival", kind="hosted", card={"rival": "cheap"})
    assert incumbent(log, TASK) is None
    for text, stage in (("b", LIVE), ("c", CANARY)):
        registered(log, sealed(students, text), stage)
    known(log, sealed(students, "d").id)
    found = incumbent(log, TASK)
    assert found is not None
    assert (found.stage, found.learned, found.manifest) == (LIVE, {"b"}, {"kind": "adapter"})
    move(log, now(log, found.id), RETIRED, "a test")
    found = incumbent(log, TASK)
    assert found is not None
    assert (found.stage, found.learned) == (CANARY, {"c"})
    move(log, now(log, found.id), RETIRED, "a test")
    found = incumbent(log, TASK)
    assert found is not None
    assert found.stage == SHADOW
    assert "is not a finished student" in found.broken  # Its bundle is nowhere.


def test_it_remembers_what_the_one_it_grew_from_learned(log: Log, tmp_path: Path) -> None:
    registered(log, sealed(tmp_path / "students", "b", parent="student-0", inherited=["a"]), LIVE)
    found = incumbent(log, TASK)
    assert found is not None
    assert found.learned == {"a", "b"}


def test_one_that_was_changed_is_said_to_be(log: Log, tmp_path: Path) -> None:
    bundle = sealed(tmp_path / "students", "b")
    registered(log, bundle, LIVE)
    (bundle.path / "weights").write_text("others")
    found = incumbent(log, TASK)
    assert found is not None
    assert (found.id, found.learned) == (bundle.id, frozenset())
    assert "weights was changed" in found.broken
