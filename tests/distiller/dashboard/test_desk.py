from pathlib import Path

import pytest
from fastapi import Request
from jinja2 import DictLoader, UndefinedError

from distiller.dashboard.desk import THEME, Desk, environment
from distiller.dashboard.reading import Readers
from distiller.dashboard.sessions import OPERATOR, Sessions
from distiller.settings import Settings

HOSTILE = "<img src=x onerror=alert(1)>\"'`{{7*7}}"


def asked(path: str = "/ui/", query: bytes = b"", cookie: str = "", **state: object) -> Request:
    headers = [(b"cookie", cookie.encode())] if cookie else []
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": headers}
    request = Request(scope | {"server": ("127.0.0.1", 8081), "scheme": "http"})
    request.state._state.update(state)
    return request


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    settings = Settings(home=str(tmp_path))
    return Desk(settings, None, Sessions(), Readers(settings), lambda: False)


def test_what_goes_into_a_page_is_text_and_nothing_else(desk: Desk) -> None:
    page = bytes(desk.page(asked(), "error.html", 400, why=HOSTILE).body).decode()
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;`{{7*7}}" in page


def test_an_address_goes_into_a_page_as_text_too(desk: Desk) -> None:
    desk.templates.loader = DictLoader({"any": '<p data-here="{{ here }}"></p>'})
    page = bytes(desk.page(asked(query=b'a="><script>'), "any").body).decode()
    assert page == '<p data-here="/ui/?a=&#34;&gt;&lt;script&gt;"></p>'


def test_a_value_that_is_not_there_is_an_error_and_not_nothing() -> None:
    with pytest.raises(UndefinedError):
        environment().from_string("{{ nobody_said }}").render()


def test_only_a_known_theme_is_taken_from_a_cookie(desk: Desk) -> None:
    def page(theme: str) -> str:
        return bytes(desk.page(asked(cookie=f"{THEME}={theme}"), "error.html", why="").body).decode()

    assert '<html lang="en" data-theme="dark">' in page("dark")
    assert '<html lang="en">' in page("x onload")


def test_what_is_told_to_a_session_is_on_its_next_page_only(desk: Desk) -> None:
    session = desk.sessions.start(OPERATOR)
    answer = desk.done(asked(session=session), "/ui/tasks", "it is done")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/tasks")
    pages = [bytes(desk.page(asked(session=session), "error.html", why="").body).decode() for _ in range(2)]
    assert ["it is done" in page for page in pages] == [True, False]


def test_figures_of_charts_are_written_by_their_unit() -> None:
    template = environment().from_string("{{ value | figure(unit) }}")
    written = [("money", 0.5), ("share", 0.25), ("milliseconds", 20.0), ("count", 2.5), ("count", 3.0), ("count", None)]
    assert [template.render(value=value, unit=unit) for unit, value in written] == [
        "$0.5000", "25%", "20 ms", "2.50", "3", "-",
    ]  # fmt: skip


def test_every_file_of_ours_has_an_address_that_changes_with_it() -> None:
    assets = environment().globals["assets"]
    assert isinstance(assets, dict)
    assert {"stillroom.css", "stillroom.js", "icon.svg"} <= set(assets)
    assert all(address.startswith(f"/ui/static/{name}?v=") for name, address in assets.items())
