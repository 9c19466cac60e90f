import re

import httpx
import pytest

from distiller.dashboard.actions import recent
from proxy.keys import read_keys
from proxy.settings import ProxySettings
from tests.distiller.dashboard.houses import TOKENS, MakeHouse
from tests.router.conftest import insert

PAGE = "/ui/settings"


async def test_it_says_what_is_in_effect_and_how_long_things_are_kept(house: MakeHouse) -> None:
    made = house()
    text = await made.text(PAGE)
    assert "proxy.port 8080 default" in text
    assert "Exchanges kept for ever (log.keep_days = 0)" in text
    assert "kept 7 days after they are in the log" in text
    assert "There are no keys yet" in text
    assert "Keys are not asked for" in text
    assert made.log is not None
    insert(made.log, ["a"])
    assert "on 1 day there are some" in await made.text(PAGE)


async def test_what_is_not_the_default_is_marked(house: MakeHouse) -> None:
    made = house(proxy=ProxySettings(keys=True, port=9000))
    text = await made.text(PAGE)
    assert "proxy.port 9000 in the file" in text
    assert "Keys are not asked for" not in text


async def test_a_key_is_made_shown_once_and_revoked(house: MakeHouse) -> None:
    made = house()
    fields = {"name": "billing-bot", "models": "gpt-4o, gpt-4o-mini", "budget": "50", "requests_per_minute": "60"}
    answer = await made.post(f"{PAGE}/keys/create", PAGE, **fields)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    (secret,) = re.findall(r"sk-still-[\w-]+", answer.text)
    (key,) = read_keys(made.settings.keys)
    assert (key.name, key.models, key.limits.budget_usd) == ("billing-bot", ("gpt-4o", "gpt-4o-mini"), 50.0)
    page = await made.get(PAGE)
    assert "billing-bot" in page.text
    assert secret not in page.text
    answer = await made.post(f"{PAGE}/keys/revoke", PAGE, name="billing-bot")
    assert answer.status_code == 303
    assert "The key billing-bot is revoked" in await made.text(PAGE)
    assert read_keys(made.settings.keys)[0].revoked
    assert made.log is not None
    told = [(one.action, one.target, one.outcome) for one in recent(made.log, 9)]
    assert told == [("settings/keys/revoke", "billing-bot", "done"), ("settings/keys/create", "billing-bot", "done")]
    assert "gpt-4o gpt-4o-mini; 60 requests a minute, 50.0 US dollars a month" in await made.text(PAGE)
    kept = "".join(str(row) for row in made.log.query("SELECT * FROM actions"))
    assert secret not in kept


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": ""}, "a key's name must be printable"),
        ({"name": "a", "budget": "much"}, "a budget is US dollars"),
        ({"name": "a", "budget": "nan"}, "is no budget"),
        ({"name": "a", "budget": "-1"}, "is no budget"),
        ({"name": "a", "requests_per_minute": "1.5"}, "must be a whole number"),
        ({"name": "a", "requests_per_minute": "0"}, "is no limit"),
        ({"name": "a", "tokens_per_minute": "9" * 400}, "must be a whole number"),
    ],
)
async def test_what_makes_no_key_is_told(house: MakeHouse, fields: dict[str, str], why: str) -> None:
    made = house()
    answer = await made.post(f"{PAGE}/keys/create", PAGE, **fields)
    assert answer.status_code == 400
    assert why in answer.text.replace("&#39;", "'")
    assert read_keys(made.settings.keys) == []
    assert made.log is not None
    assert [one.outcome for one in recent(made.log, 9)] == ["refused (400)"]


async def test_a_viewer_sees_no_forms(house: MakeHouse) -> None:
    made = house(TOKENS)
    await made.log_in(TOKENS.viewer)
    page = (await made.get(PAGE)).text
    assert "Make the key" not in page
    assert re.findall(r'action="([^"]*)"', page) == ["/ui/logout"]


async def test_names_of_keys_are_text(house: MakeHouse) -> None:
    made = house()
    await made.post(f"{PAGE}/keys/create", PAGE, name="<script>alert(1)</script>")
    page: httpx.Response = await made.get(PAGE)
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
