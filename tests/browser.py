"""Debian's Chromium, driven by Playwright, with an ear for everything that a browser complains of."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Response, expect, sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or ""
AXE = ROOT / "build" / "dashboard" / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = os.environ.get("STILLROOM_SCREENSHOTS", "")
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb",
]  # fmt: skip
SIZES = {"laptop": (1280, 800), "phone": (390, 844)}

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and os.environ.get("STILLROOM_BROWSER")), reason="tests in Chromium are run by `make test-browser`"
)
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="axe-core is not there: make assets")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window, whose every context has a fresh profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@dataclass
class Heard:
    """What went wrong in a context, in words; `base` is the only place that a page may ask for anything."""

    base: str
    wrong: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        """Every page of it from now on."""
        context.on("console", lambda message: self._said(message.type, message.text))
        context.on("weberror", lambda error: self.wrong.append(f"script: {error.error}"))
        context.on("request", self._asked)
        context.on("requestfailed", self._failed)
        context.on("response", self._answered)

    def nothing(self) -> None:
        """Nobody complained since the last time."""
        wrong, self.wrong = self.wrong, []
        assert wrong == []

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.wrong.append(f"console: {text}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.wrong.append(f"asked {request.url}")

    def _failed(self, request: Request) -> None:
        """Whatever is under way when a page is left is broken off by the browser: its events, a part of it."""
        if request.failure != "net::ERR_ABORTED":
            self.wrong.append(f"{request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.wrong.append(f"{response.url} answered {response.status}")


@contextmanager
def browsing(
    browser: Browser, base: str, theme: str = "light", size: str = "laptop", scripts: bool = True
) -> Iterator[tuple[Page, Heard]]:
    """A page of a fresh profile, and what is heard of it."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        java_script_enabled=scripts,
        is_mobile=size == "phone",
        has_touch=size == "phone",
        reduced_motion="reduce",
    )
    context.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)  # A busy machine is no failure.
    heard = Heard(base)
    heard.watch(context)
    yield context.new_page(), heard
    context.close()


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is now."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found: Sequence[dict[str, Any]] = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations)"
    )
    return [f"{one['id']}: {one['help']} ({node['html'][:200]})" for one in found for node in one["nodes"]]


def shoot(page: Page, name: str) -> None:
    """A picture of what is in view, where STILLROOM_SCREENSHOTS names a folder for them."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", animations="disabled")


def links(page: Page) -> list[str]:
    """Addresses that the page leads to, of pages and not of files."""
    found: list[str] = page.eval_on_selector_all("a[href]:not([download])", "all => all.map(one => one.href)")
    inside = [urlsplit(address) for address in found if address.startswith(f"{_origin(page.url)}/ui/")]
    return [
        one.path + (f"?{one.query}" if one.query else "")
        for one in inside
        if "." not in one.path.rpartition("/")[2] and "format=" not in one.query
    ]


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"
