import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.deciding import Asked, CandidateFailed, Decision
from proxy.tasks import task_of
from router.decide import Router
from router.policy import Policy, PolicyWatcher, save_policy
from router.prompt import line_hash
from tests.router.conftest import PATH, TASK, Engine, chat, route_to
from tests.servers import serving

CLOSED = "http://127.0.0.1:9"
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("model", "messages", "tools", "functions", "response_format", "text", "input", "instructions", "n", "stream")
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("role", "content"), SHAPES) | {"role": st.just("user")})
)
BODIES = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, SHAPES) | {"messages": MESSAGES | SHAPES})


def router(folder: Path, url: str = CLOSED, task: str = TASK, **route: Any) -> Router:
    save_policy(Policy({task: route_to(url, **route)}), folder / "policy.json")
    return Router(PolicyWatcher(folder / "policy.json"))


def request(text: str = "where is my invoice?", **fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": chat(text)} | fields).encode()


def decided(router: Router, body: bytes, task: str | None = TASK, path: str = PATH) -> Decision:
    return router.decide(Asked(path, body, task))


def test_a_task_with_a_route_goes_to_its_candidate(tmp_path: Path) -> None:
    decision = decided(router(tmp_path), request())
    assert (decision.served_by, decision.reason) == ("student-1", "live")
    assert decision.answer is not None


def test_a_task_is_known_by_its_fingerprint_where_no_header_names_it(tmp_path: Path) -> None:
    task = task_of(json.loads(request()), None)
    assert decided(router(tmp_path, task=task), request("another input"), None).served_by == "student-1"


def test_the_header_wins_over_the_fingerprint(tmp_path: Path) -> None:
    assert decided(router(tmp_path), request(), "another-task") == Decision("teacher", "no candidate for this task")


def test_without_a_route_nothing_is_even_read(tmp_path: Path) -> None:
    empty = Router(PolicyWatcher(tmp_path / "policy.json"))
    assert decided(empty, b"{nope") == Decision("teacher", "no candidate")


def test_other_paths_are_the_teachers(tmp_path: Path) -> None:
    assert decided(router(tmp_path), request(), path="/v1/embeddings") == Decision("teacher", "no candidate")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "asks for tools"),
        ({"n": 2}, "asks for several choices"),
        ({"logprobs": True}, "asks for logprobs"),
    ],
)
def test_what_a_student_cannot_do_is_the_teachers(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    assert decided(router(tmp_path), request(**fields)) == Decision("teacher", reason)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff", b"[" * 100_000])
def test_malformed_bodies_are_the_teachers_to_refuse(tmp_path: Path, body: bytes) -> None:
    decision = decided(router(tmp_path), body, None)
    assert decision == Decision("teacher", "unreadable request")


def test_a_bad_task_header_is_the_teachers(tmp_path: Path) -> None:
    assert decided(router(tmp_path), request(), "../etc") == Decision("teacher", "unreadable request")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Router:
    return router(tmp_path_factory.mktemp("strict"), share=0.5)


@given(body=BODIES | SHAPES, header=st.sampled_from([None, TASK, ".", "untitled"]))
async def test_no_json_body_makes_a_decision_fail(strict: Router, body: Any, header: str | None) -> None:
    decision = decided(strict, json.dumps(body).encode(), header)
    assert decision.served_by in ("teacher", "student-1")
    assert (decision.answer is None) == (decision.served_by == "teacher")


@given(raw=st.binary(max_size=40))
def test_no_bytes_make_a_decision_fail(strict: Router, raw: bytes) -> None:
    assert decided(strict, raw).answer is None


def test_a_canary_gets_about_its_share_of_conversations(tmp_path: Path) -> None:
    canary = router(tmp_path, stage="canary", share=0.3)
    decisions = [decided(canary, request(f"question {number}")) for number in range(1000)]
    assert 250 < sum(decision.served_by == "student-1" for decision in decisions) < 350
    assert {decision.reason for decision in decisions} == {"canary", "canary: outside the share"}


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_conversation_stays_with_its_model(strict: Router, opening: str, later: str) -> None:
    first = decided(strict, request(opening))
    turns = [*chat(opening), {"role": "assistant", "content": "x"}, {"role": "user", "content": later}]
    assert decided(strict, request(messages=turns)).served_by == first.served_by


def test_a_larger_share_keeps_the_conversations_of_a_smaller(tmp_path: Path) -> None:
    served = []
    for share in (0.2, 0.6):
        (tmp_path / str(share)).mkdir()
        one = router(tmp_path / str(share), share=share)
        served.append({n for n in range(200) if decided(one, request(f"question {n}")).answer})
    assert served[0] < served[1]


def test_a_share_stays_with_the_teacher_for_good_and_is_drawn_apart_from_the_canary(tmp_path: Path) -> None:
    asked, held, first = range(2000), [], []
    for share in (0.1, 1.0):
        (tmp_path / str(share)).mkdir()
        stage = "live" if share == 1 else "canary"
        one = router(tmp_path / str(share), stage=stage, share=share, held_back=0.2)
        decisions = {n: decided(one, request(f"question {n}")) for n in asked}
        held.append({n for n in asked if decisions[n] == Decision("teacher", f"{stage}: held back")})
        first.append({n for n in asked if decisions[n].answer})
    assert held[0] == held[1]
    assert 300 < len(held[0]) < 500
    assert first[0] < first[1] == set(asked) - held[0]
    (tmp_path / "all").mkdir()
    unheld = router(tmp_path / "all", stage="canary", share=0.1)
    canary = {n for n in asked if decided(unheld, request(f"question {n}")).answer}
    assert 0.1 < len(canary & held[0]) / len(canary) < 0.3


@given(st.text(max_size=20), st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(0, 1))
def test_a_conversation_once_with_the_candidate_stays_there_as_the_share_grows(
    opening: str, shares: list[float], back: float
) -> None:
    answered = []
    for share in sorted(shares):
        policy = Policy({TASK: route_to(CLOSED, stage="canary", share=share, held_back=back)})
        decision = decided(Router(Fixed(policy)), request(opening))  # type: ignore[arg-type]
        answered.append(decision.answer is not None)
    assert answered == sorted(answered)


@dataclass
class Fixed:
    """A watcher whose file never changes."""

    policy: Policy


@pytest.mark.parametrize(
    ("instructions", "served_by"),
    [
        ("Say which queue.", "student-1"),
        ("Say which queue.\nToday is Monday.", "student-1"),
        ("  Say which queue.  \n\n", "student-1"),
        ("Say which queue, in French.", "teacher"),
        ("", "teacher"),
        ("Say which queue.\nToday is Monday.\nAnswer in French.", "teacher"),
    ],
)
def test_a_changed_template_is_never_the_students(tmp_path: Path, instructions: str, served_by: str) -> None:
    one = router(tmp_path, static=(line_hash("Say which queue."),), extra_lines=1)
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": "mine?"}]
    decision = decided(one, request(messages=messages))
    assert decision.served_by == served_by
    assert decision.reason == ("live" if served_by == "student-1" else "live: template changed")


async def test_the_answer_comes_from_the_candidate(tmp_path: Path, engine: Engine) -> None:
    with serving(engine.app) as url:
        one = router(tmp_path, url)
        async with one.running():
            decision = decided(one, request())
            assert decision.answer is not None
            sent = await decision.answer()
    assert json.loads(sent.body)["choices"][0]["message"]["content"] == "billing"


async def test_a_candidate_gets_no_more_at_once_than_it_may(tmp_path: Path, engine: Engine) -> None:
    engine.delay = 0.2
    with serving(engine.app) as url:
        one = router(tmp_path, url, at_once=2)
        async with one.running():
            waiting = []
            for _ in range(2):
                waiting.append(asyncio.create_task(decided(one, request()).answer()))  # type: ignore[misc,arg-type]
                await asyncio.sleep(0)
            assert decided(one, request()) == Decision("teacher", "live: candidate busy")
            await asyncio.gather(*waiting)
            assert decided(one, request()).served_by == "student-1"


async def test_a_candidate_that_fails_is_free_again(tmp_path: Path) -> None:
    one = router(tmp_path, at_once=1)
    async with one.running():
        for _ in range(3):
            decision = decided(one, request())
            assert decision.answer is not None
            with pytest.raises(CandidateFailed, match="unreachable"):
                await decision.answer()


async def test_a_router_that_is_not_running_fails_over_to_the_teacher(tmp_path: Path) -> None:
    one = router(tmp_path)
    decision = decided(one, request())
    assert decision.answer is not None
    with pytest.raises(CandidateFailed, match="stopping"):
        await decision.answer()


@pytest.mark.parametrize("messages", [5, None, [5], [{"role": "system", "content": [{"type": "image_url"}]}]])
def test_messages_of_another_shape_are_the_teachers(tmp_path: Path, messages: Any) -> None:
    assert decided(router(tmp_path), request(messages=messages)) == Decision("teacher", "unreadable request")


@pytest.mark.parametrize("fields", [{"messages": [{"role": 7}]}, {"stream": True, "stream_options": "x"}])
async def test_odd_shapes_that_reach_the_candidate_fail_over(
    tmp_path: Path, engine: Engine, fields: dict[str, Any]
) -> None:
    with serving(engine.app) as url:
        one = router(tmp_path, url)
        async with one.running():
            decision = decided(one, request(**fields))
            assert decision.answer is not None
            with pytest.raises(CandidateFailed):
                await decision.answer()
