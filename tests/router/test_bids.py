import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.errors import Refused
from proxy.log import Log
from router.bids import bid, bids, cheapest, outbid, words
from router.ledger import charge
from router.lifecycle import advance, promote, rollback, standing
from router.registry import CANARY, LIVE, RETIRED, SHADOW, Candidate, candidates, move
from router.settings import RouterSettings
from tests.logs import migrated
from tests.router.conftest import TASK, insert, judged, known, now, spent

SETTINGS = RouterSettings(canary_shares=(0.3,), cooldown_hours=0.0)
FLOOR = SETTINGS.slice_floor
PROOF = [1.0] * 200


def rival(log: Log, name: str, usd: float | None, proof: list[float] | None = None) -> Candidate:
    """A rival that is paid `usd` an answer, with its verdicts."""
    card = {
        "rival": name, "model": name, "url": "http://127.0.0.1:9/v1", "labels": [], "static": [], "max_tokens": None,
        "data_until": "2020-01-01T00:00:00+00:00",
    }  # fmt: skip
    made = known(log, f"rival-{name}", kind="hosted", threshold=None, bundle="", card=card)
    judged(log, made, PROOF if proof is None else proof)
    for _ in range(2):
        charge(log, "shadow", usd, 1.0, "exchange", task=TASK, model=made.id)
    return made


def student(log: Log, name: str = "student-1", usd: float | None = 0.001) -> Candidate:
    """A student with 200 verdicts, which cost `usd` each of the engine's hours; None: no hour was charged yet."""
    made = known(log, name)
    judged(log, made, PROOF)
    if usd is not None:
        charge(log, "serving", 200 * usd, 1.0, "hour")
    return made


def best(log: Log) -> str | None:
    found = cheapest(bids(log, TASK, FLOOR))
    return found and found.candidate.id


def test_a_rival_costs_what_its_answers_do_and_the_teacher_for_the_rest(log: Log) -> None:
    one = rival(log, "a", 0.002)
    assert (bid(log, one, FLOOR).asked_usd, bid(log, one, FLOOR).usd) == (0.002, 0.002)
    judged(log, one, [0.0] * 200, 200, covered=False)
    assert (bid(log, one, FLOOR).asked_usd, bid(log, one, FLOOR).usd) == (0.002, None)  # The teacher is unpriced.
    spent(log, "teacher", 0.01)
    spent(log, "teacher", None)
    assert bid(log, one, FLOOR).usd == pytest.approx(0.002 + 0.5 * 0.01)


def test_one_unpriced_answer_leaves_a_rival_unpriced(log: Log) -> None:
    one = rival(log, "a", 0.002)
    for usd in (None, math.nan):
        charge(log, "candidate", usd, 1.0, "exchange", task=TASK, model=one.id)
        assert bid(log, one, FLOOR).usd is None
    charge(log, "fallback", None, 1.0, "exchange", task=TASK, model="rival-b")
    assert bid(log, rival(log, "b", 0.5), FLOOR).usd == 0.5


def test_students_share_the_hours_of_the_engine(log: Log) -> None:
    one = known(log)
    assert bid(log, one, FLOOR).asked_usd is None
    charge(log, "serving", 3.0, 1.0, "hour")
    assert bid(log, one, FLOOR).asked_usd is None  # Nothing was asked yet.
    judged(log, one, [1.0] * 4)
    insert(log, ["a", "b"], served_by=one.id)
    rival(log, "a", 0.002)
    insert(log, ["c"], served_by="rival-a")
    assert bid(log, one, FLOOR).asked_usd == pytest.approx(3.0 / 6)
    row = "INSERT INTO carried (task, served_by, exchanges) VALUES ('triage', 'student-1', 4)"
    log.query(row)
    assert bid(log, one, FLOOR).asked_usd == pytest.approx(3.0 / 10)


def test_the_cheapest_that_passes_is_named(log: Log) -> None:
    assert best(log) is None
    rival(log, "unproved", 0.0001, [1.0] * 3)
    rival(log, "unknown", None)
    assert [one.candidate.id for one in bids(log, TASK, FLOOR)] == ["rival-unproved", "rival-unknown"]
    assert best(log) == "rival-unknown"
    dear = rival(log, "dear", 0.5)
    assert best(log) == "rival-dear"
    move(log, dear, RETIRED, "for the test")
    assert [one.candidate.id for one in bids(log, TASK, FLOOR)] == ["rival-unproved", "rival-unknown"]


def test_of_two_that_pass_the_cheaper_goes_on_and_the_dearer_waits(log: Log) -> None:
    dear, cheap = rival(log, "dear", 0.02), rival(log, "cheap", 0.01)
    assert advance(log, dear, SETTINGS) is None
    holds = "waits: rival-cheap passes too, for $10.0000 for 1,000 exchanges; this one takes $20.0000 for 1,000 exch"
    assert holds in str(standing(log, dear, SETTINGS)["next"])
    assert advance(log, cheap, SETTINGS)
    assert (now(log, "rival-cheap").stage, now(log, "rival-dear").stage) == (CANARY, SHADOW)
    assert advance(log, now(log, "rival-dear"), SETTINGS) is None
    rollback(log, TASK, "for the test")
    assert advance(log, now(log, "rival-dear"), SETTINGS)
    assert now(log, "rival-dear").stage == CANARY


@pytest.mark.parametrize(
    ("answering", "new", "stage"),
    [
        (0.02, 0.01, CANARY), (0.01, 0.02, SHADOW), (0.01, 0.01, SHADOW), (None, None, SHADOW), (0.01, None, SHADOW),
        (None, 0.01, CANARY),
    ],
)  # fmt: skip
def test_only_a_cheaper_one_replaces_who_answers(
    log: Log, answering: float | None, new: float | None, stage: str
) -> None:
    move(log, rival(log, "old", answering), LIVE, "for the test", {"for": "the test"})
    advance(log, rival(log, "new", new), SETTINGS)
    assert now(log, "rival-new").stage == stage
    assert now(log, "rival-old").stage == (LIVE if stage == SHADOW else RETIRED)


@pytest.mark.parametrize(("hours", "waits"), [(0.001, True), (0.05, False), (None, False)])
def test_a_rival_gives_way_to_a_cheaper_student(log: Log, hours: float | None, waits: bool) -> None:
    move(log, student(log, usd=hours), LIVE, "for the test", {"for": "the test"})
    assert (outbid(log, rival(log, "a", 0.01), FLOOR) is not None) == waits


def test_a_retrained_student_takes_over_whatever_the_price(log: Log) -> None:
    move(log, student(log, usd=None), LIVE, "for the test", {"for": "the test"})
    assert advance(log, student(log, "student-2", usd=None), SETTINGS)
    assert (now(log).stage, now(log, "student-2").stage) == (RETIRED, CANARY)


def test_an_operator_does_not_replace_a_cheaper_one_by_mistake(log: Log) -> None:
    move(log, rival(log, "cheap", 0.01), LIVE, "for the test", {"for": "the test"})
    rival(log, "dear", 0.02)
    with pytest.raises(Refused, match=r"waits: rival-cheap passes too.* `stillroom rollback triage` first"):
        promote(log, TASK, SETTINGS)
    rollback(log, TASK, "for the test")
    assert promote(log, TASK, SETTINGS).id == "rival-dear"


def test_a_rival_that_is_ruled_out_is_not_to_be_retrained(log: Log) -> None:
    one = rival(log, "a", 0.01, [0.0] * 60)
    assert str(standing(log, one, SETTINGS)["verdict"]).endswith(
        "0.95 is ruled out for this one: declare another model"
    )


def test_unknown_prices_are_said() -> None:
    assert (words(None), words(0.0015)) == ("an unknown price", "$1.5000 for 1,000 exchanges")


PRICES = st.lists(st.none() | st.sampled_from([0.001, 0.002, 0.004]), min_size=2, max_size=4)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prices=PRICES)
def test_whatever_the_order_no_dearer_one_is_left_answering(
    prices: list[float | None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = migrated(tmp_path_factory.mktemp("log"))
    for number, usd in enumerate(prices):
        rival(log, f"{number}", usd)
        for candidate in candidates(log):
            advance(log, candidate, SETTINGS)
    (answering,) = [one for one in candidates(log) if one.stage != SHADOW and one.stage != RETIRED]
    found = bid(log, answering, FLOOR).usd
    known_prices = [usd for usd in prices if usd is not None]
    assert found == (min(known_prices) if known_prices else None)
    log.close()
