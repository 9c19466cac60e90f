import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller.dashboard.actions import recent
from distiller.dashboard.task_page import DEEDS, chart_rows, consequences, money_of, offered, seen
from distiller.dashboard.task_view import view
from distiller.settings import Settings
from proxy.log import Log
from router.freezes import frozen
from router.lifecycle import advance
from router.policy import load_policy
from router.registry import CANARY, LIVE, RETIRED, move
from router.settings import RouterSettings
from tests.distiller.dashboard.houses import ORIGIN, TOKENS, House, MakeHouse
from tests.logs import migrated
from tests.router.conftest import TASK, insert, judged, known, now, spent
from tests.router.test_certificate import compared

PAGE = f"/ui/tasks/{TASK}"
EVIL = "<script>alert(1)</script>{{ 7 * 7 }}"


def opened(house: House) -> Log:
    assert house.log is not None
    return house.log


def certified(log: Log, name: str = "student-1") -> None:
    judged(log, known(log, name), [1.0] * 200)


def serving_now(house: House, *students: str) -> None:
    house.settings.small_state.parent.mkdir(parents=True, exist_ok=True)
    names = ", ".join(f'"{name}"' for name in students)
    told = f'{{"state": "up", "url": "http://127.0.0.1:9", "ready": [{names}]}}'
    house.settings.small_state.write_text(told)


async def test_the_page_shows_the_evidence_and_the_money(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    compared(log, known(log), [1.0] * 30 + [0.0], answer="shipping", ts=datetime.now(UTC))
    (exchange,) = insert(log, ["x"])
    spent(log, "teacher", 0.25, exchange)
    text = await made.text(PAGE)
    for part in (
        TASK, "not yet: agreement", "Parity over time", "after 31 covered exchanges the bounds are",
        "Coverage and risk",
        "certified threshold 0.5: covers 100%", "The most harmful disagreements", "Verdict 0, 0.9 sure", "Latin script",
        "registered", "student-1", "there is none before parity is proved", "$0.25",
    ):  # fmt: skip
        assert part in text, part
    page = (await made.get(PAGE)).text
    assert "<del>billing</del>" in page
    assert "<ins>shipping</ins>" in page
    assert f'href="{PAGE}/confirm/promote?candidate=student-1"' in page
    assert (await made.get("/ui/tasks/nothing")).status_code == 400


async def test_unknown_is_not_unpriced(house: MakeHouse) -> None:
    made = house()
    (exchange,) = insert(opened(made), ["x"])
    nothing = await made.text(PAGE)
    assert ("Spent on the teacher -" in nothing, "A month at this pace -" in nothing) == (True, True)
    spent(opened(made), "teacher", 0.25, exchange)
    made.readers.forget()
    told = "A month at this pace unknown 1 exchanges within less than a day say nothing of the days to come"
    assert told in await made.text(PAGE)
    insert(opened(made), ["x"], task="other")
    spent(opened(made), "teacher", None, "y", task="other")
    other = await made.text("/ui/tasks/other")
    assert ("Spent on the teacher unpriced" in other, "A month at this pace unpriced" in other) == (True, True)


async def test_a_task_without_a_candidate_says_what_to_do(house: MakeHouse) -> None:
    made = house()
    insert(opened(made), ["x"])
    text = await made.text(PAGE)
    assert f"stillroom distill {TASK}" in text
    assert "Promote" not in text
    assert "Freeze…" in text


async def test_recorded_traffic_stays_text(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    candidate = known(log)
    (exchange,) = insert(log, [EVIL], answer=EVIL)
    judged(log, candidate, [0.0], exchange=exchange, answer=f"{EVIL} more")
    move(log, candidate, RETIRED, f"rolled back: {EVIL}")
    page = (await made.get(PAGE)).text
    assert "<script>alert" not in page
    assert "{{ 7 * 7 }}" in page


async def test_promote_and_roll_back_reach_the_policy_and_the_record(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    certified(log)
    serving_now(made, "student-1")
    asked = await made.text(f"{PAGE}/confirm/promote?candidate=student-1")
    assert "student-1 goes from shadow to canary: it answers 1 % of the conversations." in asked
    assert load_policy(made.settings.policy).routes == {}
    answer = await made.post(f"{PAGE}/promote", f"{PAGE}/confirm/promote", candidate="student-1", seen="shadow 0.0")
    assert (answer.status_code, answer.headers["location"]) == (303, PAGE)
    assert "student-1 is now: canary, with 1 % of the conversations" in await made.text(PAGE)
    assert load_policy(made.settings.policy).routes[TASK].candidate == "student-1"
    assert "student-1 is retired." in await made.text(f"{PAGE}/confirm/rollback")
    answer = await made.post(f"{PAGE}/rollback", f"{PAGE}/confirm/rollback", reason="  wrong on\n refunds ")
    assert answer.status_code == 303
    assert load_policy(made.settings.policy).routes == {}
    assert (now(log).stage, now(log).reason) == (RETIRED, "rolled back: wrong on refunds")
    deeds = [(one.action, one.target, one.detail, one.outcome) for one in recent(log, 9)]
    assert deeds == [
        (f"tasks/{TASK}/rollback", TASK, "wrong on refunds", "done"),
        (f"tasks/{TASK}/promote", TASK, "student-1", "done"),
    ]


async def test_what_was_confirmed_once_is_done_once(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    certified(log)
    page = (await made.get(f"{PAGE}/confirm/promote")).text
    form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
    assert form.keys() == {"token", "candidate", "seen"}
    sent = [made.browser.post(f"{PAGE}/promote", data=form, headers={"origin": ORIGIN}) for _ in range(3)]
    answers = await asyncio.gather(*sent)
    assert sorted(answer.status_code for answer in answers) == [303, 409, 409]
    refused = next(answer.text for answer in answers if answer.status_code == 409)
    assert "student-1 is at canary by now: look at the task again" in refused
    assert seen(now(log)) == "canary 0.01"
    nobody = await made.post(f"{PAGE}/promote", f"{PAGE}/confirm/promote")
    assert (nobody.status_code, seen(now(log))) == (400, "canary 0.01")


async def test_without_a_certificate_it_is_refused_as_the_command_is(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    judged(log, known(log), [1.0] * 10)
    answer = await made.post(f"{PAGE}/promote", f"{PAGE}/confirm/promote", candidate="student-1", seen="shadow 0.0")
    assert answer.status_code == 409
    assert "no promotion without a certificate: not yet: agreement" in answer.text
    assert now(log).stage == "shadow"
    assert recent(log, 1)[0].outcome == "refused (409)"


async def test_freeze_and_thaw_want_a_reason(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    known(log)
    for reason in ("", "   ", "x" * 501):
        answer = await made.post(f"{PAGE}/freeze", f"{PAGE}/confirm/freeze", reason=reason)
        assert (answer.status_code, "give a reason" in answer.text) == (400, True)
    assert (await made.post(f"{PAGE}/freeze", f"{PAGE}/confirm/freeze", reason="audit week")).status_code == 303
    assert frozen(log)[TASK].reason == "audit week"
    text = await made.text(PAGE)
    assert ("Frozen since" in text, "Thaw…" in text) == (True, True)
    assert (await made.post(f"{PAGE}/thaw", f"{PAGE}/confirm/thaw", reason="done")).status_code == 303
    assert frozen(log) == {}
    assert (await made.post(f"{PAGE}/thaw", f"{PAGE}/confirm/thaw", reason="again")).status_code == 400


async def test_what_is_no_deed_is_no_page(house: MakeHouse) -> None:
    made = house()
    known(opened(made))
    assert (await made.get(f"{PAGE}/confirm/delete")).status_code == 404
    assert (await made.post(f"{PAGE}/delete", PAGE)).status_code == 404


async def test_a_viewer_sees_and_does_nothing(house: MakeHouse) -> None:
    made = house(TOKENS)
    certified(opened(made))
    await made.log_in(TOKENS.viewer)
    page = (await made.get(PAGE)).text
    assert "confirm/promote" not in page
    confirm = (await made.get(f"{PAGE}/confirm/promote")).text
    assert "A viewer may look and change nothing." in confirm
    assert (await made.post(f"{PAGE}/promote", PAGE)).status_code == 403
    assert now(opened(made)).stage == "shadow"


async def test_a_forecast_is_made_when_asked_for(house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    made = house()
    known(opened(made))
    said = {
        "conclusion": {"word": "not distillable", "why": EVIL}, "curve": "flat", "agreement": figure(0.9),
        "coverage": figure(None), "proof": figure(None), "money": {"break_even": figure(12.0), "weeks": figure(None)},
    }  # fmt: skip
    monkeypatch.setattr("distiller.dashboard.forecasts.Forecasts._said", lambda self, task: said)
    assert (await made.post(f"{PAGE}/forecast", PAGE)).status_code == 303
    page = (await made.get(PAGE)).text
    assert "not distillable" in page
    assert "<script>alert" not in page


def figure(value: float | None) -> dict[str, object]:
    return {"value": value, "basis": "some rows"}


def test_what_is_offered_follows_from_the_stages(tmp_path: Path) -> None:
    log, settings = migrated(tmp_path), Settings(home=str(tmp_path))
    insert(log, ["x"])
    assert offered(view(log, settings, TASK)) == ["freeze"]
    certified(log)
    assert offered(view(log, settings, TASK)) == ["promote", "freeze"]
    advance(log, now(log), RouterSettings())
    assert now(log).stage == CANARY
    assert offered(view(log, settings, TASK)) == ["promote", "rollback", "freeze"]
    move(log, now(log), LIVE, "promoted by the operator")
    live = view(log, settings, TASK)
    assert offered(live) == ["rollback", "freeze"]
    assert consequences(live, settings)["promote"] == ["Nothing: student-1 is live already."]
    known(log, "student-2")
    told = consequences(view(log, settings, TASK, "student-2"), settings)
    assert told["promote"][1] == "student-1 is retired."
    assert told.keys() == DEEDS.keys()
    log.close()


def test_the_charts_rows_are_the_views(tmp_path: Path) -> None:
    log, settings = migrated(tmp_path), Settings(home=str(tmp_path))
    judged(log, known(log), [1.0] * 20 + [0.0])
    judged(log, now(log), [1.0, 1.0], kind="audit")
    found = view(log, settings, TASK)
    rows = chart_rows(found)
    assert found.proof is not None
    last = found.proof.path[-1]
    assert last.ts is not None
    assert (rows["path"][-1][0], rows["path"][-1][1][:4]) == (last.ts.timestamp(), "21, ")
    unknown = replace(found.proof, path=(replace(last, n=20, ts=None), last))
    assert [row[0] for row in chart_rows(replace(found, proof=unknown))["path"]] == [20, 21]
    assert rows["path"][-1][2] == [found.proof.path[-1].lower, found.proof.path[-1].upper, 0.95]
    assert [row[0] for row in rows["risk"]] == sorted(row[0] for row in rows["risk"])
    assert [value for row in rows["risk"] if (value := row[2][2]) is not None] == [pytest.approx(1 / 21)]
    assert rows["after"][-1][2][2] == found.after_bar
    log.close()


def test_a_month_is_unknown_where_price_or_pace_are(tmp_path: Path) -> None:
    log, settings = migrated(tmp_path), Settings(home=str(tmp_path))
    insert(log, ["x"])
    found = money_of(log, settings, TASK)
    assert (found.month, found.teacher.value, found.line is None) == (None, None, False)
    log.close()
