import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.accounts import Accounts, read_standing
from proxy.admitting import Admitted, Denied
from proxy.choosing import choosing
from proxy.costs import Sizes
from proxy.derive import CHAT
from proxy.exchange import Exchange
from proxy.gateway import Gateway, Tariff
from proxy.keys import create_key, load_key_ring
from proxy.limits import Limits
from proxy.settings import NamedTeacherSettings, TaskTeachersSettings, TeacherSettings

NOW = 1_795_000_020.0


def price(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float | None:
    """A cent a token of the answer."""
    return None if model != "m" or completion is None else completion / 100


class House:
    """A gateway with one key."""

    def __init__(self, folder: Path, models: tuple[str, ...] = (), capture: bool = True, **limits: Any) -> None:
        self.folder = folder / "limits"
        self.secret = create_key(folder / "keys.json", "bot", models, Limits(**limits), capture).encode()
        ring = load_key_ring(folder / "keys.json")
        self.accounts = Accounts(self.folder)
        self.gateway = Gateway(lambda: ring, self.accounts, Tariff(price, lambda _: Sizes(1000, 50)), lambda: NOW)

    def ask(self, path: str = CHAT, body: bytes | None = None, **fields: Any) -> Admitted | Denied:
        sent = json.dumps({"model": "m", "messages": [], **fields}).encode() if body is None else body
        return self.gateway(path, [(b"x-api-key", self.secret)], sent)

    def spent(self) -> float:
        return read_standing(self.folder, "bot", NOW).spent

    def reserved(self) -> float:
        return read_standing(self.folder, "bot", NOW).reserved


def settle(found: Admitted | Denied, status: int, completion: int, served_by: str = "teacher") -> None:
    assert isinstance(found, Admitted)
    assert found.settle is not None
    usage = {"prompt_tokens": 1, "completion_tokens": completion}
    answer = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode()
    request = b'{"model":"m","messages":[]}'
    found.settle(Exchange("i", NOW, "POST", CHAT, request=request, status=status, response=answer, served_by=served_by))


def refusal(found: Admitted | Denied) -> tuple[str, int, str, str | None]:
    assert isinstance(found, Denied)
    headers = dict(found.headers)
    assert headers[b"content-type"] == b"application/json"
    error = json.loads(found.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    wait = headers.get(b"retry-after")
    return found.reason, found.status, error["code"], None if wait is None else wait.decode()


def test_a_key_without_limits_costs_no_parse_and_owes_nothing(tmp_path: Path) -> None:
    house = House(tmp_path, capture=False)
    assert house.ask(body=b"not JSON") == Admitted("bot", False, None)
    assert not list(house.folder.glob("*.account"))


def test_feedback_takes_a_good_key_and_no_limit_counts_it(tmp_path: Path) -> None:
    house = House(tmp_path, ("m",), requests_per_minute=1, tokens_per_minute=1, budget_usd=0.01)
    for _ in range(3):
        assert house.ask("/v1/feedback", b'{"exchange": "x"}') == Admitted("bot", True, None)
    assert not list(house.folder.glob("*.account"))
    house.secret = b"sk-other"
    assert refusal(house.ask("/v1/feedback/"))[:2] == ("key", 401)


@pytest.mark.parametrize(("named", "status", "reserved"), [("m", 0, 0.5), ("unpriced", 403, 0.0)])
def test_a_budget_pays_for_the_model_of_the_chosen_teacher(
    tmp_path: Path, named: str, status: int, reserved: float
) -> None:
    house = House(tmp_path, ("cheap",), budget_usd=1.0)
    teacher = TeacherSettings(
        named={"other": NamedTeacherSettings("http://x", "", named)},
        tasks={"t": TaskTeachersSettings("metadata.to", {"other": "other"})},
    )
    house.gateway._tariff = replace(house.gateway._tariff, choose=choosing(teacher))
    body = json.dumps({"model": "cheap", "messages": [], "max_tokens": 50, "metadata": {"to": "other"}}).encode()
    headers = [(b"x-api-key", house.secret), (b"x-stillroom-task", b"t")]
    found = house.gateway(CHAT, headers, body)
    assert house.reserved() == reserved
    if isinstance(found, Denied):
        assert (found.status, b"'unpriced' has no price" in found.body) == (status, True)
    else:
        settle(found, 200, 20)  # A request that names m, as the relay recorded it.
        assert house.spent() == 0.2
    usual = house.gateway(CHAT, headers, body.replace(b'"to"', b'"at"'))
    assert isinstance(usual, Denied)  # The client's own model has no price either.
    assert b"'cheap' has no price" in usual.body


def test_who_has_no_key_is_told_so(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.secret = b"sk-other"
    found = house.ask()
    assert refusal(found) == ("key", 401, "invalid_api_key", None)
    assert isinstance(found, Denied)
    assert b"sk-other" not in found.body


def test_a_key_is_for_its_models_and_may_list_them(tmp_path: Path) -> None:
    house = House(tmp_path, ("m",))
    assert house.ask() == Admitted("bot", True, None)
    assert house.ask("/v1/models", b"") == Admitted("bot", True, None)
    no = ("model", 403, "model_not_allowed", None)
    assert refusal(house.ask(model="other")) == no
    assert refusal(house.ask(models=["other"])) == no
    assert refusal(house.ask(body=b'{"model":"m","model":"other"}')) == no
    assert refusal(house.ask(body=b'{"model":["m"]}')) == no
    assert refusal(house.ask("/v1/realtime/client_secrets", b"")) == no
    assert refusal(house.ask("/v1/models/", b"")) == no


def test_requests_a_minute(tmp_path: Path) -> None:
    house = House(tmp_path, requests_per_minute=2)
    assert [house.ask(body=b"?") for _ in range(2)] == [Admitted("bot", True, None)] * 2
    # 20 s of this minute are left now, and of the next one half must be over.
    into = NOW % 60
    assert refusal(house.ask(body=b"?")) == ("requests", 429, "rate_limit_exceeded", str(round(60 - into + 30)))


def test_tokens_a_minute_are_reserved_and_settled(tmp_path: Path) -> None:
    house = House(tmp_path, tokens_per_minute=100)
    first = house.ask(max_tokens=90)
    assert refusal(house.ask(max_tokens=90))[:3] == ("tokens", 429, "rate_limit_exceeded")
    settle(first, 200, 9)
    assert isinstance(house.ask(max_tokens=70), Admitted)
    assert isinstance(house.ask("/v1/models", b""), Admitted)


def test_a_budget_is_reserved_and_settled(tmp_path: Path) -> None:
    house = House(tmp_path, budget_usd=1.0)
    first, second = house.ask(max_tokens=40), house.ask(max_tokens=40)
    assert house.reserved() == 0.8
    assert refusal(house.ask(max_tokens=40)) == ("budget", 429, "insufficient_quota", "1")
    settle(first, 200, 30)
    settle(second, 500, 30)
    assert (house.spent(), house.reserved()) == (0.3, 0)
    settle(house.ask(), 200, 50, served_by="student")
    assert house.spent() == 0.3
    settle(house.ask(), 200, 50)
    settle(house.ask(), 200, 50)
    assert house.spent() == 1.3
    reason, status, code, wait = refusal(house.ask())
    assert (reason, status, code) == ("budget", 429, "insufficient_quota")
    assert wait is not None
    assert int(wait) > 3600
    assert isinstance(house.ask("/v1/models", b""), Admitted)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"model":"unpriced","messages":[]}'),
        (CHAT, b"not JSON"),
        ("/v1/images/generations", b'{"model":"m"}'),
        ("/v1/batches", b"{}"),
        ("/v1/realtime/client_secrets", b""),
        ("/v1/models/m", b""),
    ],
)
def test_a_budget_pays_for_nothing_unseen(path: str, body: bytes, tmp_path: Path) -> None:
    house = House(tmp_path, budget_usd=1.0)
    assert refusal(house.ask(path, body)) == ("budget", 403, "model_not_allowed", None)
    assert house.reserved() == 0


def test_where_counting_fails_rates_go_free_and_money_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, budget_usd=1.0)
    made = house.ask()
    (file,) = house.folder.glob("*.account")
    file.write_bytes(b"torn")
    assert refusal(house.ask()) == ("budget", 503, "budget_unavailable", "1")
    settle(made, 200, 1)
    assert "exchange i is not settled" in caplog.text
    (tmp_path / "other").mkdir()
    rates = House(tmp_path / "other", requests_per_minute=1)
    rates.ask()
    (file,) = rates.folder.glob("*.account")
    file.write_bytes(b"torn")
    assert rates.ask() == Admitted("bot", True, None)
