"""Owns the name of a task: which recurring workload a request belongs to.

It must not know what is done with the name, and it never fails on a strange body: only on a bad header.

A name is a readable slug plus 8 hex digits over the skeleton of the instructions, the tools and the output format. The
skeleton is the text without what changes from call to call: retrieved passages go first (`_without_passages`), then one
pass over the words replaces numbers, dates, ids, addresses and names by a mark, and lists of marks become one mark
(`_Pass`). Every step is linear in the length of the text, and what is remembered is bounded.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from proxy.errors import BadInput

_MARK = "\x00"
_MARKS = re.compile(f"{_MARK}(?: {_MARK})+")
_PARAGRAPH = re.compile(r"(?<!:)\n\n")  # a heading such as `Categories:` stays with its list
_HEADER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")  # no leading dot: the name becomes a folder's name


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Capitalised words that say what to do or to answer, not who it is about: "to French" is another task than "to German".
_KEPT = _set(
    "english spanish french german italian portuguese dutch swedish norwegian danish finnish polish czech slovak "
    "hungarian romanian bulgarian greek turkish russian ukrainian serbian croatian slovenian estonian latvian "
    "lithuanian arabic hebrew persian farsi urdu hindi bengali punjabi marathi tamil telugu thai vietnamese "
    "indonesian malay tagalog filipino mandarin cantonese chinese japanese korean swahili catalan basque irish welsh "
    "latin brazilian mexican american british canadian python java javascript typescript rust kotlin golang markdown "
    "i i'm yes no true false none null unknown other positive negative neutral mixed high medium low"
)
# First words of sentences that are never the first word of a name: "Ask Maria" is a verb and a name.
_OPENERS = _set(
    "a an the this that these those there here it its he she they we you your our my his her their who what when "
    "where why how which if unless until while once before after because since as at by for from in on over to under "
    "with without and but or nor so then also not no never always only just please do don't does each every all any "
    "both some given use using based act answer ask analyse analyze assist assign be call categorise categorize check "
    "choose classify compare convert correct count create decide describe detect determine draft edit ensure evaluate "
    "explain extract find fix focus follow generate get give grade help identify ignore include keep label let list "
    "make mark match name note offer output parse pick produce provide rank rate read recommend remove reply respond "
    "return review rewrite route say score select send solve sort split suggest summarise summarize tag tell "
    "transcribe translate triage validate verify write today now dear hello hi"
)
_CALENDAR = _set(
    "january february march april may june july august september october november december jan feb mar apr jun jul aug "
    "sep sept oct nov dec monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thurs fri"
)
_PARTICLES = _set("de del der den des di da dos la le van von bin ibn al el of & y")  # inside a name, between capitals
_TITLES = _set("mr mrs ms dr prof st e.g i.e vs")  # their dot ends no sentence
_JOINERS = _set("and or & - \u2013 \u2014 * \u2022 / , + to through until")  # between two marks of one list
# `Key: Value` names somebody or something, except under these keys, which give the work itself.
_WORK_KEYS = _set(
    "task goal role style tone mode format output language languages label labels category categories options rule "
    "rules instruction instructions answer note important objective persona audience intents step input sentiment "
    "schema"
)
_WHO_KEYS = _set("customer agent user name client company caller patient employee contact person sender recipient")
_QUOTES = "\"'`{[<\u201c\u2018\u00ab"
_CLOSERS = "\"'`*_)]\u201d\u2019\u00bb"
_BULLETS = " \t-*#>(\u2022\u2013\u2014" + _QUOTES
_STOPS = ".!?:,;"
_EDGE = _QUOTES + _CLOSERS + _STOPS + "(}>\u2026|~$%+-#\u20ac\u00a3\u00a5=/"
_UNIT = r"(?:(?<=\d) (?:[AaPp]\.?[Mm]\b\.?|percent\b|%|million\b))?(?: (?:UTC|GMT|CES?T|E[SD]T|P[SD]T|USD|EUR|GBP)\b)?"
# Where something to take out may begin: a capital (Latin, Greek, Cyrillic), a digit, an address, a mark.
_HOT = re.compile("[A-Z0-9@/\x00\u00c0-\u00de\u0100-\u017f\u0391-\u03a9\u0410-\u042f]\\S*" + _UNIT)
_VALUE_SIGN = re.compile("[0-9@/|\x00]")
_VALUE = re.compile(
    r"[a-z][a-z0-9+.-]{1,20}://[^\s\"<>]+"
    r"|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    # A word, or words joined by hyphens, with a digit in it; P1 or H2 alone is vocabulary, Q3 is a date.
    r"|(?<![\w-])[#$\u20ac\u00a3\u00a5+]?(?![A-PR-Z]\d(?![\w-]))(?=[\w-]*\d)[\w-]+(?:[./:,]\d[\w-]*)*%?" + _UNIT
)
# What stands before an enumeration of answers (lower case; searched in the hundred characters before a capital).
_CHOICE = re.compile(
    r"(?:\b(?:one of|either|choose between)\b[^.!?\n]*"
    r"|\b(?:classif|categori[sz]|label|tag|mark|sort|assign)\w*\b[^.!?\n]*\b(?:as|into)\b[^.!?\n]*"
    r"|\b(?:labels?|categor(?:y|ies)|classes|options|intents?|tags?|topics|values|types|sentiments?)\b[^:.!?\n]{0,40}:"
    r"(?:[^.!?\n]*|\s*\n[\s\d.)*#>-]*)"
    r"|\b(?:answer|reply|respond|output|say)(?: with)?(?: only| just| exactly)? )$"
)
_KEY_LINE = re.compile(r"[ \t*#>-]{0,8}([^\W\d_][\w /-]{0,30}?)[ \t]?:[* \t]{1,8}(\S[^\n]{0,59}?)[ \t]*$", re.MULTILINE)

_PASSAGE_NOUNS = r"(?:context|documents?|passages?|excerpts?|sources?|articles?|knowledge base|search results?)"
# A line that is `Context:`, `## Retrieved documents`, or ends in `... the following passages:`.
_PASSAGE_HEAD = re.compile(
    rf"(?i)[#*\s>]{{0,8}}(?:(?:{_PASSAGE_NOUNS}|(?:retrieved|relevant) [\w ]{{1,40}})(?: \([^)\n]{{0,40}}\))?[*\s]*:"
    rf"|#[#*\s]{{0,8}}(?:(?:retrieved|relevant) )?{_PASSAGE_NOUNS}[*\s]*$)"
)
_PASSAGE_INTRO = re.compile(rf"(?i)\b{_PASSAGE_NOUNS}(?: below)?\s?:[*\s]*$")
_INSTRUCTION_HEAD = re.compile(
    r"(?i)[#*\s>]{0,8}(?:your |the |output |response |answer |important |final )?(?:instructions?|rules?|tasks?|output"
    r"|format|answer|questions?|guidelines?|constraints?|response|steps?|notes?|requirements?|examples?|labels?|categories)"
    r"(?: \w+)?[*\s]*(?::|$)"
)
_LAST_ORDER = re.compile(r"(?:Now|Please|Using|Based on|Given|Do not|Answer|Respond|Reply|Return|Translate|Classify)\b")
_TAG = re.compile(
    r"(?i)<((?:context|documents?|docs?|passages?|sources?|articles?|text|content|emails?|transcripts?|conversation|history"
    r"|search|results?|chunks?|knowledge|data|user|customer|ticket|excerpts?|snippets?|retrieved|references?|input|profile"
    r"|facts?|notes?|message|record|page|file)[\w-]{0,30})(?:\s[^<>]{0,200})?>"
)
_FENCE = re.compile(r'```|"""')
_CODE_FENCE = re.compile(r"json|ya?ml|xml|html|sql|python|csv|typescript|javascript|bash|toml|markdown")
_NUMBERED = re.compile(r"\s*\[\d{1,4}\]\s*\S")
_DESCRIPTION = re.compile(r'"description": ("(?:[^"\\]|\\.)*")')
_DULL = _set(
    "you are a an the is of to and your as assistant be for in on with that this it i am ai helpful expert will by "
    "from who our at act please s re or must should each null type function object properties parameters description "
    "json schema strict"
)


def task_of(body: Mapping[str, Any], header: str | None) -> str:
    """The task's name: the client's own (`x-stillroom-task`), else the fingerprint. BadInput for a bad header."""
    if header is not None:
        if not _HEADER.fullmatch(header):
            raise BadInput("x-stillroom-task must be 1-80 characters of A-Z a-z 0-9 . _ - and not start with a dot")
        return header
    parts = (skeleton(instructions(body)), _tools(body), _format(body))
    if not any(parts):
        return "untitled"
    digest = blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    slug = next(filter(None, (_slug(part[:400]) for part in parts)), "task")
    return f"{slug}-{digest}"


def skeleton(text: str) -> str:
    """The text without its variable parts: case-folded, one space between words, U+0000 for what was taken out."""
    german = " und " in text or " oder " in text or " nicht " in text
    paragraphs = _PARAGRAPH.split(_without_passages(text))
    done = ((_masked if len(one) < 4_000 else _masked.__wrapped__)(one, german) for one in paragraphs)
    return _MARKS.sub(_MARK, " ".join(filter(None, done)))


@lru_cache(maxsize=512)  # between two calls of one task nearly every paragraph is the same; at most 2 MB per process
def _masked(paragraph: str, german: bool) -> str:
    return " ".join(" ".join(_Pass(paragraph, german).words()).split()).casefold()


class _Pass:
    """One pass over a text, from one hot word (capital, digit, address) to the next; what lies between stays."""

    def __init__(self, paragraph: str, german: bool) -> None:
        self._text, self._german = paragraph, german
        self._out: list[str] = []
        self._start = True  # the next word opens a sentence
        self._choice = False  # inside an enumeration of answers, whose capitals are label names
        self._choice_lines = False  # and it goes on over the lines below
        self._run: list[str] = []  # capitalised words that may be one name
        self._run_at, self._run_start = 0, False  # where the run begins; whether it opens a sentence

    def words(self) -> list[str]:
        """The words of the skeleton, in stretches."""
        text, at = self._text, 0
        for hot in _HOT.finditer(text):
            begin, word = hot.start(), hot[0]
            if begin < at:  # inside a `Key: Value` line that went as a whole
                continue
            if begin > at:
                gap = text[at:begin]
                if not gap[-1].isspace():  # the hot letter is inside a word: take all of the word
                    head = gap.split()[-1]
                    gap, word, begin = gap[: -len(head)], head + word, begin - len(head)
                self._gap(gap)
            at = begin + len(word)
            if self._start and (end := self._key_value(begin)):
                at = end
            else:
                self._word(word, begin)
        self._gap(text[at:])
        self._flush()
        return self._out

    def _gap(self, gap: str) -> None:
        """A stretch of ordinary words, or just the space between two hot ones."""
        plain = gap.strip()
        if plain and self._run and not self._run_start and len(plain) < 12 and _PARTICLES.issuperset(plain.split()):
            self._run.append(plain)
        elif plain:
            self._flush()
            self._out.append(plain)
        if "\n" in gap:
            self._flush()
        if last := gap.rstrip(_BULLETS)[-1:]:
            self._start = last in ".!?:\n"
            self._choice = self._choice_lines if last in ".!?\n" else self._choice

    def _word(self, word: str, begin: int) -> None:
        core = word.strip(_EDGE)
        end = word.rstrip(_CLOSERS)[-1:]
        if self._start and not self._run and core.lower() in _OPENERS:
            self._out.append(word)
        elif _VALUE_SIGN.search(word):  # a number, an id, an address; or compact JSON around one
            self._flush()
            masked = _VALUE.sub(_MARK, word)
            if masked.strip(_EDGE) == _MARK:
                self._mark()
            else:
                self._out.append(masked)
        elif self._is_name_part(word, core):
            if not self._run:
                self._run_at, self._run_start = begin, self._start
            self._run.append(word)
        else:
            self._flush()
            self._out.append(word)
        self._start = False
        short = (len(core) == 1 and core.isupper()) or core.lower() in _TITLES  # J. Smith, Dr. Smith
        if end and end in _STOPS and not (end == "." and short):
            self._flush()  # punctuation ends a name, and perhaps a sentence and its enumeration
            self._start = end not in ",;" and not (end == ":" and core.lower() in _WHO_KEYS)
            self._choice = self._choice if end in ",:;" else self._choice_lines

    def _is_name_part(self, word: str, core: str) -> bool:
        if not core[:1].isupper() or core.lower() in _KEPT or word[0] in _QUOTES or word.rstrip(_STOPS)[-1] in _QUOTES:
            return False
        return not core.isupper() or (len(core) == 1 and "." in word)  # JSON, YES, NO stay; the J. of J. Smith does not

    def _flush(self) -> None:
        """The run of capitals is over: a name becomes a mark; the ordinary first word of a sentence stays."""
        run, self._run = self._run, []
        if not run:
            return
        particles = [run.pop()] if len(run) > 1 and run[-1].islower() else []
        if (len(run) == 1 and self._is_ordinary(run[0])) or self._in_choice():
            self._out += run
        else:
            self._mark()
        self._out += particles

    def _is_ordinary(self, word: str) -> bool:
        """Is one capital alone no name? So at a sentence's start (not a day, not "Maria's"), and in German."""
        low = word.strip(_EDGE).lower()
        if low in _CALENDAR and not (low in ("may", "march") and self._run_start):
            return False
        return self._german or (self._run_start and not low.endswith(("'s", "\u2019s")))

    def _in_choice(self) -> bool:
        """Is this name one of the answers to choose from? Looks back a few words, then remembers."""
        before = self._text[max(0, self._run_at - 100) : self._run_at].lower()
        if not self._choice and (found := _CHOICE.search(before)):
            self._choice, self._choice_lines = True, "\n" in found[0]
        return self._choice

    def _mark(self) -> None:
        """Append a mark, unless only joining words separate it from the one before."""
        out, last = self._out, len(self._out) - 1
        while last >= 0 and out[last] in _JOINERS:
            last -= 1
        if last >= 0 and (out[last] is _MARK or out[-1] in ("May", "March")):  # "May 4": the month opened a sentence
            del out[last:]
        out.append(_MARK)

    def _key_value(self, begin: int) -> int:
        """The end of the line, when it is `Key: Value` and says who or what (short, capitalised); else 0."""
        line = (text := self._text).rfind("\n", max(0, begin - 60), begin) + 1
        found = _KEY_LINE.match(text, line) if line or begin < 60 else None
        if not found or found.start(2) < begin or self._choice_lines:
            return 0
        value = found[2].split()
        low, key = value[0].strip(_EDGE).lower(), found[1].lower().split()
        if not value[0][0].isupper() or len(value) > 6 or value[-1][-1] in ".!?:" or low in _OPENERS or low in _KEPT:
            return 0
        if key[0] in _OPENERS or not _WORK_KEYS.isdisjoint(key):
            return 0
        self._flush()
        self._out.append(text[begin : found.start(2)])
        self._mark()
        return found.end()


def _without_passages(text: str) -> str:
    """Take out what retrieval put in: tagged or fenced text, numbered passages, all that follows `Context:`."""
    if "<" in text:
        text = _cut_tags(text)
    if "```" in text or '"""' in text:
        text = _cut_fences(text)
    return _cut_sections(text)


def _cut_tags(text: str) -> str:
    spans, at, unclosed = [], 0, set[str]()
    for tag in _TAG.finditer(text):
        close = f"</{tag[1]}>"
        if tag.start() < at or close in unclosed:
            continue
        if (end := text.find(close, tag.end())) < 0:
            unclosed.add(close)  # many unclosed tags must not cost a search each
        else:
            at = end + len(close)
            spans.append((tag.start(), at))
    return _cut(text, spans)


def _cut_fences(text: str) -> str:
    spans, opened = [], None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[0] == opened[0]:
            if not _CODE_FENCE.match(text, opened.end()):  # ```json shows the output format: that is instruction
                spans.append((opened.start(), fence.end()))
            opened = None
    return _cut(text, spans)


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> str:
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return f" {_MARK} ".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def _cut_sections(text: str) -> str:
    lines, kept, at = text.rstrip().split("\n"), list[str](), 0
    blank = [not line.strip() for line in lines]
    final = len(lines) - (blank[::-1].index(True) if True in blank else len(lines))  # where the last paragraph begins
    while at < len(lines):
        line = lines[at]
        at += 1
        if line[:1] in "[ \t" and _NUMBERED.match(line):
            kept.append(_MARK)
        elif (head := _PASSAGE_HEAD.match(line)) and line[head.end() :].strip(" *"):
            kept += [head[0], _MARK]  # the passage begins on the same line: it is one paragraph
            at = next((here for here in range(at, len(lines)) if blank[here]), len(lines))
        elif head or (line.rstrip(" *").endswith(":") and _PASSAGE_INTRO.search(line[-60:])):
            kept += [line, _MARK, ""]
            at = _section_end(lines, blank, at, final)
        else:
            kept.append(line)
    return "\n".join(kept)


def _section_end(lines: Sequence[str], blank: Sequence[bool], begin: int, final: int) -> int:
    """Where instructions go on after a blank line: a heading, or a last paragraph that is an order; or the end."""
    for at in range(begin + 1, len(lines)):
        if blank[at - 1] and _INSTRUCTION_HEAD.match(lines[at]):
            return at
    return final if begin < final and _LAST_ORDER.match(lines[final]) else len(lines)


def instructions(body: Mapping[str, Any]) -> str:
    """What the request is told before the user speaks; empty for a plain completion, whose prompt is all input."""
    own = body.get("instructions")
    parts = [own] if isinstance(own, str) else []
    messages = body.get("messages", body.get("input"))
    for message in messages if isinstance(messages, list) else ():
        role = message.get("role") if isinstance(message, dict) else None
        if role == "user":
            break
        if role in ("system", "developer"):
            parts.append(_text(message.get("content")))
    return "\n\n".join(parts)


def _text(content: object) -> str:
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _tools(body: Mapping[str, Any]) -> str:
    """Names, descriptions (as skeletons) and parameter schemas, sorted by name; empty when there are none."""
    tools = body.get("tools") or body.get("functions")
    if not isinstance(tools, list):
        return ""
    specs = [tool.get("function") or tool for tool in tools if isinstance(tool, dict)]
    keys = ("type", "description", "parameters")
    rows = [(str(spec.get("name")), {key: spec.get(key) for key in keys}) for spec in specs if isinstance(spec, dict)]
    return "\n".join(sorted(f"{name} {_canonical(schema)}" for name, schema in rows))


def _format(body: Mapping[str, Any]) -> str:
    text = body.get("text")
    form = body.get("response_format") or (text.get("format") if isinstance(text, dict) else None)
    return "" if not form or form == {"type": "text"} else _canonical(form)


def _canonical(value: object) -> str:
    dumped = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return _DESCRIPTION.sub(lambda found: f'"description": {json.dumps(skeleton(json.loads(found[1])))}', dumped)


@lru_cache(maxsize=512)
def _slug(text: str) -> str:
    """Up to five telling words of the first sentence (of the next one too, when the first says too little)."""
    words: list[str] = []
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    for sentence in re.split(r"[.!?:]\s", plain):
        words += [word for word in re.findall("[a-z0-9]+", sentence) if word not in _DULL]
        if len(words) >= 2:
            break
    return "-".join(words[:5])[:48].strip("-")
