"""The dashboard in front of a real log, and a browser's worth of asking it."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import httpx

from distiller.dashboard.app import create_dashboard
from distiller.dashboard.reading import Readers
from distiller.settings import Settings
from proxy.admin import Tokens, create_admin
from proxy.settings import AdminSettings
from proxy.vitals import Observed, Vitals
from tests.logs import migrated

TOKENS = Tokens("operators-token", "viewers-token")
NO_TOKENS = Tokens()


class House:
    """A home with a log, the dashboard on the admin app, and one browser that keeps its cookies."""

    def __init__(self, home: Path, tokens: Tokens = NO_TOKENS, log: bool = True, **settings: Any) -> None:
        self.settings = Settings(home=str(home), **settings)
        self.log = migrated(home) if log else None
        self.closing = False
        self.observed = Observed()
        vitals = Vitals(home, home / "spool", lambda: self.observed)
        self.readers = Readers(self.settings)
        pages = create_dashboard(self.settings, None, tokens, vitals, self.readers, lambda: self.closing)
        self.app = create_admin(AdminSettings(), home / "metrics", vitals, {"/ui": pages})
        self.browser = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1:8081")

    async def get(self, path: str, **given: Any) -> httpx.Response:
        return await self.browser.get(path, **given)

    async def text(self, path: str) -> str:
        """What a page says, without its tags, in one line."""
        answer = await self.get(path)
        assert answer.status_code == 200, answer.text
        return seen(answer.text)

    async def post(self, path: str, page: str = "/ui/", **fields: str) -> httpx.Response:
        """Send a form as `page` has it: with the token from there."""
        token = token_in((await self.get(page)).text)
        return await self.browser.post(path, data={"token": token} | fields, headers={"origin": ORIGIN})

    def close(self) -> None:
        if self.log:
            self.log.close()
        self.readers.close()

    async def log_in(self, secret: str) -> httpx.Response:
        return await self.post("/ui/login", "/ui/login", secret=secret)


ORIGIN = "http://127.0.0.1:8081"
MakeHouse = Callable[..., House]


def token_in(page: str) -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page)
    assert found, page
    return found.group(1)


def seen(page: str) -> str:
    """A page as somebody reads it: no tags, no scripts, single spaces."""
    body = re.sub(r"<(script|style|head)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body))).strip()
