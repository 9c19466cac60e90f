import httpx
import pytest

from distiller.dashboard.actions import recent
from distiller.dashboard.login import _ours
from proxy.admin import Tokens
from tests.distiller.dashboard.houses import NO_TOKENS, ORIGIN, TOKENS, MakeHouse, token_in


async def test_each_token_opens_its_role(house: MakeHouse) -> None:
    made = house(TOKENS)
    for secret, role in ((TOKENS.operator, "operator"), (TOKENS.viewer, "viewer")):
        made.browser.cookies.clear()
        answer = await made.log_in(secret)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")
        assert f"Log out ({role})" in await made.text("/ui/")
    assert made.log is not None
    assert [(one.action, one.target, one.role) for one in recent(made.log, 9)] == [
        ("login", "viewer", ""), ("login", "operator", ""),
    ]  # fmt: skip


async def test_the_cookie_is_for_our_pages_and_no_script(house: MakeHouse) -> None:
    made = house(TOKENS)
    cookie = (await made.log_in(TOKENS.viewer)).headers["set-cookie"].lower()
    assert {"httponly", "samesite=lax", "path=/ui"} <= set(cookie.split("; "))
    assert "secure" not in cookie
    assert TOKENS.viewer not in cookie
    made.browser = httpx.AsyncClient(transport=httpx.ASGITransport(made.app), base_url="https://stillroom.example")
    page = await made.get("/ui/login")
    assert "secure" in page.headers["set-cookie"].lower().split("; ")


async def test_behind_a_proxy_that_speaks_tls_the_cookie_is_secure_too(house: MakeHouse) -> None:
    made = house(TOKENS)
    headers = {"host": "stillroom.example"}
    page = await made.get("/ui/login", headers=headers)
    form = {"token": token_in(page.text), "secret": TOKENS.operator}
    headers["origin"] = "https://stillroom.example"
    answer = await made.browser.post("/ui/login", data=form, headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")
    assert "secure" in answer.headers["set-cookie"].lower().split("; ")


async def test_the_session_before_the_login_is_worth_nothing_after_it(house: MakeHouse) -> None:
    made = house(TOKENS)
    page = await made.get("/ui/login")
    planted = dict(made.browser.cookies)
    form = {"token": token_in(page.text), "secret": TOKENS.operator}
    await made.browser.post("/ui/login", data=form)
    assert dict(made.browser.cookies) != planted
    made.browser.cookies.clear()
    for name, value in planted.items():
        made.browser.cookies.set(name, value)
    assert (await made.get("/ui/")).status_code == 303
    assert (await made.browser.post("/ui/login", data=form)).status_code == 403


async def test_after_logging_out_the_cookie_is_worth_nothing(house: MakeHouse) -> None:
    made = house(TOKENS)
    await made.log_in(TOKENS.operator)
    kept = dict(made.browser.cookies)
    assert (await made.post("/ui/logout")).headers["location"] == "/ui/login"
    for name, value in kept.items():
        made.browser.cookies.set(name, value)
    assert (await made.get("/ui/")).status_code == 303


@pytest.mark.parametrize("tokens", [TOKENS, Tokens("operators-token", "")])
@pytest.mark.parametrize("secret", ["", "wrong", "operators-toke", "ünknown", "\ud800"])
async def test_a_wrong_token_opens_nothing(house: MakeHouse, tokens: Tokens, secret: str) -> None:
    made = house(tokens)
    page = await made.get("/ui/login")
    form = {"token": token_in(page.text), "secret": secret.encode("utf-8", "surrogatepass")}
    answer = await made.browser.post("/ui/login", data=form)
    assert (answer.status_code, "not known here" in answer.text) in ((401, True), (403, False))
    assert (await made.get("/ui/")).status_code == 303
    assert made.log is not None
    assert recent(made.log, 9) == []


async def test_who_fails_too_often_has_to_wait_right_or_wrong(house: MakeHouse) -> None:
    made = house(TOKENS)
    for _ in range(5):
        assert (await made.log_in("wrong")).status_code == 401
    answer = await made.log_in(TOKENS.operator)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 60


async def test_without_a_token_there_is_nothing_to_log_in_to(house: MakeHouse) -> None:
    made = house(NO_TOKENS)
    assert (await made.get("/ui/login")).headers["location"] == "/ui/"
    assert "Log out" not in await made.text("/ui/")


async def test_a_login_from_another_site_is_refused(house: MakeHouse) -> None:
    made = house(TOKENS)
    token = token_in((await made.get("/ui/login")).text)
    form = {"token": token, "secret": TOKENS.operator}
    answer = await made.browser.post("/ui/login", data=form, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert (await made.browser.post("/ui/login", data=form | {"token": "0" * 64})).status_code == 403
    assert (await made.browser.post("/ui/login", data=form, headers={"origin": ORIGIN})).status_code == 303


@pytest.mark.parametrize(
    ("address", "leads"),
    [
        ("/ui/tasks?sort=spend", "/ui/tasks?sort=spend"), ("", "/ui/"), ("https://evil.example/ui/", "/ui/"),
        ("//evil.example/ui/", "/ui/"), ("/\\evil.example", "/ui/"), ("/ui/\\..", "/ui/"), ("/metrics", "/ui/"),
        ("/ui/\r\nset-cookie: a=b", "/ui/"), ("javascript:alert(1)", "/ui/"), ("///evil.example", "/ui/"),
        ("/ui/../metrics", "/ui/"),
    ],
)  # fmt: skip
def test_a_login_leads_to_our_own_pages_only(address: str, leads: str) -> None:
    assert _ours(address) == leads
