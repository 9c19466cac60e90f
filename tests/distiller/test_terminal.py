import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distiller.ab import Trial, compare
from distiller.distill import Tried
from distiller.erase import Erased, Learned
from distiller.explaining import Explaining
from distiller.lineage import Lineage
from distiller.questions import Asked
from distiller.terminal import (
    as_json,
    distilled_summary,
    erased_summary,
    explaining_summary,
    gold_summary,
    keys_table,
    lineage_summary,
    money,
    progress,
    report_table,
    status_table,
    tasks_table,
)
from distiller.terms import Terms
from proxy.keys import Key
from proxy.limits import Limits, Standing
from router.calibration import Calibration, calibrate
from router.coverage import Plan, Threshold, choose_threshold
from router.gold_file import Imported
from router.golden import Golden
from router.ledger import Report, TaskLine

AGAINST = compare([1.0, 1.0], [1.0, 1.0], 0, [0.8, 0.8], [0.9, 0.9])
LINE = TaskLine("triage", 10, 4, 1, 0.5, 2, None, 0.1, 0.2, 0.3, 0.35, 0.0625, 0.4)


def test_unknown_money_is_said() -> None:
    assert money(None) == "unpriced"
    assert money(1234.5) == "$1,234.5000"


def test_values_become_json() -> None:
    assert json.loads(as_json((LINE,)))[0]["avoided_usd"] is None
    assert json.loads(as_json({"path": Path("a"), "set": frozenset({"x"})})) == {"path": "a", "set": ["x"]}


def test_tables_show_what_is_unpriced(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    tasks_table([LINE])
    report_table(Report((LINE,), 0.5, 2, None, 0.3, 3.0, 0.2, 0.1, 0.3, 0.35, 0.0625, 0.4, None))
    shown = capsys.readouterr().out
    assert "$0.5000 + 2 unpriced" in shown
    assert "- repeats $0.0625 - hosted candidates $0.4000" in " ".join(shown.split())
    assert "net saving unpriced" in shown


def test_status_names_why_the_engine_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    engine = {"state": "down", "reason": "the engine ended", "failed": {"student-1": "golden prompts differ"}}
    ice = {"triage": {"since": "2026-01-31T12:00", "reason": "audit week"}}
    status_table(
        {
            "engine": engine,
            "small_engine": {"state": "up", "reason": "", "failed": {"student-2": "no folder"}},
            "candidates": [],
            "frozen": ice,
            "changed": ["triage-2: its instructions changed"],
            "sunsets": ["gpt-4o has ended"],
            "golden": {"student-1": Golden(200, 40, 0.975), "student-2": Golden(0, 0, None)},
            "feedback_ignored": 0,
            "similarity": {"s-1": {"judged": 0, "good": None, "worse": None}},
        }
    )
    shown = capsys.readouterr().out
    assert "engine: down (the engine ended)" in shown
    assert "small engine: up\n  not served: student-2: no folder" in shown
    assert "student-1: golden prompts differ" in shown
    assert "frozen: triage, since 2026-01-31T12:00: audit week" in shown
    assert "triage-2: its instructions changed" in shown
    assert "feedback" not in shown
    assert "alike" not in shown
    assert "gpt-4o has ended" in shown
    assert "student-1: golden set of 200 exchanges, 40 verdicts since: 0.975 of its agreement kept" in shown
    assert "student-2: none of its golden exchanges is in the log, 0 verdicts since: not asked again yet" in shown


def test_status_says_what_feedback_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    said = {
        "scored": 3, "mean_score": 0.5, "complaints": 1, "gold": 4, "gold_share": 0.08, "candidate_right": 0.75,
        "teacher_right": 0.5,
    }  # fmt: skip
    line = {"task": "t", "candidate": "s-1", "stage": "live", "reason": "r", "verdict": "v", "next": "n"}
    seen = {"judged": 7, "good": 0.75, "worse": None}
    shown_too = {"frozen": {}, "changed": [], "sunsets": [], "golden": {}, "feedback_ignored": 2}
    shown_too["similarity"] = {"s-1": seen}
    engines = {"engine": {"state": "up"}, "small_engine": {"state": "not started"}}
    status_table({**engines, "candidates": [line | {"feedback": said}], **shown_too})
    shown = capsys.readouterr().out
    assert (
        "s-1: 4 verdicts (8%) are on the right answer; there it was right 0.750 of the time, the teacher 0.500" in shown
    )
    assert "s-1: 3 of its answers were scored, 0.50 on average, 1 complaints" in shown
    assert "2 feedbacks name another tenant's exchange" in shown
    assert "in the newest 7 that were judged: 0.75 where the candidate's was judged no worse; this" in " ".join(
        shown.split()
    )


def test_rationales_say_why_the_asking_ended(capsys: pytest.CaptureFixture[str]) -> None:
    explaining_summary(Explaining("t", 100, (), Asked(40, 10, 20, 18, 2, 1, 0.5, "budget"), 25, 3))
    shown = capsys.readouterr().out
    assert "40 of 100 training exchanges are drawn, 10 were asked about before; now 20 for $0.5000" in shown
    assert "the budget has no room for another question\n25 rationales to learn from; 3 contradict" in shown
    explaining_summary(Explaining("t", 100, (), Asked(40, 0, ended="the teacher answered with status 503"), 0, 0))
    assert "status 503: what was told is kept, run it again to go on" in capsys.readouterr().out
    explaining_summary(Explaining("t", 100, ("reasoning",), Asked(0, 0), 0, 0))
    assert "reason themselves, under reasoning" in capsys.readouterr().out


def test_progress_is_lines_by_quarters_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=False) as show:
        for done in range(1, 9):
            show("training", done, 8)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        f"training: {done} of 8" for done in (2, 4, 6, 8)
    ]
    with progress(quiet=True) as show:
        show("training", 8, 8)
    assert capsys.readouterr().err == ""


def test_keys_show_limits_and_what_was_spent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    bot = Key("bot", "", "2026-11-24", limits=Limits(60, 90_000, 5.0), capture=False)
    keys_table([(bot, Standing(1.25, 0.25, 0.5)), (Key("free", "", "2026-11-24"), Standing())])
    shown = [line for line in capsys.readouterr().out.splitlines() if "2026" in line]
    for cell in ("60", "90,000", "$5.0000", "$1.2500 ($0.2500 estimated)", "$0.5000", "no"):
        assert f" {cell} " in shown[0]
    assert "$" not in shown[1]


def test_an_erasure_names_the_students_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    student = Learned("student-1", "triage", "live", 12, "stillroom rollback triage --reason 'a user was erased'")
    erased_summary(Erased(31, 2, 31, 32, 1, 1, 9, (student,), ("one note",)))
    shown = capsys.readouterr().out
    assert "31 exchanges from the log" in shown
    assert "student-1 (live) learned from 12 of them: stillroom rollback triage" in shown
    assert "note: one note" in shown
    erased_summary(Erased(0, 0, 0, 0, 0, 0, 0, (), ()))
    assert capsys.readouterr().out == "nothing of this user was found\n"


def test_an_import_names_lines_that_match_nothing_but_not_thousands(capsys: pytest.CaptureFixture[str]) -> None:
    gold_summary(Imported(1, 1, 0, ()))
    assert capsys.readouterr().out == "1 line: right answers to 1 exchange in the log, 0 of them new\n"
    gold_summary(Imported(3000, 0, 0, tuple(range(1, 3001))))
    shown = capsys.readouterr().out
    assert "3,000 lines match none: 1, 2, 3," in shown
    assert shown.endswith(", 20 and 2,980 more\n")


def distilled(threshold: Threshold | None, calibration: Calibration, **card: Any) -> SimpleNamespace:
    """What the summary reads of a `Distilled`."""
    return SimpleNamespace(
        bundle=SimpleNamespace(id="student-1", path=Path("students/student-1"), manifest={"card": card}),
        fresh=True, read=500, snapshot=3, duel=None, notes=(),
        dropped={"error": 2}, trained_rows=300, evaluator="label", threshold=threshold, calibration=calibration,
        kind="adapter", trained={"seconds": 10.0, "tokens": 5000, "first_loss": 2.0, "last_loss": 0.1},
        tried=(
            Tried("head", why="not for json"), Tried("encoder", 0.5, 0.1, 3.0),
            Tried("adapter", 0.9, 0.8, 10.0, base="small", rank=8),
            Tried("soft", 0.9, 0.8, 11.0, ab=Trial("adapter", "soft", 0, (9, 9), (3, 3), (2.0, 2.0), AGAINST, False)),
        ),
        holdout=SimpleNamespace(rows=100, student=0.9, base=0.1, base_rows=8, majority=0.3),
    )  # fmt: skip


def test_a_distillation_says_what_it_proposes_and_how_calibrated_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    rows = [0.9] * 100, [1.0] * 100
    priced = Plan(teacher_usd=0.01, candidate_usd=0.001)
    for plan, saving in ((None, "93% of the teacher's spend (unpriced)"), (priced, "$0.0083 an exchange")):
        distilled_summary(distilled(choose_threshold(*rows, 0.05, plan=plan), calibrate(*rows)))
        shown = capsys.readouterr().out
        assert f"expected net saving {saving}; later exchanges have to prove it" in shown
        assert "head: none, not for json\n  encoder: agreement 0.500, would answer 10%, 3 s\n" in shown
        assert "  adapter (rank 8 on small): agreement 0.900, would answer 80%, 10 s\n" in shown
        assert "11 s\n    dropped: +0.000 against adapter (-0.5" in shown
        assert "p = 1.000; calibration error 0.100 against 0.200; 2 tokens an answer against 2\n" in shown
        assert "adapter, trained on 300 rows in 10 s (500 tokens/s), loss 2.000 -> 0.100\n" in shown
        assert "student 0.900, untuned base 0.100 (8 rows), always the most common answer 0.300" in shown
        assert "calibration error (ECE) 0.100 -> 0.000, Brier score 0.010 -> 0.000" in shown
    distilled_summary(distilled(None, calibrate([], [])))
    shown = capsys.readouterr().out
    assert "nothing to calibrate by" in shown
    assert "decided after" not in shown
    distilled_summary(distilled(None, calibrate([], []), first_tokens=4))
    assert "decided after the first 4 tokens: what follows is checked by nothing\n" in capsys.readouterr().out
    assert "shadow judges all of its answers" in shown


def test_a_distillation_tells_its_notes_and_that_it_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    done = distilled(None, calibrate([], []))
    done.fresh, done.duel, done.notes = False, SimpleNamespace(lost=("language German",)), ("the [first]", "and more")
    distilled_summary(done)
    shown = capsys.readouterr().out
    assert "student-1 (no candidate: worse than the one before) at students/student-1" in shown
    assert shown.endswith("the [first]\nand more\n")


def test_a_lineage_tells_parents_and_terms(capsys: pytest.CaptureFixture[str]) -> None:
    terms = (Terms("anthropic", 3, True), Terms("openai", 9, False))
    found = Lineage("student-2", "triage", "adapter", 3, "ab", ["c"], ["d"], 3, None, None, "student-1", ["a"], terms)
    lineage_summary(found)
    shown = capsys.readouterr().out
    assert "still holds 3 of these 3" in shown
    assert "went on from student-1, which learned from 1 others" in shown
    assert "terms of anthropic: acknowledged\nterms of openai: not acknowledged\n" in shown
