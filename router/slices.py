"""Owns the slices of a task: does a candidate that is good on the whole do harm to a part of it?

Must not move a candidate. A slice is the exchanges with one value of one facet: language, length, tenant, tools,
template. The facets and their values follow from the request alone, never from a verdict.

What is claimed. Nothing about parity within a slice: most are too small to prove any. Each slice gets an upper bound on
its mean verdict that holds however often it is looked at (`router.parity`), at the candidate's alpha divided by the
number of slices (a union bound: Bonferroni). One whose upper bound lies below 1 - margin - floor is "far behind", and
blocks. So a candidate with no slice below that line is blocked wrongly with probability at most alpha, for a fixed set
of slices; and one that is not blocked may still have a poor slice of which too little was seen. New values add slices
as traffic arrives, for which the bound over all looks is approximate. A safeguard, which can only hold back.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from proxy.log import Log
from router.evidence import lenient
from router.parity import parity
from router.prompt import INSTRUCTION_ROLES
from router.registry import Candidate
from router.verdicts import COUNTED

FACETS = ("language", "length", "tenant", "tools", "template")
LENGTHS = ((1 << 10, "below 1 kB"), (4 << 10, "1 to 4 kB"), (16 << 10, "4 to 16 kB"))
LONGEST = "16 kB or more"
MOST = 12
"""Values told apart in one facet, by number of exchanges; the rest are one slice."""
REST = "(all others)"
NONE = "(none)"
_AT_ONCE = 500  # requests held at a time
_SAMPLE = 1000  # characters that language is told by
_SCRIPTS = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
# Function words that are frequent in one of these languages and rare in the others.
_WORDS = {
    "English": "the and is of to my was have with this for not you what",
    "German": "der die das und ist nicht ich mit ein eine auf von wir bitte",
    "French": "le les et est je pas une des vous pour dans mon avec nous",
    "Spanish": "el los y es que una por mi con para las del pero muy",
    "Portuguese": "o os e um uma n\u00e3o meu minha com para do da em voc\u00ea",
    "Italian": "il che di non una per mi sono gli della ho questo nel mio",
    "Dutch": "het een van ik niet mijn dat met voor op zijn heb wij naar",
}
_WORDS_OF = {language: frozenset(words.split()) for language, words in _WORDS.items()}


@dataclass(frozen=True, slots=True)
class Slice:
    """Covered shadow verdicts with one value of a facet; `upper` holds at alpha over the number of slices."""

    facet: str
    value: str
    n: int
    mean: float
    upper: float
    behind: bool


@dataclass(frozen=True, slots=True)
class Slices:
    """All slices; `gone` verdicts are in none, as their exchange was erased or is past retention."""

    table: tuple[Slice, ...]
    gone: int


def slices(
    log: Log, judged: Sequence[tuple[str, float]], margin: float, alpha: float, floor: float, least: float = 1.0
) -> Slices:
    """Slices of verdicts, as (exchange, what it counts as) in the order they were reached in.

    `floor` is in [0, 1 - margin), `least` the least share that verdicts were drawn with, as for `router.parity`.
    """
    groups, gone = members(log, [exchange for exchange, _ in judged])
    table = [
        _slice(key, [judged[place][1] for place in places], margin + floor, alpha / len(groups), least)
        for key, places in sorted(groups.items())
    ]
    return Slices(tuple(table), gone)


def members(log: Log, exchanges: Sequence[str]) -> tuple[dict[tuple[str, str], list[int]], int]:
    """Of each slice, as (facet, value), the places of its exchanges, and how many are in none: they are gone."""
    known = _facets_of(log, exchanges)
    groups: dict[tuple[str, str], list[int]] = {}
    for facet in FACETS:
        counted = Counter(known[exchange][facet] for exchange in exchanges if exchange in known)
        kept = {value for value, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST]}
        for place, exchange in enumerate(exchanges):
            if exchange in known:
                value = known[exchange][facet]
                groups.setdefault((facet, value if value in kept else REST), []).append(place)
    return groups, sum(exchange not in known for exchange in exchanges)


def behind(found: Iterable[Slice]) -> list[Slice]:
    """Those that are far behind, the worst first."""
    return sorted((one for one in found if one.behind), key=lambda one: one.upper)


def lagging(log: Log, candidate: Candidate, floor: float) -> str | None:
    """Why this candidate must not be promoted, in words, or None."""
    judged = log.query(
        f"SELECT exchange, {COUNTED} FROM verdicts WHERE candidate = ? AND kind = 'shadow' AND covered ORDER BY id",
        [candidate.id],
    )
    margin = lenient(log, candidate)
    late = behind(slices(log, judged, margin, candidate.alpha, floor, candidate.judged_share).table) if judged else []
    if not late:
        return None
    worst = "; ".join(f"{one.facet} {one.value}: at most {one.upper:.3f} on {one.n}" for one in late[:3])
    line = 1 - margin - floor
    return f"held back: {len(late)} of its slices are far behind, below {line:.3g} ({worst}): distill on more of those"


def facets(request: str, size: int, tenant: str | None) -> dict[str, str]:
    """A value for each facet of a request, given as its body, its bytes and who sent it."""
    body: Any = None
    with suppress(ValueError, RecursionError):
        body = json.loads(request)
    body = body if isinstance(body, dict) else {}
    messages = [message for message in _listed(body.get("messages")) if isinstance(message, dict)]
    instructions = [message for message in messages if str(message.get("role")) in INSTRUCTION_ROLES]
    spoken = [message for message in messages if str(message.get("role")) not in INSTRUCTION_ROLES]
    return {
        "language": language(_text(spoken)),
        "length": next((name for below, name in LENGTHS if size < below), LONGEST),
        "tenant": tenant or NONE,
        "tools": _tools(body),
        "template": _template(_text(instructions)),
    }


def language(text: str) -> str:
    """The script, and of Latin text the language where its commonest words tell: a light guess, for grouping only."""
    sample = text[-_SAMPLE:]  # The end is what this request is about.
    letters: Counter[str] = Counter()
    for sign, count in Counter(sample).items():
        if sign.isalpha():
            letters[unicodedata.name(sign, "?").split()[0]] += count
    if not letters:
        return NONE
    if letters["HIRAGANA"] + letters["KATAKANA"] > 0.1 * letters.total():  # Japanese is written with Chinese signs too.
        return "Japanese"
    script = letters.most_common(1)[0][0]
    if script != "LATIN":
        return _SCRIPTS.get(script, f"{script.capitalize()} script")
    words = Counter(re.findall(r"[^\W\d_]+", sample.lower()))
    hits = Counter({name: sum(words[word] for word in common) for name, common in _WORDS_OF.items()})
    (first, most), (_, second) = hits.most_common(2)
    return first if most >= 2 and most > second else "Latin script"


def _facets_of(log: Log, exchanges: Sequence[str]) -> dict[str, dict[str, str]]:
    found = {}
    rows = log.connection.execute(
        "SELECT id, request, coalesce(request_bytes, strlen(request)), tenant FROM exchanges "
        "WHERE request IS NOT NULL AND id IN (SELECT unnest(CAST(? AS VARCHAR[])))",
        [list(exchanges)],
    )
    while some := rows.fetchmany(_AT_ONCE):
        found.update({identity: facets(request, size, tenant) for identity, request, size, tenant in some})
    return found


def _slice(key: tuple[str, str], verdicts: Sequence[float], margin: float, alpha: float, least: float) -> Slice:
    found = parity(verdicts, margin, alpha, least=least)
    return Slice(*key, found.n, max(0.0, sum(verdicts) / found.n), found.upper, found.refuted)


def _tools(body: Mapping[str, Any]) -> str:
    names = set()
    for tool in _listed(body.get("tools")):
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            names.add(str(function.get("name")))
    return _clean(", ".join(sorted(names)))[:120] or NONE


def _template(instructions: str) -> str:
    """The instructions but for their numbers, as 8 hex digits: a date in them makes no new version."""
    if not instructions.strip():
        return NONE
    return hashlib.sha256(re.sub(r"\d+", "0", instructions).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _text(messages: Iterable[Mapping[str, Any]]) -> str:
    """What the messages say, one after the other; a part of a message that is no text says nothing."""
    contents = [message.get("content") for message in messages]
    parts = [content if isinstance(content, list) else [{"text": content}] for content in contents]
    texts = [part.get("text") for some in parts for part in some if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # JSON can spell half a character.
