import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.course import Course, Point
from distiller.frame import EngineNow, Logged
from distiller.tasks_now import Move, TaskDetail
from distiller.top_text import SORTS, View, chosen, columns, detail, figures, page
from proxy.vitals import Waiting
from tests.distiller.frames import AT, TASKS, frame, money, task_now

WIDE = """\
Stillroom  12:30:00 UTC  controller runs  stillroom-data
traffic    12.5 requests a second; half within 80 ms, 95 % within 400 ms; 2 under way
money      this month: teacher $100.00, avoided $40.00 (estimate), net saving $30.00
engines    vLLM up with 2 students
capture    1,204 requests = 1,200 captured + 2 opted out + 0 dropped + 2 under way; the spool is empty,
           50.0 GB free
needs you  10 charges of the last day have no price: set [money.prices]

3 of 3 tasks of the last day, by traffic
task       /min  stage      day  by candidate                 spent  median      95 %  failed
triage     12.0  live       100           80%                 $2.00  120 ms  1,500 ms       0
orders      1.0  canary 5%  100            0%  $0.5000 + 3 unpriced  120 ms    12.0 s       0
(no task)   1.0  -            7            0%              unpriced  120 ms  1,500 ms       1"""


def test_a_frame_reads_as_text() -> None:
    assert page(frame(logged=Logged(TASKS, money=money())), View(), 105) == WIDE


@given(st.integers(20, 200))
def test_no_line_of_figures_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, figures(frame(), width))) <= max(width, 30)


def test_narrow_terminals_have_fewer_columns() -> None:
    assert [column.title for column in columns(40)] == ["task", "/min", "stage"]
    assert len(columns(200)) > len(columns(80)) > 3


@pytest.mark.parametrize("sort", SORTS)
def test_every_order_has_all_tasks_and_can_be_turned_round(sort: str) -> None:
    there, back = (chosen(TASKS, View(sort, backwards)) for backwards in (False, True))
    assert {task.task for task in there} == {task.task for task in back} == {"triage", "orders", None}
    assert there != back


def test_orders_begin_with_the_largest() -> None:
    first = {sort: chosen(TASKS, View(sort))[0].task for sort in SORTS}
    assert {sort for sort, task in first.items() if task == "orders"} == {"latency", "name"}
    assert {sort for sort, task in first.items() if task == "triage"} == {"traffic", "spend", "share"}
    assert first["failures"] is None


def test_a_part_of_the_name_filters() -> None:
    assert [task.task for task in chosen(TASKS, View(part="TRI"))] == ["triage"]
    assert [task.task for task in chosen(TASKS, View(part="no task"))] == [None]


def test_without_the_admin_port_the_log_tells() -> None:
    told = "\n".join(
        figures(frame(counted=None, flow=None, running=False, spool=Waiting(2, 9, AT.timestamp() - 8)), 200)
    )
    assert "14.0 exchanges a minute over 5 minutes" in told
    assert "2 segments wait for the log, the oldest 8 s" in told
    assert "engines    none runs" in told
    assert "money      -" in told


def test_a_distillation_under_way_is_told() -> None:
    points = (Point(1.0, "reading", 5, 5), Point(12.4, "linear head", 40, 100, loss=0.1234))
    learning = [Course("1", "triage", AT, points, (), running=True), Course("2", "orders", AT, (), (), running=True)]
    told = "\n".join(figures(frame(learning=learning), 200))
    assert "learning   triage: linear head 40 of 100, loss 0.123, 12 s; orders: begun" in told


def test_unknown_money_is_said() -> None:
    told = "\n".join(figures(frame(logged=Logged(money=money(net_usd=None, avoided_usd=None, unpriced=4))), 200))
    assert "teacher $100.00 + 4 unpriced, avoided unpriced (estimate), net saving unpriced" in told


def test_what_clients_chose_cannot_write_to_the_terminal() -> None:
    hostile = task_now("evil\x1b[2J\n[bold]", candidate="c\x07")
    shown = page(
        frame(logged=Logged([hostile]), engines=[EngineNow("vLLM", "down", "\x1b]0;x\x07", 0, {})]), View(), 200
    )
    assert all(line.isprintable() for line in shown.splitlines())
    assert "[bold]" in shown


def test_many_needs_are_counted() -> None:
    told = "\n".join(figures(frame(logged=Logged(sunsets=[f"model {number} ends" for number in range(9)])), 100))
    assert "model 5 ends" in told
    assert "and 3 more" in told
    assert "model 6" not in told


def test_one_task_in_detail() -> None:
    assert "stillroom distill" in detail(TaskDetail("triage", [], []))
    one = {
        "candidate": "student-1", "stage": "canary", "since": "2026-11-05", "reason": "proved\x1b",
        "verdict": "certified", "next": "3 of 50 tries",
    }  # fmt: skip
    told = detail(TaskDetail("triage", [one], [Move(AT, "student-1", "", "shadow", "registered")]))
    assert told.splitlines() == [
        "triage", "", "student-1: canary since 2026-11-05", "  why: proved?", "  evidence: certified",
        "  next: 3 of 50 tries", "", "latest moves", "2026-11-05 12:30  new -> shadow  registered",
    ]  # fmt: skip
