import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from distiller.dashboard.actions import recent
from distiller.dashboard.exchanges_page import PAGE, Replays, span
from distiller.replaying import Replayed
from proxy.errors import BadInput
from proxy.log import Log
from proxy.replay import create_replay
from proxy.settings import TeacherSettings
from proxy.traffic_file import Row
from router.settings import MoneySettings, Price
from tests.distiller.dashboard.houses import TOKENS, House, MakeHouse
from tests.router.conftest import TASK, chat, insert, judged, known, spent
from tests.servers import serving

EVIL = "</pre><script>alert(1)</script>{{ 7 * 7 }}"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def opened(house: House) -> Log:
    assert house.log is not None
    return house.log


async def test_the_last_day_is_shown_newest_first_a_page_at_a_time(house: MakeHouse) -> None:
    made = house()
    now = datetime.now(UTC)
    for number in range(PAGE + 2):
        insert(opened(made), [f"question {number}"], ts=now - timedelta(minutes=number))
    insert(opened(made), ["long ago"], ts=now - timedelta(days=2))
    page = (await made.get("/ui/exchanges")).text
    assert ("question 0" in page, f"question {PAGE}" in page, "long ago" in page) == (True, False, False)
    (link,) = [part.split('"')[0] for part in page.split('href="') if "after=" in part]
    older = await made.text(link.replace("&amp;", "&"))
    assert (f"question {PAGE}" in older, "question 0" in older) == (True, False)
    assert "There are no older ones in this range." in older
    assert "long ago" in await made.text("/ui/exchanges?range=7d&filter=request like '%25long ago%25'")


async def test_a_filter_finds_and_a_wrong_one_says_what_is_wrong(house: MakeHouse) -> None:
    made = house()
    insert(opened(made), ["slow one"], latency_ms=3000.0)
    insert(opened(made), ["fast one"], latency_ms=3.0)
    text = await made.text("/ui/exchanges?filter=latency_ms > 2000 and answer like '%25ill%25'")
    assert ("slow one" in text, "fast one" in text) == (True, False)
    for bad in ("latency > 3", "task = 'x'; drop table exchanges", "1=1", "(select 1)"):
        answer = await made.get("/ui/exchanges", params={"filter": bad})
        assert (answer.status_code, 'role="alert"' in answer.text) == (400, True), bad
    for given in (
        {"range": "1y"},
        {"since": "soon"},
        {"since": "2026-11-02", "until": "2026-11-01"},
        {"after": "x"},
        {"since": "0026-11-28T00:00"},
        {"until": "0001-01-01"},
        {"since": "1969-12-31"},
        {"after": "0001-01-01T00:00+14:00~x"},
    ):
        assert (await made.get("/ui/exchanges", params=given)).status_code == 400, given


async def test_one_exchange_is_shown_as_sent(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    body = '{"model":"gpt-4o",  "messages":[{"role":"user","content":"' + "where?" + '"}]}'
    (one,) = insert(
        log, ["x"], request=body, request_headers='[["user-agent", "tests"]]', response='{"a":1}',
        response_encoding="utf-8", reason="no policy", latency_ms=41.0, first_byte_ms=7.0, prompt_tokens=12,
    )  # fmt: skip
    judged(log, known(log), [0.5], exchange=one, answer="said otherwise")
    spent(log, "teacher", 0.0021, one)
    text = await made.text(f"/ui/exchanges/{one}")
    for part in (
        "where?", "no policy", "41 ms", "first byte after 7 ms", "12 in", "$0.002100", "shadow of student-1: 0.5",
        "said otherwise", "user-agent tests", "None that is on this disk",
    ):  # fmt: skip
        assert part in text, part
    raw = await made.get(f"/ui/exchanges/{one}/raw/request")
    assert (raw.content, raw.headers["content-type"]) == (body.encode(), "application/octet-stream")
    assert raw.headers["content-disposition"].startswith("attachment")
    other = await made.get(f"/ui/exchanges/{one}/raw/else")
    assert (other.status_code, "there is no such page" in other.text) == (404, True)
    gone = await made.get("/ui/exchanges/01NOWHERE")
    assert (gone.status_code, "was erased, or is past retention" in gone.text) == (400, True)


async def test_recorded_traffic_stays_text(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    columns = dict.fromkeys(("reason", "error", "fallback", "model", "tenant", "query", "finish_reason"), EVIL)
    (one,) = insert(
        log, [EVIL], answer=EVIL, response=EVIL, response_encoding="utf-8",
        response_headers=json.dumps([[EVIL, EVIL]]), **columns,
    )  # fmt: skip
    judged(log, known(log), [0.0], exchange=one, answer=EVIL, error=EVIL)
    for address in ("/ui/exchanges", f"/ui/exchanges/{one}", f"/ui/exchanges/{one}/replay"):
        page = (await made.get(address)).text
        assert "<script>alert" not in page, address
        assert "</pre><script" not in page, address
        assert "{{ 7 * 7 }}" in page or address.endswith("replay")
    page = (await made.get("/ui/exchanges", params={"filter": f"'\"><script>{EVIL}"})).text
    assert "<script>" not in page


async def test_a_replay_tells_the_cost_asks_once_and_is_charged(
    house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "sk-ours")
    app = create_replay([Row(chat("where?"), "shipping now", None, "gpt-4o", None)], key="sk-ours")
    with serving(app) as url:
        teacher = TeacherSettings(url=url.removesuffix("/v1"), key_env="OUR_KEY")
        made = house(teacher=teacher, money=MoneySettings(prices={"gpt-4o": Price(10.0, 20.0)}))
        log = opened(made)
        (one,) = insert(log, ["where?"], answer="shipping later", prompt_tokens=1000, completion_tokens=50)
        address = f"/ui/exchanges/{one}/replay"
        assert "about $0.011000: 1,000 prompt tokens" in await made.text(address)
        answer = await made.post(address, address, target="teacher")
        assert answer.status_code == 303
        page = (await made.get(answer.headers["location"])).text
        assert "<del>later</del>" in page
        assert "<ins>now</ins>" in page
        assert (await made.get(answer.headers["location"])).status_code == 200
    assert log.query("SELECT kind, task, exchange, usd > 0 FROM spend") == [("replay", TASK, one, True)]
    assert log.query("SELECT count(*) FROM exchanges") == [(1,)]
    (deed,) = recent(log, 9)
    assert (deed.action, deed.target, deed.detail, deed.outcome) == (f"exchanges/{one}/replay", one, "teacher", "done")
    assert "not kept any more" in await made.text(f"/ui/exchanges/{one}?replayed=other")


async def test_who_cannot_be_asked_is_told_and_nothing_is_paid(house: MakeHouse) -> None:
    made = house()
    (one,) = insert(opened(made), ["x"])
    address = f"/ui/exchanges/{one}/replay"
    assert "not now: teacher.key_env is not set" in await made.text(address)
    for fields, status in (
        ({"target": "teacher"}, 409),
        ({"target": "x"}, 400),
        ({}, 400),
        ({"model": "m" * 201}, 400),
    ):
        assert (await made.post(address, address, **fields)).status_code == status, fields
    assert opened(made).query("SELECT * FROM spend") == []


async def test_an_export_is_a_line_each_and_recorded(house: MakeHouse) -> None:
    made = house()
    log = opened(made)
    known_ids = insert(log, ["a", "b\u2028"])
    insert(log, ["c"], task="other")
    answer = await made.post("/ui/exchanges/export", "/ui/exchanges", filter=f"task = '{TASK}'", range="24h")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith('attachment; filename="exchanges-')
    lines = [json.loads(line) for line in answer.text.split("\n") if line]
    assert {line["id"] for line in lines} == set(known_ids)
    assert lines[0]["request"].startswith('{"model"')
    deed = recent(log, 1)[0]
    assert (deed.action, deed.target, deed.detail) == ("exchanges/export", "exchanges", f"task = '{TASK}'")
    nothing = await made.post("/ui/exchanges/export", "/ui/exchanges", filter="task = 'none'")
    assert (nothing.status_code, nothing.text) == (200, "")
    wrong = await made.post("/ui/exchanges/export", "/ui/exchanges", filter="task =")
    assert (wrong.status_code, "content-disposition" in wrong.headers) == (400, False)


async def test_a_viewer_reads_and_neither_replays_nor_exports(house: MakeHouse) -> None:
    made = house(TOKENS)
    (one,) = insert(opened(made), ["x"])
    await made.log_in(TOKENS.viewer)
    assert "Export as JSON Lines" not in (await made.get("/ui/exchanges")).text
    assert (await made.post("/ui/exchanges/export", "/ui/exchanges")).status_code == 403
    assert "Ask, and pay" not in (await made.get(f"/ui/exchanges/{one}/replay")).text
    assert (await made.post(f"/ui/exchanges/{one}/replay", "/ui/exchanges", target="teacher")).status_code == 403


def done(**given: Any) -> Replayed:
    fixed: dict[str, Any] = {"said": "", "answer": None, "tool_calls": None}
    return Replayed(
        "t", "m", 200, False, first_ms=None, total_ms=1.0, pieces=1, prompt_tokens=None, completion_tokens=None,
        charged=True, usd=None, **fixed | given,
    )  # fmt: skip


def test_replays_are_kept_for_their_exchange_and_not_for_ever() -> None:
    replays = Replays()
    name = replays.keep("a", done())
    assert replays.of("a", name) == done()
    assert (replays.of("b", name), replays.of("a", "x")) == (None, None)
    for number in range(60):
        replays.keep(str(number), done())
    assert replays.of("a", name) is None


def test_long_replays_are_kept_for_a_shorter_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distiller.dashboard.exchanges_page._KEPT_CHARACTERS", 100)
    replays = Replays()
    names = [replays.keep("a", done(said="x" * 30, answer="y" * 30)) for _ in range(2)]
    assert [replays.of("a", name) is None for name in names] == [True, False]
    whole = replays.keep("a", done(answer="y" * 1000))
    assert replays.of("a", whole) is not None  # The last one has to be looked at.


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        (("24h", "", ""), NOW - timedelta(days=1), NOW),
        (
            ("24h", "", "2026-11-10T12:00"),
            datetime(2026, 11, 9, 12, tzinfo=UTC),
            datetime(2026, 11, 10, 12, tzinfo=UTC),
        ),
        (("1h", "2026-11-01", ""), datetime(2026, 11, 1, tzinfo=UTC), NOW),
        (("all", "", ""), NOW - timedelta(days=18_250), NOW),
    ],
)
def test_the_time_range(given: tuple[str, str, str], low: datetime, high: datetime) -> None:
    assert span(*given, NOW) == (low, high)
    with pytest.raises(BadInput):
        span("1h", "9999-99-99", "", NOW)
