import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from proxy.log import Log
from router.certificate import certificate, with_examples
from router.certificate_page import page
from router.signing import signed
from tests.router.conftest import known
from tests.router.test_certificate import FLOOR, compared

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&"


class Reader(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def document(log: Log, tmp_path: Path) -> dict[str, Any]:
    candidate = known(log)
    compared(log, candidate, [1.0] * 150 + [0.0] + [1.0] * 100, answer=HOSTILE)
    log.query("UPDATE exchanges SET answer = ?", [HOSTILE])
    return signed(with_examples(log, certificate(log, candidate, FLOOR)), tmp_path / "key")


def test_answers_are_shown_and_never_run(document: dict[str, Any]) -> None:
    read = Reader(page(document))
    assert read.words.count(HOSTILE) >= 2
    assert "script" not in read.tags
    assert "img" not in read.tags
    assert not [name for name in read.attributes if name.startswith("on")]


def test_every_text_of_the_document_is_escaped(document: dict[str, Any]) -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: hostile(one) for name, one in value.items()}
        if isinstance(value, list):
            return [hostile(one) for one in value]
        return HOSTILE if isinstance(value, str) else value

    assert set(Reader(page(hostile(document))).tags) == set(Reader(page(document)).tags)


def test_it_needs_nothing_from_elsewhere(document: dict[str, Any]) -> None:
    text = page(document)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not {"src", "href", "xlink:href"} & Reader(text).attributes.keys()
    assert "default-src 'none'" in str(Reader(text).attributes["content"]) or "default-src &#x27;none&#x27;" in text


def test_it_says_what_the_document_says(document: dict[str, Any]) -> None:
    words = Reader(page(document)).words
    for wanted in (
        document["claim"], document["signature"]["public_key"], "not measured", "tenant 1", "where is order 150",
        "The bounds over time", "Exchanges in no slice: 0",
    ):  # fmt: skip
        assert wanted in words
    assert json.dumps(document, indent=1) in words


def test_it_says_what_was_drawn_and_what_decided(document: dict[str, Any]) -> None:
    words = Reader(page(document)).words
    assert "the whole answer" in words
    assert "drawn to be judged" not in words
    declared = document["declared"] | {"first_tokens": 3}
    words = Reader(page(document | {"judged": 200, "declared": declared})).words
    assert f"200 of {document['parity']['n']}, weighted by their share" in words
    assert "the first 3 tokens of the answer" in words


def test_the_path_is_drawn_inside_its_frame(document: dict[str, Any]) -> None:
    drawn = re.findall(r'<path d="([^"]+)"', page(document))
    assert len(drawn) == 3
    assert max(float(x) for x in re.findall(r"H([\d.]+)", " ".join(drawn))) == 640.0
    assert all(0 <= float(y) <= 248 for y in re.findall(r"V([\d.-]+)", " ".join(drawn)))


def test_one_without_examples_says_so(document: dict[str, Any]) -> None:
    words = Reader(page({name: value for name, value in document.items() if name != "examples"})).words
    assert "Written without the traffic" in words
    assert "where is order" not in words


def test_an_older_certificate_is_shown_as_far_as_it_goes() -> None:
    older = {
        "task": "triage", "candidate": "student-1", "issued_at": "2026-01-02", "claim": "agrees", "evaluator": "label",
        "threshold": None, "ordinal": 1, "training_snapshot": 3, "verdict_snapshot": 9, "shadowed": 100,
        "parity": {"n": 100, "mean": 1.0, "lower": 0.96, "upper": 1.0, "margin": 0.05, "alpha": 0.05},
        "coverage": 1.0, "coverage_interval": [0.9, 1.0],
    }  # fmt: skip
    words = Reader(page(older)).words
    assert "Not signed." in words
    assert "0.9600 to 1.0000" in words
