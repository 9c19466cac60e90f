"""Owns how long the pages of a real Stillroom take, by HTTP and in a browser. Must not know what is on them."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.deployment import in_front_of
from tests.servers import free_port

_CHROMIUM = Path("/usr/bin/chromium")
_SETTINGS = "[proxy]\nworkers = 1\n[serving]\nport = 1\n"
_START_SECONDS = 900.0  # The controller looks at all of the log once before it is ready.
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
_LINK = re.compile(r'href="(/ui(?:/[\w/-]*)?)"')


@dataclass(frozen=True, slots=True)
class Page:
    """Seconds: by HTTP, first and again; until the first contentful paint, first and again. None: not measured."""

    path: str
    seconds: tuple[float | None, ...]


def pages(folder: Path) -> Iterator[Page]:
    """Every page of the menu, of a Stillroom whose home is `folder`/home; nothing where it has no dashboard.

    What the first time costs can be seen once: so Stillroom is started twice, for HTTP and for the browser.
    """
    by_http = dict(_served(folder, _http))
    painted = dict(_served(folder, _browser)) if _CHROMIUM.exists() else {}
    for path, seconds in by_http.items():
        yield Page(path, (*seconds, *painted.get(path, (None, None))))


def _served(folder: Path, ask: Callable[[ExitStack, str], Callable[[str], float]]) -> Iterator[tuple[str, Any]]:
    """Each path with two times."""
    with ExitStack() as stack:
        stillroom = stack.enter_context(in_front_of(free_port(), folder, _SETTINGS, seconds=_START_SECONDS))
        home = httpx.get(f"{stillroom.admin}/ui/login", follow_redirects=True, timeout=120)
        if home.status_code != 200:
            return
        asked = ask(stack, stillroom.admin)
        first = asked("/ui/")
        menu = httpx.get(f"{stillroom.admin}/ui/", follow_redirects=True, timeout=120).text
        yield "/ui/", (first, asked("/ui/"))
        for path in dict.fromkeys(_LINK.findall(menu)):
            if path.rstrip("/") not in ("/ui", "/ui/login") and "/static" not in path:
                yield path, (asked(path), asked(path))


def _http(stack: ExitStack, url: str) -> Callable[[str], float]:
    client = stack.enter_context(httpx.Client(base_url=url, timeout=120, follow_redirects=True))

    def asked(path: str) -> float:
        began = time.perf_counter()
        client.get(path).raise_for_status()
        return time.perf_counter() - began

    return asked


def _browser(stack: ExitStack, url: str) -> Callable[[str], float]:
    from playwright.sync_api import sync_playwright

    playwright = stack.enter_context(sync_playwright())
    browser = playwright.chromium.launch(executable_path=str(_CHROMIUM), args=["--no-sandbox"])
    stack.callback(browser.close)
    page = browser.new_page()
    page.goto(f"{url}/ui/login")  # So that the browser itself has started.

    def asked(path: str) -> float:
        page.goto(f"{url}{path}", wait_until="load")
        page.wait_for_function(f"{_PAINT} !== undefined")
        return float(page.evaluate(_PAINT)) / 1000

    return asked
