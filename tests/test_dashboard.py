"""The dashboard in a real browser, before a real running system with recorded traffic."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from distiller.sample_traffic import sample_traffic
from proxy.log import Log, open_log
from proxy.settings import LogSettings
from proxy.traffic_file import Row, read_traffic
from router.evidence import evidence
from router.freezes import frozen
from router.registry import candidates
from tests.browser import SIZES, Heard, browsing, chromium, links, needs_axe, needs_chromium, shoot, violations
from tests.deployment import Deployment, deployed
from tests.servers import eventually, free_port

pytestmark = [needs_chromium, needs_axe, pytest.mark.timeout(600)]

DATA = os.environ.get("STILLROOM_DATA", "")
TOKENS = {"operator": "operator-token-of-a-test", "viewer": "viewer-token-of-a-test"}
TASK = "triage"
EARLIER, LATER = 300, 260
NAMED = ("compare",)  # pages beside those of one thing
ADMINS = 'token_env = "OPERATOR"\nviewer_token_env = "VIEWER"'
SETTINGS = """
[proxy]
workers = 2
[spool]
rotate_seconds = 0.2
[router]
margin = 0.3            # so that a few dozen exchanges prove it
canary_shares = [0.5]
max_failures = 0.9
max_slowdown = 0.0
[router.tasks.{task}]
promote = "manual"      # the proof waits for a click
[distiller]
students = ["head"]
min_exchanges = 100
[serving]
port = {port}
small_port = {small_port}
[money]
engine_hour = 0.5
training_hour = 0.5
"""


@dataclass(frozen=True)
class Traffic:
    """Earlier and later requests of TASK, and what else is asked."""

    earlier: Sequence[Row]
    later: Sequence[Row]
    others: Sequence[tuple[str, Row]]

    @property
    def rows(self) -> list[Row]:
        return [*self.earlier, *self.later, *(row for _, row in self.others)]


def traffic() -> Traffic:
    """Recorded where STILLROOM_DATA names a folder of recorded sets; else generated."""
    if DATA:
        sets = {name: Path(DATA) / name for name in ("github_issue_triage", "intent_banking77")}
        triage = read_traffic(sets["github_issue_triage"] / "train.jsonl")
        later = read_traffic(sets["github_issue_triage"] / "test.jsonl")
        others = read_traffic(sets["intent_banking77"] / "train.jsonl")[:60]
        return Traffic(triage[:EARLIER], later[:LATER], [("intents", row) for row in others])
    rows = sample_traffic(2 * (EARLIER + LATER), 7)
    tickets, orders = rows[::2], rows[1::2][:60]
    return Traffic(tickets[:EARLIER], tickets[EARLIER:], [("orders", row) for row in orders])


def ask(still: Deployment, task: str, row: Row, stream: bool = False) -> str:
    """One request on the public port; who answered it."""
    asked = {"model": "gpt-4o", "messages": list(row.messages), "stream": stream, "user": "customer-7"}
    headers = {"authorization": "Bearer sk-client", "x-stillroom-task": task}
    answer = httpx.post(f"{still.url}/chat/completions", json=asked, headers=headers, timeout=60)
    assert answer.status_code == 200
    return str(answer.headers["x-stillroom-served-by"])


def send(still: Deployment, asked: Sequence[tuple[str, Row]]) -> None:
    """Many requests, a few at once."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: ask(still, one[1][0], one[1][1], one[0] % 3 == 0), enumerate(asked)))


@dataclass(frozen=True)
class System:
    """A running Stillroom whose student is proved and waits to be promoted."""

    still: Deployment
    log: Log
    student: str
    later: Sequence[Row]

    @property
    def url(self) -> str:
        return self.still.admin

    def stage(self) -> str:
        (candidate,) = candidates(self.log)
        return candidate.stage

    def frozen(self) -> dict[str, str]:
        return {task: one.reason for task, one in frozen(self.log).items()}

    def served_by(self) -> set[str]:
        """Who answers the same dozens of requests now."""
        return {ask(self.still, TASK, row) for row in self.later[-24:]}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder, sent = tmp_path_factory.mktemp("dashboard"), traffic()
    settings = SETTINGS.format(task=TASK, port=free_port(), small_port=free_port())
    environment = {"OPERATOR": TOKENS["operator"], "VIEWER": TOKENS["viewer"], "OMP_WAIT_POLICY": "PASSIVE"}
    with deployed(folder, sent.rows, settings, environment, ADMINS) as still:
        log = open_log(LogSettings(), folder / "home", read_only=True)
        first = [(TASK, row) for row in sent.earlier] + list(sent.others)
        send(still, first)
        waited(lambda: log.query("SELECT count(*) FROM exchanges") == [(len(first),)])
        student = still.json("distill", TASK)["bundle"]["id"]
        waited(lambda: student in ready(folder / "home" / "state" / "small.json"))
        send(still, [(TASK, row) for row in sent.later])
        (candidate,) = candidates(log)
        waited(lambda: evidence(log, candidate).parity.proven)
        yield System(still, log, student, sent.later)
        log.close()


def waited(check: Callable[[], bool]) -> None:
    """Looks leave the two cores to those who work."""
    eventually(lambda: time.sleep(0.25) or check(), 180)


def ready(state: Path) -> list[str]:
    """Students that an engine serves."""
    return list(json.loads(state.read_text())["ready"]) if state.exists() else []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def visiting(
    browser: Browser, system: System, role: str = "operator", theme: str = "light", size: str = "laptop"
) -> Iterator[tuple[Page, Heard]]:
    """Somebody who has logged in, and stands on the first page."""
    with browsing(browser, system.url, theme, size) as (page, heard):
        page.goto(f"{system.url}/ui/")
        log_in(page, TOKENS[role])
        yield page, heard


def log_in(page: Page, token: str) -> None:
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Log in").click()


@pytest.fixture(scope="module")
def live(browser: Browser, system: System) -> System:
    """The student is promoted to live, by clicks."""
    with visiting(browser, system) as (page, heard):
        for stage in ("canary", "live"):
            page.goto(f"{system.url}/ui/tasks/{TASK}")
            page.get_by_role("link", name="Promote").click()
            expect(page.get_by_role("heading", level=1)).to_contain_text("Promote")
            shoot(page, f"confirm-{stage}")
            page.get_by_role("button", name="Promote").click()
            expect(page.get_by_role("status")).to_contain_text(f"{system.student} is now: {stage}")
            assert system.stage() == stage
        heard.nothing()
    return system


@pytest.fixture(scope="module")
def addresses(browser: Browser, live: System) -> list[str]:
    """One page of each kind that links lead to, from the first page on."""
    found: dict[tuple[str, str, str], str] = {}
    with visiting(browser, live) as (page, _):
        waiting = ["/ui/"]
        while waiting:
            address = waiting.pop(0)
            if found.setdefault(kind(address), address) == address:
                page.goto(f"{live.url}{address}")
                waiting += [link for link in dict.fromkeys(links(page)) if kind(link) not in found]
    compared = f"/ui/students/compare?one={live.student}&other={live.student}"  # There is one student.
    for address in (f"/ui/students/{live.student}", compared):
        found.setdefault(kind(address), address)
    return list(found.values())


def kind(address: str) -> tuple[str, str, str]:
    """Pages of the same section at the same depth look alike, but for those that have a name of their own."""
    path, _, query = address.partition("?")
    parts = [*path.strip("/").split("/"), "", "", ""]
    one = parts[2] if parts[2] in NAMED else "one" if parts[2] else ""
    return parts[1] or "overview", one, "filled" if one in NAMED and "other=" in query else parts[3]


def name_of(address: str) -> str:
    return "-".join(word for word in kind(address) if word)


def test_only_who_has_a_token_gets_in(browser: Browser, system: System) -> None:
    with browsing(browser, system.url) as (page, heard):
        page.goto(f"{system.url}/ui/tasks")
        expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
        assert violations(page) == []
        heard.nothing()
        log_in(page, "a guess")
        expect(page.get_by_role("alert")).to_be_visible()
        heard.wrong.clear()  # The browser tells of the 401, too.
        log_in(page, TOKENS["operator"])
        page.wait_for_url(f"{system.url}/ui/tasks")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
        heard.nothing()


def test_the_promoted_student_answers_on_the_public_port(live: System) -> None:
    assert eventually(lambda: live.student in live.served_by(), 30)


def test_links_lead_to_every_page(addresses: list[str]) -> None:
    sections = {kind(address)[0] for address in addresses}
    assert sections >= {"overview", "tasks", "students", "exchanges", "ledger", "schedule", "settings"}
    assert {name_of(address) for address in addresses} >= {
        "tasks-one", "students-one", "students-compare", "students-compare-filled", "exchanges-one",
    }  # fmt: skip


@pytest.mark.parametrize(("theme", "size"), [*itertools.product(("light", "dark"), SIZES)])
def test_every_page_is_in_order(browser: Browser, live: System, addresses: list[str], theme: str, size: str) -> None:
    wrong = []
    with visiting(browser, live, theme=theme, size=size) as (page, heard):
        for address in addresses:
            page.goto(f"{live.url}{address}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            wrong += [f"{address}: {one}" for one in violations(page)]
            if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                wrong.append(f"{address}: the page is wider than the screen")
            shoot(page, f"{name_of(address)}-{theme}-{size}")
        heard.nothing()
        page.goto(f"{live.url}/ui/nowhere")
        wrong += [f"nowhere: {one}" for one in violations(page)]
        shoot(page, f"nowhere-{theme}-{size}")
        heard.wrong.clear()  # The browser tells of the 404.
    assert wrong == []


def test_pages_read_without_scripts(browser: Browser, live: System, addresses: list[str]) -> None:
    with browsing(browser, live.url, scripts=False) as (page, heard):
        page.goto(f"{live.url}/ui/")
        log_in(page, TOKENS["operator"])
        for address in addresses:
            page.goto(f"{live.url}{address}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
        heard.nothing()


def test_a_page_follows_the_log_by_itself(browser: Browser, live: System) -> None:
    with visiting(browser, live) as (page, heard):
        page.goto(f"{live.url}/ui/tasks")
        row = page.get_by_role("row").filter(has_text=TASK)
        before = row.inner_text()
        for asked in live.later[:3]:
            ask(live.still, TASK, asked)
        expect(row).not_to_have_text(before, timeout=30_000)
        heard.nothing()


def test_the_theme_is_switched_and_remembered(browser: Browser, live: System) -> None:
    with visiting(browser, live) as (page, heard):
        background = "getComputedStyle(document.documentElement).backgroundColor"
        light = page.evaluate(background)
        page.get_by_role("button", name="theme").click()
        assert page.evaluate(background) != light
        dark = page.evaluate(background)
        page.reload()
        assert page.evaluate(background) == dark
        heard.nothing()


def test_everything_is_reached_by_keys(browser: Browser, live: System) -> None:
    with visiting(browser, live) as (page, heard):
        page.keyboard.press("Tab")
        assert focused(page)[0] == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.goto(f"{live.url}/ui/")
        seen: list[str] = []
        while True:
            page.keyboard.press("Tab")
            text, visible = focused(page)
            if not text or text in seen[:1]:  # It went all around.
                break
            assert len(seen) < 300, f"the focus stays among {seen[-9:]}"
            assert visible, f"{text!r} does not show that it has the focus"
            seen.append(text)
        assert set(page.get_by_role("navigation").get_by_role("link").all_inner_texts()) <= set(seen)
        page.goto(f"{live.url}/ui/")
        while focused(page)[0] != "Tasks":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/ui/tasks")
        while focused(page)[0] != TASK:
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(TASK)
        heard.nothing()


def focused(page: Page) -> tuple[str, bool]:
    """The text of what has the focus, "" for nothing, and whether that is seen."""
    found: tuple[str, bool] = page.evaluate(
        """() => {
          const one = document.activeElement;
          if (!one || one === document.body) return ["", false];
          const style = getComputedStyle(one);
          const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
          const text = one.textContent.trim() || one.getAttribute("aria-label") || one.tagName;
          return [text, outlined || style.boxShadow !== "none"];
        }"""
    )
    return found


def test_a_task_is_frozen_and_thawed(browser: Browser, live: System) -> None:
    with visiting(browser, live) as (page, heard):
        page.goto(f"{live.url}/ui/tasks/{TASK}")
        page.get_by_role("link", name="Freeze").click()
        page.get_by_label("Reason").fill("audit <week>")
        page.get_by_role("button", name="Freeze").click()
        expect(page.get_by_text("audit <week>").first).to_be_visible()
        assert live.frozen() == {TASK: "audit <week>"}
        page.get_by_role("link", name="Thaw").click()
        page.get_by_label("Reason").fill("over")
        page.get_by_role("button", name="Thaw").click()
        expect(page.get_by_role("status")).to_contain_text("moves by itself again")
        assert live.frozen() == {}
        heard.nothing()


def test_a_viewer_looks_and_cannot_act(browser: Browser, live: System) -> None:
    with visiting(browser, live, role="viewer") as (page, heard):
        page.goto(f"{live.url}/ui/tasks/{TASK}")
        expect(page.get_by_role("heading", level=1)).to_have_text(TASK)
        for deed in ("Promote", "Roll back", "Freeze"):
            expect(page.get_by_role("link", name=deed)).to_have_count(0)
        heard.nothing()
        token = page.locator("input[name=token]").first.input_value()
        form = {"token": token, "reason": "because"}
        answer = page.request.post(f"{live.url}/ui/tasks/{TASK}/rollback", form=form, headers={"origin": live.url})
        assert answer.status == 403
        assert live.stage() == "live"


def test_a_rollback_gives_the_task_back_and_stands_in_the_record(browser: Browser, live: System) -> None:
    with visiting(browser, live) as (page, heard):
        page.goto(f"{live.url}/ui/tasks/{TASK}")
        page.get_by_role("link", name="Roll back").click()
        page.get_by_label("Reason").fill("wrong on refunds")
        page.get_by_role("button", name="Roll back").click()
        expect(page.get_by_role("status")).to_contain_text(f"the teacher answers {TASK}")
        assert eventually(lambda: live.served_by() == {"teacher"}, 30)
        assert live.stage() == "retired"
        page.goto(f"{live.url}/ui/settings")
        expect(page.get_by_text("wrong on refunds").first).to_be_visible()
        heard.nothing()
