from math import log as ln
from math import nan, sqrt
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Log
from proxy.replay import create_replay
from proxy.teachers import Teachers
from router.ceiling import Ceiling
from router.certificate import certificate
from router.evaluators import JUDGE
from router.evidence import evidence, in_words
from router.golden import golden
from router.judging import missing
from router.parity import PATH_STEP, log_wealth, lower_path, parity, upper_path
from router.registry import HOSTED, LIVE, Candidate, move
from router.sampling import ALL, chosen, share_at, share_of
from router.shadow import shadow
from router.signing import signed
from router.similarity import alike
from router.slices import lagging
from router.verdicts import COUNTED
from router.verification import verify
from tests.router.conftest import Engine, chat, insert, judged, known, now, route_to
from tests.router.test_shadow import RECORDED, RIGHT, judge_of, teacher_at
from tests.servers import serving

CARD = {
    "data_until": "2020-01-01T00:00:00+00:00", "labels": [], "static": [], "max_tokens": 16, "judged_share": 0.5,
}  # fmt: skip
SURE = 0.9999
MARGIN = ALPHA = 0.05
GOAL = ln(1 / ALPHA)
margins = st.floats(0.01, 0.5)
leasts = st.floats(0.05, 1)
confidences = st.floats(0, 1)
shares = st.floats(0.01, 0.4)


@given(confidences, confidences, margins, leasts)
def test_the_share_grows_as_confidence_falls(one: float, other: float, margin: float, least: float) -> None:
    low, high = sorted((one, other))
    assert least <= share_at(high, margin, least) <= share_at(low, margin, least) <= 1
    assert share_at(1 - 2 * margin, margin, least) == share_at(0, margin, least) == 1
    assert share_at(1, margin, least) == least


def test_only_what_a_judge_is_paid_for_and_a_student_is_sure_of_is_drawn(log: Log) -> None:
    sampled = known(log, evaluator=JUDGE, card=CARD)
    assert (share_of(sampled, SURE), share_of(sampled, None)) == (0.5, ALL)
    assert share_of(known(log, "student-2", card=CARD), SURE) == ALL
    assert share_of(known(log, "student-3", evaluator=JUDGE), SURE) == ALL  # Of before there was a share.
    assert share_of(known(log, "rival-1", evaluator=JUDGE, kind=HOSTED, card=CARD), SURE) == ALL


def test_the_draw_is_by_the_id_as_often_as_the_share_says_and_grows_with_it() -> None:
    ids = [ulid() for _ in range(4_000)]
    some, more = ({one for one in ids if chosen(one, share)} for share in (0.3, 0.7))
    assert some < more
    assert (abs(len(some) - 1_200) < 150, abs(len(more) - 2_800) < 150) == (True, True)
    assert all(chosen(one, ALL) for one in ids)
    assert some == {one for one in ids if chosen(one, 0.3)}


async def shadowed(
    log: Log, engine: Engine, candidate: Candidate, ceiling: Ceiling | None = None, way: str = "perfect"
) -> int:
    """All that waits; a perfect judge finds every answer that is not the teacher's worse."""
    with serving(engine.app) as url:
        async with aiohttp.ClientSession() as session:
            route = route_to(url, evaluator=JUDGE)
            return await shadow(log, session, candidate, route, 100, 4, ceiling, judge_of(way))


def drawn(exchanges: list[str]) -> set[str]:
    found = {one for one in exchanges if chosen(one, 0.5)}
    assert 0 < len(found) < len(exchanges)
    return found


async def test_what_is_not_drawn_is_not_paid_for_and_the_weights_enter_the_estimate(log: Log, engine: Engine) -> None:
    exchanges = insert(log, ["why?"] * 40, answer=RIGHT)
    candidate = known(log, evaluator=JUDGE, card=CARD)
    engine.say = lambda text: ("No idea.", SURE)
    assert await shadowed(log, engine, candidate) == 40
    some = drawn(exchanges)
    rows = log.query(f"SELECT exchange, verdict, share, covered, {COUNTED} FROM verdicts")
    assert {row[0]: row[1:] for row in rows} == {
        one: (0.0, 0.5, True, -1.0) if one in some else (None, 0.5, True, 1.0) for one in exchanges
    }
    assert {row[0] for row in log.query("SELECT exchange FROM spend WHERE kind = 'judge'")} == some
    found = evidence(log, candidate)
    assert (found.judged, found.parity.n, found.coverage) == (len(some), 40, 1.0)
    assert found.parity.mean == pytest.approx(max(0.0, 1 - 2 * len(some) / 40))
    assert f"on 40 covered exchanges, {len(some)} of them judged" in in_words(candidate, found)
    assert missing(log, candidate.id) == (0, len(some))
    assert (alike(log, candidate) or pytest.fail("a judge decides")).judged == len(some)
    assert await shadowed(log, engine, candidate) == 0  # Nobody is drawn a second time.


async def test_while_the_judge_is_not_there_nobody_is_passed_over(log: Log, engine: Engine) -> None:
    exchanges = insert(log, ["why?"] * 20, answer=RIGHT)
    (same,) = insert(log, ["why? again"], answer=RIGHT)
    candidate = known(log, evaluator=JUDGE, card=CARD)
    engine.say = lambda text: (RIGHT if "again" in text else "No idea.", 0.5 if "again" in text else SURE)
    assert await shadowed(log, engine, candidate, way="gone") == 1
    assert log.query("SELECT exchange, verdict FROM verdicts") == [(same, 1.0)]  # About which nobody is asked.
    assert await shadowed(log, engine, candidate) == 20
    assert log.query("SELECT count(*) FROM verdicts WHERE verdict = 0") == [(len(drawn(exchanges)),)]


@pytest.mark.usefixtures("ingest")
async def test_who_is_unsure_and_what_has_a_yardstick_is_judged_for_certain(log: Log, engine: Engine) -> None:
    insert(log, ["mine?"] * 20, answer="billing")
    sure = known(log, evaluator=JUDGE, card=CARD)
    with serving(create_replay(RECORDED)) as replay:
        async with teacher_at(replay) as teacher:
            engine.say = lambda text: ("No idea.", SURE)
            assert await shadowed(log, engine, sure, Ceiling(Teachers(teacher), 1.0)) == 20
    engine.say = lambda text: ("No idea.", 0.9)
    await shadowed(log, engine, known(log, "student-2", evaluator=JUDGE, card=CARD))
    assert log.query("SELECT count(verdict), count(share) FROM verdicts GROUP BY candidate") == [(20, 0), (20, 0)]
    assert evidence(log, sure).parity.measured == 20


async def test_after_promotion_all_are_judged(log: Log, engine: Engine) -> None:
    candidate = known(log, evaluator=JUDGE, card=CARD)
    move(log, candidate, LIVE, "by hand")
    insert(log, ["why?"] * 20, answer=RIGHT, reason="live: held back")
    engine.say = lambda text: ("No idea.", SURE)
    assert await shadowed(log, engine, now(log)) == 20
    assert log.query("SELECT kind, count(verdict), count(share) FROM verdicts GROUP BY kind") == [("holdback", 20, 0)]


async def test_a_golden_set_has_what_was_judged_only(log: Log, engine: Engine) -> None:
    exchanges = insert(log, ["why?"] * 20, answer=RIGHT)
    candidate = known(log, evaluator=JUDGE, card=CARD)
    engine.say = lambda text: ("No idea.", SURE)
    await shadowed(log, engine, candidate)
    insert(log, ["why?"] * 40, answer="No idea.", served_by=candidate.id)
    with serving(engine.app) as url:
        async with aiohttp.ClientSession() as session:
            route = route_to(url, evaluator=JUDGE)
            await golden(log, session, candidate, route, ["gpt-4o"], 1.0, 40, 4, judge_of("perfect"))
    again = log.query("SELECT DISTINCT exchange, verdict FROM verdicts WHERE kind = 'golden'")
    assert {exchange for exchange, _ in again} == drawn(exchanges)
    assert {verdict for _, verdict in again} == {0.0}


def test_a_certificate_of_drawn_verdicts_says_so_and_is_computed_again(log: Log, tmp_path: Path) -> None:
    candidate = known(log, evaluator=JUDGE, card=CARD)
    exchanges = insert(log, [chat(f"why {number}?")[1]["content"] for number in range(400)], answer=RIGHT)
    for exchange in exchanges:
        judged(log, candidate, [1.0 if chosen(exchange, 0.5) else None], exchange=exchange, share=0.5)
    judged(log, candidate, [0.0], exchange=exchanges[0], share=0.5)
    document = signed(certificate(log, candidate, 0.1), tmp_path / "key")
    assert (document["judged"], document["parity"]["n"]) == (len(drawn(exchanges)) + 1, 401)
    assert document["parity"]["proven"]
    assert document["declared"]["judged_share"] == 0.5
    assert [one["verdict"] for one in document["disagreements"]] == [0.0]
    assert document["path"]["points"][-1][1] == pytest.approx(document["parity"]["lower"], abs=1e-3)
    move(log, candidate, "canary", "proved", document)
    lines = {line.what: line.ok for line in verify(log, document, tmp_path / "key", 0.1).lines}
    assert {name for name, ok in lines.items() if ok is False} == set()
    assert {"judged", "candidate", "parity", "path", "slices"} <= lines.keys()
    assert lagging(log, candidate, 0.1) is None


def drawn_with(share: float, mean: float, paths: int, n: int) -> NDArray[np.float64]:
    """Right or wrong, each judged with this share, as `router.sampling` weighs them."""
    random = np.random.default_rng(24)
    wrong = random.random((paths, n)) >= mean
    return 1 - (wrong & (random.random((paths, n)) < share)) / share


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_drawn_verdicts_prove_falsely_at_most_alpha_and_still_prove(share: float) -> None:
    limit = ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / 2000)

    def ever(mean: float) -> float:
        return float((log_wealth(drawn_with(share, mean, 2000, 1000), 1 - MARGIN, share).max(axis=1) >= GOAL).mean())

    assert ever(0.95) <= limit
    assert ever(0.995) > 0.9
    low = log_wealth(1 - drawn_with(share, 0.95, 2000, 1000), MARGIN)
    assert (low.max(axis=1) >= GOAL).mean() <= limit  # false refutation: these scores are never negative


weighted_rows = st.tuples(st.floats(0.1, 1), st.lists(st.floats(0, 1), max_size=60), st.integers(1, 20)).map(
    lambda drawn: (drawn[0], [1 - (1 - verdict) / drawn[0] for verdict in drawn[1]] * drawn[2])
)


@settings(deadline=None)
@given(weighted_rows, shares, shares)
def test_bounds_of_drawn_verdicts_enclose_and_their_path_ends_there(
    drawn: tuple[float, list[float]], margin: float, alpha: float
) -> None:
    least, row = drawn
    found = parity(row, margin, alpha, least=least)
    assert 0 <= found.lower <= found.upper <= 1
    assert found.mean is None or 0 <= found.mean <= 1
    assert (found.proven, found.refuted) == (found.lower > 1 - margin, found.upper < 1 - margin)
    lower, upper = lower_path(row, alpha, None, least), upper_path(row, alpha, None, least)
    if row and lower[-1] <= upper[-1]:
        assert found.lower == pytest.approx(lower[-1], abs=PATH_STEP + 1e-6)
        assert found.upper == pytest.approx(upper[-1], abs=PATH_STEP + 1e-6)


@settings(deadline=None)
@given(weighted_rows, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_against_a_higher_mean_drawn_verdicts_never_win_more(
    drawn: tuple[float, list[float]], one: float, other: float
) -> None:
    least, row = drawn
    low, high = sorted((one, other))
    wealth = [log_wealth(np.array(row), mean, least) for mean in (low, high)]
    assert np.isfinite(wealth).all()
    assert (wealth[0] >= wealth[1] - 1e-9).all()


def test_a_weight_the_least_share_does_not_allow_is_refused() -> None:
    assert parity([-1.0], MARGIN, ALPHA, least=0.5).n == 1
    for row, yardsticks, least in (([-1.1], None, 0.5), ([-1.0], [1.0], 0.5), ([-0.1], None, 1.0)):
        with pytest.raises(BadInput, match="verdict"):
            parity(row, MARGIN, ALPHA, yardsticks, least)
    for least in (0.0, 1.1, nan):
        with pytest.raises(BadInput, match="least share"):
            parity([1.0], MARGIN, ALPHA, least=least)


def test_the_plan_for_drawn_verdicts_mostly_suffices() -> None:
    planned = parity(drawn_with(0.7, 0.99, 1, 60)[0], MARGIN, ALPHA, least=0.7).more
    paths = drawn_with(0.7, 0.99, 500, 600)
    hit = log_wealth(paths, 1 - MARGIN, 0.7) >= GOAL
    taken = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1.0, np.inf)
    assert planned is not None
    assert 0.3 < (taken <= 60 + planned).mean() <= 1
