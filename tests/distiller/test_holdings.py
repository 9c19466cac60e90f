import json
from pathlib import Path
from typing import Any

from distiller.bundle import Bundle, load_bundle, seal
from distiller.holdings import Holding, cut, learned, spoken, without
from router.prompt import student_messages


def request(text: str) -> str:
    return json.dumps(
        {"messages": [{"role": "system", "content": "Sort.\nBe brief."}, {"role": "user", "content": text}]}
    )


def golden(text: str) -> dict[str, Any]:
    return {"messages": student_messages(json.loads(request(text))["messages"], frozenset()), "text": "billing"}


def sealed(students: Path, name: str, learned: list[str], judged: list[str], prompts: list[str]) -> Bundle:
    """A student's folder as a distillation makes it, without the weights."""
    folder = students.parent / "making"
    folder.mkdir()
    (folder / "weights").write_text(name)
    (folder / "lineage.json").write_text(json.dumps({"snapshot": 1, "exchanges": learned}))
    lines = [{"exchange": one, "teacher": f"teacher on {one}", "text": "billing", "verdict": 1.0} for one in judged]
    (folder / "holdout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return seal(
        folder, students, {"task": "mail", "card": {"golden": [golden(text) for text in prompts], "labels": []}}
    )


def test_answers_and_prompts_are_cut_and_the_list_stays(tmp_path: Path) -> None:
    students = tmp_path / "students"
    touched = sealed(students, "one", ["a", "b", "c"], ["d", "e"], ["ann's", "bob's"])
    other = sealed(students, "two", ["c"], ["e"], ["bob's"])
    before = {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()}
    (students / ".making-1").mkdir()
    said = spoken(request("ann's"))
    assert said is not None
    found = cut(students, frozenset({"a", "b", "d"}), frozenset({said}))
    assert found == [Holding(touched.id, 2, 1, 1)]
    again = load_bundle(touched.path)
    assert again.manifest["card"]["golden"] == [golden("bob's")]
    assert "teacher on d" not in (touched.path / "holdout.jsonl").read_text()
    assert "teacher on e" in (touched.path / "holdout.jsonl").read_text()
    assert {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()} == before
    assert cut(students, frozenset({"a", "b", "d"}), frozenset({said})) == [Holding(touched.id, 2, 0, 0)]


def test_weights_remember_what_the_student_they_went_on_from_learned(tmp_path: Path) -> None:
    student = sealed(tmp_path / "students", "one", ["c"], [], [])
    told = {"snapshot": 1, "exchanges": ["c"], "parent": "student-0", "inherited": ["a", "b"]}
    (student.path / "lineage.json").write_text(json.dumps(told))
    assert learned(student.path) == {"a", "b", "c"}
    assert cut(tmp_path / "students", frozenset({"a", "x"}), frozenset()) == [Holding(student.id, 1, 0, 0)]


def test_a_golden_prompt_is_known_whatever_instructions_it_is_shown_with() -> None:
    said = spoken(request("ann's"))
    assert said is not None
    bare = {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "ann's"}], "text": "x"}
    card = {"golden": [bare, golden("bob's")], "labels": ["x"]}
    assert without(card, frozenset({said})) == {"golden": [golden("bob's")], "labels": ["x"]}
    assert without({"labels": []}, frozenset({said})) == {"labels": []}


def test_what_no_student_is_shown_is_no_conversation() -> None:
    assert [spoken(text) for text in ("{", "{}", '{"messages": 5}', '{"messages": [{"role": 1}]}', "[]")] == [None] * 5
