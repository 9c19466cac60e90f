from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from transformers import AutoTokenizer

from distiller.edge import Running
from distiller.edge_check import llama
from distiller.export import export
from distiller.proof import Case, Proof, cases, post, prove
from distiller.scoring import Answered
from proxy.errors import Refused, Unavailable
from router.calibration import calibrate
from tests.distiller.exportable import Exportable, exportable
from tests.logs import migrated
from tests.router.conftest import insert
from tests.servers import serving

RUNNING = Running(512, 1)
Made = tuple[Exportable, Path, list[Case]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A toy student, the folder with its unquantised file, and its holdout."""
    one, target = exportable(), tmp_path_factory.mktemp("exports")
    log = one.log()
    (found,) = export(log, one.settings, one.candidate, ["bf16"], target, lambda *_: None)
    yield one, Path(str(found.folder)), cases(log, one.bundle)[0]
    log.close()


def run(made: Made, rows: Sequence[Case], asked: list[Answered], **changes: object) -> Proof:
    student, folder, _ = made

    def score(answers: Sequence[Answered]) -> list[float]:
        asked.extend(answers)
        return [0.25 for _ in answers]

    given = {"tokenizer": AutoTokenizer.from_pretrained(student.base), "bundle": student.bundle} | changes
    return prove(partial(llama, folder, RUNNING), rows=rows, gone=2, score=score, on_progress=lambda *_: None, **given)  # type: ignore[arg-type]


def test_the_same_words_keep_their_verdict_and_nobody_is_asked_about_them(
    made: Made,
) -> None:
    rows = [replace(row, verdict=0.5) for row in made[2]]
    asked: list[Answered] = []
    proof = run(made, rows, asked)
    assert (proof.rows, proof.gone, proof.alike, proof.read_alike) == (len(rows), 2, len(rows), len(rows))
    assert (proof.score, proof.student, proof.kept, proof.better, proof.worse) == (0.5, 0.5, 1.0, 0, 0)
    assert (proof.golden, proof.golden_alike) == (8, 8)
    assert asked == []
    assert proof.speed > 0
    assert proof.prompt_speed > 0
    assert proof.peak_bytes is not None
    assert proof.peak_bytes > 2**20


def test_other_words_are_scored_again_and_counted(made: Made) -> None:
    rows = [replace(row, text="something else", verdict=1.0) for row in made[2][:2]]
    rows += [replace(row, text=None, verdict=0.0) for row in made[2][2:5]]
    asked: list[Answered] = []
    proof = run(made, rows, asked)
    assert [one.exchange for one in asked] == [row.exchange for row in rows]
    assert [(one.teacher, one.request) for one in asked] == [(row.teacher, row.request) for row in rows]
    assert [one.other for one in asked] == [row.text for row in made[2][:5]]
    assert (proof.alike, proof.better, proof.worse, proof.score, proof.student) == (0, 3, 2, 0.25, 0.4)
    assert proof.kept == pytest.approx(0.25 / 0.4)


def test_it_has_a_calibration_of_its_own(made: Made) -> None:
    """Fitted to what llama.cpp says: near the student's own, whose words these are, and not the same numbers."""
    proof, student = run(made, made[2], []), made[0].bundle.manifest["calibration"]
    assert proof.calibration.knots
    assert proof.calibration.before is not None
    assert proof.calibration.before.ece == pytest.approx(student["before"]["ece"], abs=0.02)
    assert proof.calibration.before.ece != student["before"]["ece"]
    nothing = replace(
        made[0].bundle, manifest=made[0].bundle.manifest | {"card": {**made[0].candidate.card, "labels": []}}
    )
    assert run(made, made[2], [], bundle=nothing).calibration == calibrate([], [])  # no answer is one of the labels
    early = {**made[0].candidate.card, "labels": [], "first_tokens": 1}
    bundle = replace(made[0].bundle, manifest=made[0].bundle.manifest | {"card": early})
    assert run(made, made[2], [], bundle=bundle).calibration.knots


def test_a_prompt_that_is_read_as_other_tokens_is_counted(made: Made) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made[0].base)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "user")
    assert run(made, made[2][:3], [], tokenizer=tokenizer).read_alike == 0


def test_rows_that_are_in_the_log_no_more_are_counted(made: Made, tmp_path: Path) -> None:
    log = migrated(tmp_path)
    kept = made[2][3]
    insert(log, ["lamp 1 is red"], id=kept.exchange)
    found, gone = cases(log, made[0].bundle)
    assert ([row.exchange for row in found], gone) == ([kept.exchange], len(made[2]) - 1)
    assert (found[0].teacher, found[0].text, found[0].verdict) == (kept.teacher, kept.text, kept.verdict)
    assert found[0].request["messages"][-1]["content"] == "lamp 1 is red"
    log.close()


def test_without_any_row_nothing_is_proved(made: Made) -> None:
    with pytest.raises(Refused, match="none of the 2 holdout exchanges"):
        run(made, [], [])


def test_of_a_worthless_student_nothing_can_be_kept(made: Made) -> None:
    assert run(made, [replace(row, verdict=0.0) for row in made[2][:1]], []).kept == 0.0


def test_what_an_engine_declines_is_said_with_what_to_do() -> None:
    app = FastAPI()
    app.post("/v1/words", response_class=PlainTextResponse)(lambda: "no JSON")
    with serving(app) as url:
        with pytest.raises(Unavailable, match=r"^the engine answered 404: .*Not Found.*; do this$"):
            post(f"{url}/nothing", {}, "the engine", "do this")
        with pytest.raises(Unavailable, match=r"^the engine does not answer: Expecting value"):
            post(f"{url}/words", {}, "the engine", "do this")
    with pytest.raises(Unavailable, match=r"^the engine does not answer: .*refused"):
        post(f"{url}/words", {}, "the engine", "do this")
