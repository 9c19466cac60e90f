import re
from collections.abc import Iterator

import duckdb
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount

from distiller.dashboard.actions import recent
from distiller.dashboard.app import dashboard
from distiller.dashboard.desk import NAV, Desk
from distiller.dashboard.sessions import Sessions
from proxy.vitals import Observed, Vitals
from tests.distiller.dashboard.houses import NO_TOKENS, TOKENS, House, MakeHouse, token_in

OPEN = {"/login"}


def routes(house: House) -> Iterator[tuple[str, str]]:
    """Every method and path that the dashboard has."""
    desk = Desk(house.settings, None, Sessions(), house.readers, lambda: False)
    home = house.settings.folder
    found: list[BaseRoute] = list(dashboard(desk, TOKENS, Vitals(home, home, Observed)).routes)
    for route in found:
        if isinstance(route, Mount):
            assert route.path == "/static"
            continue
        assert isinstance(route, APIRoute)
        for method in route.methods:
            yield method, route.path


async def test_no_route_forgets_who_asks(house: MakeHouse) -> None:
    made = house(TOKENS)
    found = set(routes(made))
    assert {("GET", "/"), ("POST", "/login"), ("POST", "/logout")} <= found
    assert {method for method, _ in found} <= {"GET", "POST"}
    for method, path in found:
        address = "/ui" + path.replace("{", "").replace("}", "")
        made.browser.cookies.clear()
        answer = await made.browser.request(method, address)
        if method == "GET":
            assert answer.status_code == (200 if path in OPEN else 303), address
        else:
            assert answer.status_code == 403, address
            assert (await made.browser.post(address, data={"token": "0" * 64})).status_code == 403, address


async def test_no_action_is_a_viewers_and_none_goes_without_the_forms_token(house: MakeHouse) -> None:
    made = house(TOKENS)
    await made.log_in(TOKENS.viewer)
    token = token_in((await made.get("/ui/")).text)
    actions = [path for method, path in routes(made) if method == "POST" and path not in ("/login", "/logout")]
    for path in actions:
        address = "/ui" + path.replace("{", "").replace("}", "")
        answer = await made.browser.post(address, data={"token": token})
        assert (answer.status_code, "a viewer may look" in answer.text) == (403, True), address
    made.browser.cookies.clear()
    await made.log_in(TOKENS.operator)
    for path in actions:
        address = "/ui" + path.replace("{", "").replace("}", "")
        answer = await made.browser.post(address, data={"token": token})
        assert (answer.status_code, "out of date" in answer.text) == (403, True), address
    assert made.log is not None
    assert {one.action for one in recent(made.log, 99)} == {"login"}


@pytest.mark.parametrize("tokens", [TOKENS, NO_TOKENS])
async def test_every_page_of_the_menu_is_there(house: MakeHouse, tokens: object) -> None:
    made = house(tokens)
    if tokens is TOKENS:
        await made.log_in(TOKENS.viewer)
    for address, name in NAV:
        answer = await made.get(address)
        assert answer.status_code == 200, address
        assert f'aria-current="page">{name}<' in answer.text
        assert answer.text.count("<h1>") == 1


async def test_what_is_not_there_or_cannot_be_read_is_a_page_that_says_so(house: MakeHouse) -> None:
    made = house(log=False)
    answer = await made.get("/ui/nowhere")
    assert (answer.status_code, "there is no such page" in answer.text) == (404, True)
    answer = await made.get("/ui/")
    assert (answer.status_code, "there is no log" in answer.text) == (503, True)


async def test_an_error_of_the_log_is_a_page_that_says_so(
    house: MakeHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = house()

    def broken(*_: object) -> None:
        raise duckdb.IOException("no such file: /secret/place")

    monkeypatch.setattr("distiller.dashboard.tasks_page.task_rows", broken)
    answer = await made.get("/ui/tasks")
    assert (answer.status_code, "the log could not be read just now" in answer.text) == (503, True)
    assert "/secret/place" not in answer.text
    assert "/secret/place" in caplog.text


async def test_no_page_leads_to_an_address_with_a_scheme(house: MakeHouse) -> None:
    made = house()
    assert (await made.get("/ui")).headers["location"] == "/ui/"
    answer = await made.get("/ui/tasks/")
    assert (answer.status_code, "there is no such page" in answer.text) == (404, True)


async def test_static_files_are_for_everybody_and_may_be_kept(house: MakeHouse) -> None:
    made = house(TOKENS)
    answer = await made.get("/ui/static/stillroom.css")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/css")
    assert answer.headers["cache-control"] == "no-cache"
    page = (await made.get("/ui/login")).text
    (address,) = re.findall(r'href="(/ui/static/stillroom\.css\?v=[0-9a-f]{12})"', page)
    assert "immutable" in (await made.get(address)).headers["cache-control"]
    assert (await made.get("/ui/static/nothing?v=1")).headers["cache-control"] == "no-store"
    for path in ("/ui/static/../app.py", "/ui/static/%2e%2e/app.py", "/ui/static/", "/ui/static/vendor"):
        assert (await made.get(path)).status_code in (303, 404)


async def test_an_action_that_the_log_does_not_take_is_told_in_the_messages(
    house: MakeHouse, caplog: pytest.LogCaptureFixture
) -> None:
    made = house(TOKENS, log=False)
    assert (await made.log_in(TOKENS.operator)).status_code == 303
    assert "an action could not be recorded (there is no log" in caplog.text
    assert TOKENS.operator not in caplog.text
