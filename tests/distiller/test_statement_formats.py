import builtins
import csv
import io
import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import pytest

from distiller.statement import sections, statement
from distiller.statement_formats import FORMATS
from proxy.errors import Unavailable
from proxy.log import Log
from proxy.rollups import rebuild
from tests.distiller.statements import HOSTILE, made
from tests.router.conftest import TASK, log

__all__ = ["log"]


class Page(HTMLParser):
    """The texts of its cells, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self._in = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self._in = tag in ("td", "th")
        if self._in:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = False

    def handle_data(self, data: str) -> None:
        if self._in:
            self.cells[-1] += data


def texts(pdf: bytes) -> list[str]:
    """What a PDF writes, piece by piece."""
    found: list[str] = []
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            content = zlib.decompress(stream)
        except zlib.error:
            continue
        found += [piece.decode("latin-1") for piece in re.findall(rb"\(((?:\\.|[^\\)])*)\) Tj", content)]
    return [re.sub(r"\\(.)", r"\1", piece) for piece in found]


def test_every_format_shows_the_same_figures(log: Log) -> None:
    one = made(log)
    expected = [cell for section in sections(one) for row in section.rows for cell in row if cell.startswith("$")]
    assert len(expected) > 30
    page = Page(FORMATS["html"](one).decode())
    assert [cell for cell in page.cells if cell.startswith("$")] == expected
    assert [piece for piece in texts(FORMATS["pdf"](one)) if piece.startswith("$")] == expected
    data = json.loads(FORMATS["json"](one))
    lines = {(line["task"], line["kind"], line["unit"]): line["usd"] for line in data["lines"]}
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](one).decode(), newline="")))
    told = {(row["task"].lstrip("'") or None, row["kind"], row["unit"]): row["usd"] for row in rows}
    avoided = {key: usd for key, usd in told.items() if key[1] == "avoided"}
    assert avoided == {(TASK, "avoided", "exchange"): repr(data["avoided_usd"])}
    assert {key: float(usd) for key, usd in told.items() if key not in avoided} == lines
    assert data["net_usd"] == one.report.net_usd


def test_a_cell_is_no_formula_and_no_markup(log: Log) -> None:
    one = made(log)
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](one).decode(), newline="")))
    names = {row["task"] for row in rows}
    assert names == {"", TASK, f"'{HOSTILE}"}
    assert {(row["from"], row["to"]) for row in rows} == {("2026-06-01", "2026-07-01")}
    text = FORMATS["html"](one).decode()
    page = Page(text)
    assert page.tags <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "section", "div", "table", "thead",
        "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert HOSTILE in page.cells
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_what_has_no_price_is_an_empty_cell(log: Log) -> None:
    one = made(log)
    log.query("UPDATE spend SET usd = NULL WHERE kind = 'judge'")
    log.transaction(rebuild)
    again = statement(log, one.report.since, one.report.until, 0.1, one.made)
    rows = csv.DictReader(io.StringIO(FORMATS["csv"](again).decode(), newline=""))
    assert {(row["usd"], row["unpriced"]) for row in rows if row["kind"] == "judge"} == {("", "1")}


def test_without_fpdf_the_extra_is_named(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("fpdf"):
            raise ImportError(name)
        return real(name, *rest, **more)

    one = made(log)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unavailable, match=r"pip install 'stillroom\[pdf\]'"):
        FORMATS["pdf"](one)
