import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from distiller.ab import RESULT
from distiller.adapter_student import adapter_student
from distiller.bundle import listed
from distiller.dataset import Dataset
from distiller.distill import distill
from distiller.engines import VLLM
from distiller.lineage import rebuild
from distiller.recipes import Kind, Made, Report
from distiller.settings import DistillerSettings, Settings
from proxy.errors import BadInput, Refused
from proxy.log import Log
from proxy.logprobs import Position, packed
from proxy.settings import TeacherSettings
from router.calibration import calibrate
from router.lifecycle import route
from router.registry import SHADOW, candidates
from router.said import Said
from router.scoring import scoring
from router.settings import JudgeSettings, RouterSettings, TaskSettings
from tests.distiller.toy_task import head_settings, toy_log, toy_settings
from tests.judges import Judges
from tests.logs import migrated
from tests.router.conftest import TASK, insert
from tests.servers import serving


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return toy_log(tmp_path)


def test_a_student_is_sealed_and_registered_in_shadow(log: Log, tmp_path: Path) -> None:
    insert(log, ["broken"], status=500)
    insert(log, ["half"], partial=True)
    insert(log, ["by a student"], served_by="student-0")
    steps: list[str] = []
    done = distill(log, toy_settings(tmp_path), TASK, lambda step, at, of: steps.append(step))
    assert (done.read, done.dropped, done.trained_rows) == (152, {"error": 1, "partial": 1}, 120)
    assert {"training", "holdout", "untuned base as control"} <= set(steps)
    assert done.holdout.student > max(done.holdout.base, done.holdout.majority)
    (candidate,) = candidates(log)
    knots = done.calibration.knots
    assert route(candidate, RouterSettings(), "http://x").calibration == knots != ()
    assert candidate.threshold is done.threshold is None  # 30 rows of holdout cannot show a margin of 0.05
    assert done.calibration.after is not None
    assert done.bundle.manifest["calibration"]["after"]["ece"] == done.calibration.after.ece
    assert (candidate.id, candidate.stage, candidate.evaluator) == (done.bundle.id, SHADOW, "label")
    assert candidate.card["labels"] == ["go", "stop", "wait"]
    assert candidate.card["extra_lines"] == 0
    lineage = json.loads((done.bundle.path / "lineage.json").read_text())
    assert len(lineage["exchanges"]) == 120
    assert json.loads((done.bundle.path / "leak_report.json").read_text())["clean"]
    assert json.loads((done.bundle.path / "doubted_labels.json").read_text())["judged"] == 120
    assert log.query("SELECT kind, unit, usd FROM spend WHERE kind = 'training'") == [("training", "hour", 0.0)]
    assert not list((tmp_path / "students").glob(".making-*"))


async def test_what_is_declared_of_the_task_is_frozen_with_the_student(log: Log, tmp_path: Path) -> None:
    declared = RouterSettings(tasks={TASK: TaskSettings(aliases={"Halt": "stop"})})
    distill(log, replace(toy_settings(tmp_path), router=declared), TASK, lambda *_: None)
    (candidate,) = candidates(log)
    assert (candidate.evaluator, candidate.card["aliases"], candidate.card["sets"]) == ("label", {"Halt": "stop"}, [])
    assert candidate.card["labels"] == ["go", "halt", "stop", "wait"]
    score = scoring(candidate, None)
    assert score is not None
    assert (await score("x", {}, Said("stop"), Said("halt."))).verdict == 1


@pytest.mark.parametrize(
    ("declared", "error", "said"),
    [
        (TaskSettings(evaluator="math:sqrt"), BadInput, "evaluator math:sqrt raised TypeError"),
        (TaskSettings(sets=("items",)), BadInput, 'sets are for the evaluator "json", not "label"'),
        (TaskSettings(evaluator="tools"), Refused, "students answer in text"),
    ],
)  # fmt: skip
def test_what_cannot_score_is_said_before_training(
    log: Log, tmp_path: Path, declared: TaskSettings, error: type[Exception], said: str
) -> None:
    told = replace(toy_settings(tmp_path), router=RouterSettings(tasks={TASK: declared}))
    with pytest.raises(error, match=said):
        distill(log, told, TASK, lambda *_: None)
    assert not (tmp_path / "students").exists()


def test_where_first_tokens_decide_all_answers_are_calibrated_on_those_and_the_card_keeps_the_number(
    log: Log, tmp_path: Path
) -> None:
    declared = RouterSettings(tasks={TASK: TaskSettings(first_tokens=1)}, hold_seconds=3.0)
    done = distill(log, replace(toy_settings(tmp_path), router=declared), TASK, lambda *_: None)
    (candidate,) = candidates(log)
    rows = [json.loads(line) for line in (done.bundle.path / "holdout.jsonl").read_text().splitlines()]
    sure = [math.exp(row["logprobs"][0]) for row in rows]
    assert all(len(row["logprobs"]) > 1 for row in rows)
    assert sure != pytest.approx([row["confidence"] for row in rows], abs=1e-6)
    wanted = calibrate(sure, [row["verdict"] for row in rows])
    assert np.array(done.calibration.knots) == pytest.approx(np.array(wanted.knots))
    later = route(candidate, RouterSettings(tasks={TASK: TaskSettings(first_tokens=4)}), "http://x")
    assert (later.first_tokens, later.hold) == (1, 2.0)
    assert route(candidate, declared, "http://x").hold == 3.0


def test_the_same_data_gives_the_same_student(log: Log, tmp_path: Path) -> None:
    first = distill(log, toy_settings(tmp_path), TASK, lambda *_: None)
    second = distill(log, toy_settings(tmp_path), TASK, lambda *_: None)
    assert (first.fresh, second.trained["last_loss"]) == (True, first.trained["last_loss"])


def test_a_student_that_is_surely_worse_than_the_one_that_answers_is_kept_and_no_candidate(
    log: Log, tmp_path: Path
) -> None:
    settings = head_settings(tmp_path)
    first = distill(log, settings, TASK, lambda *_: None)
    assert (first.duel, first.bundle.manifest["champion"]) == (None, None)
    learned = "id IN (SELECT id FROM exchanges ORDER BY id LIMIT 120)"
    for wrong, right in (("?", "go"), ("go", "stop"), ("stop", "?")):  # Taught the wrong answers, judged by the right.
        log.query(f"UPDATE exchanges SET answer = ? WHERE answer = ? AND {learned}", [wrong, right])
    second = distill(log, settings, TASK, lambda *_: None)
    assert second.duel is not None
    whole = second.duel.table[0]
    assert (second.duel.champion, whole.rows, whole.champion) == (first.bundle.id, 30, first.holdout.student)
    assert (whole.worse, whole.challenger) == (True, second.holdout.student)
    assert second.bundle.path.is_dir()
    assert not second.fresh
    assert [(one.id, one.stage) for one in candidates(log)] == [(first.bundle.id, SHADOW)]
    assert second.bundle.manifest["champion"]["table"][0]["worse"]
    assert any("kept, but no candidate" in note for note in second.notes)
    assert log.query("SELECT model FROM spend WHERE kind = 'training' ORDER BY id")[1] == (second.bundle.id,)
    for wrong, right in (("go", "?"), ("stop", "go"), ("?", "stop")):
        log.query(f"UPDATE exchanges SET answer = ? WHERE answer = ? AND {learned}", [right, wrong])
    insert(log, ["lamp 150 is red"], "stop")
    third = distill(log, settings, TASK, lambda *_: None)
    assert third.duel is not None
    assert (third.fresh, third.duel.lost) == (True, ())
    assert candidates(log)[-1].id == third.bundle.id


def test_what_people_should_be_told_is_in_the_bundle_too(log: Log, tmp_path: Path) -> None:
    log.query("UPDATE exchanges SET answered_model = CASE answer WHEN 'go' THEN 'gpt-4o-2024-05-13' ELSE 'gpt-4o' END")
    done = distill(log, head_settings(tmp_path), TASK, lambda *_: None)
    changed, terms = done.notes
    assert changed.startswith("the teacher changed: gpt-4o gave 100 of the answers to gpt-4o")
    assert "120 rows are answers of openai" in terms
    manifest = done.bundle.manifest
    assert [(one["model"], one["current"]) for one in manifest["snapshots"]] == [
        ("gpt-4o", False), ("gpt-4o-2024-05-13", True),
    ]  # fmt: skip
    assert manifest["terms"] == [{"provider": "openai", "rows": 120, "acknowledged": False}]


def test_too_little_to_learn_from_says_how_much_is_missing(log: Log, tmp_path: Path) -> None:
    few = Settings(home=str(tmp_path), distiller=DistillerSettings(min_exchanges=500))
    with pytest.raises(Refused, match="record 350 more"):
        distill(log, few, TASK, lambda *_: None)


def test_an_unknown_task_is_said(log: Log, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="stillroom tasks"):
        distill(log, Settings(home=str(tmp_path)), "nothing", lambda *_: None)


def test_free_text_is_judged_and_the_student_waits_for_the_judge_in_shadow(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    right = {f"lamp {n} is red": f"lamp {n} is red. stop now, lamp {n}." for n in range(120)}
    for text, answer in right.items():
        insert(log, [text], answer)
    with serving(Judges(right).app()) as url:
        given = replace(toy_settings(tmp_path), judge=JudgeSettings("openai/perfect", url))
        done = distill(log, given, TASK, lambda *_: None)
    (candidate,) = candidates(log)
    assert (done.evaluator, candidate.evaluator, candidate.card["labels"]) == ("judge", "judge", [])
    assert candidate.judged_share == given.router.judged_share < 1
    assert log.query("SELECT count(*) FROM judges") == [(1,)]
    assert log.query("SELECT count(*) > 1, count(usd) FROM spend WHERE kind = 'judge'") == [(True, 0)]


def explained_log(folder: Path) -> Log:
    """A rationale of every exchange, and the teacher's odds."""
    log = toy_log(folder)
    log.query(
        "INSERT INTO rationales (id, ts, exchange, text, finish) "
        "SELECT id, now(), id, 'because ' || answer, 'stop' FROM exchanges"
    )
    for answer, other in (("stop", "wait"), ("wait", "go"), ("go", "stop")):
        odds = tuple((text.encode(), math.log(odd)) for text, odd in ((answer, 0.9), (other, 0.05)))
        log.query("UPDATE exchanges SET logprobs = ? WHERE answer = ?", [packed([Position(*odds[0], odds)]), answer])
    return log


def test_other_ways_of_learning_are_tried_against_the_adapter_and_what_is_not_better_is_dropped(tmp_path: Path) -> None:
    log, settings = explained_log(tmp_path), toy_settings(tmp_path)
    alone = distill(log, settings, TASK, lambda *_: None)
    options = replace(settings.distiller, students=("adapter", "soft", "explained"), enough_coverage=0.0)
    done = distill(log, replace(settings, distiller=options), TASK, lambda *_: None)
    assert [one.kind for one in done.tried] == ["adapter", "soft", "explained"]  # Though the adapter is enough.
    trials = [one.ab for one in done.tried if one.ab]
    assert [(one.one, one.other, one.kept) for one in trials] == [
        ("adapter", "soft", False), ("adapter", "explained", False),
    ]  # fmt: skip
    for one in trials:
        assert one.rows[0] == one.rows[1] == 120
        assert one.steps[0] == one.steps[1] == done.trained["steps"]
        assert (one.compared.n, one.compared.one) == (30, done.holdout.student)
    told = json.loads((done.bundle.path / RESULT).read_text())
    assert told == json.loads(json.dumps([asdict(one) for one in trials]))
    assert [one["ab"] for one in done.bundle.manifest["tried"]] == [None, *told]
    # What was learned is what would have been learned without, to the byte.
    with_ab, without = listed(done.bundle.path), listed(alone.bundle.path)
    differ = {name for name, digest in with_ab.items() if without.get(name) != digest}
    assert (done.kind, differ) == ("adapter", {RESULT, "lineage.json"})  # The latter names the snapshot.
    assert without.keys() == with_ab.keys() - {RESULT}
    assert rebuild(log, settings, done.bundle, lambda *_: None).same


def test_what_is_better_is_kept_and_what_it_beat_is_dropped(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
        slow = replace(settings.distiller, learning_rate=1e-6)
        return adapter_student(data, replace(settings, distiller=slow), folder, on_progress)

    kinds = (Kind("adapter", VLLM, lazy), Kind("soft", VLLM, adapter_student, "adapter"))
    monkeypatch.setattr("distiller.tries.KINDS", kinds)
    settings = toy_settings(tmp_path)
    both = replace(settings, distiller=replace(settings.distiller, students=("adapter", "soft")))
    done = distill(log, both, TASK, lambda *_: None)
    (ab,) = json.loads((done.bundle.path / RESULT).read_text())
    assert (done.kind, ab["kept"], ab["compared"]["p"] < 0.05) == ("soft", True, True)
    assert ab["compared"]["other"] == done.holdout.student > ab["compared"]["one"]


def test_a_key_that_is_missing_is_said_before_training(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUTOR_KEY", raising=False)
    settings = toy_settings(tmp_path)
    options = replace(settings.distiller, students=("adapter", "explained"), rationale_budget=1.0)
    asking = replace(settings, distiller=options, teacher=TeacherSettings(key_env="TUTOR_KEY"))
    with pytest.raises(BadInput, match="TUTOR_KEY"):
        distill(log, asking, TASK, lambda *_: None)
    assert not (tmp_path / "students").exists()
