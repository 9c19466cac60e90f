from collections.abc import AsyncIterator

import pytest

from proxy.errors import BadInput, Unavailable
from proxy.translate import close_litellm
from router.judge import Judge
from router.judge_client import connect_judge
from router.settings import JudgeSettings
from tests.judges import Judges
from tests.servers import free_port, serving


@pytest.fixture(autouse=True)
async def ended() -> AsyncIterator[None]:
    """A test's event loop ends before the process."""
    yield
    await close_litellm()


REQUEST = [{"role": "user", "content": "How many?"}]
RIGHT = "Seven."


def dollars(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float | None:
    return 0.5 if (model, prompt, cached, completion) == ("openai/perfect", 100, None, 5) else None


def connected(way: str, url: str, key_env: str = "") -> Judge:
    judge = connect_judge(JudgeSettings(f"openai/{way}", url, key_env), dollars)
    assert judge is not None
    return judge


async def test_a_real_judge_is_asked_through_litellm_and_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "key-of-the-judge")
    judges = Judges({"How many?": RIGHT})
    with serving(judges.app()) as url:
        said = await connected("perfect", url, "JUDGE_KEY").compare(REQUEST, RIGHT, "Eight.")
    assert (said.winner, [spoken.usd for spoken in said.spoken]) == ("teacher", [0.5, 0.5])
    assert {one["headers"]["authorization"] for one in judges.asked} == {"Bearer key-of-the-judge"}
    assert {(one["model"], one["temperature"]) for one in judges.asked} == {("perfect", 0)}


async def test_the_providers_own_key_is_not_sent_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-4711")
    judges = Judges({"How many?": RIGHT})
    with serving(judges.app()) as url:
        said = await connected("verbose", url).compare(REQUEST, RIGHT, RIGHT)
    assert (said.winner, [spoken.usd for spoken in said.spoken]) == (None, [None] * 4)
    assert "canary-4711" not in str(judges.asked)


async def test_what_is_declined_for_good_is_missing_and_what_passes_is_unavailable() -> None:
    with serving(Judges({}).app()) as url:
        said = await connected("declining", url).compare(REQUEST, RIGHT, "Eight.")
        assert (said.winner, said.unavailable, len(said.spoken)) == (None, None, 2)
        said = await connected("gone", url).compare(REQUEST, RIGHT, "Eight.")
        assert said.unavailable is not None
        assert said.unavailable.startswith("the judge did not answer: openai: ")
    judge = connected("perfect", f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(Unavailable):
        await judge._ask(REQUEST)


def test_without_a_model_there_is_no_judge_and_without_its_key_no_start() -> None:
    assert connect_judge(JudgeSettings(), dollars) is None
    with pytest.raises(BadInput, match=r"judge\.key_env names NOT_THERE, which is not set"):
        connected("perfect", "", "NOT_THERE")
