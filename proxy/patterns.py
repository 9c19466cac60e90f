"""Owns what counts as a secret or as personal data in a text: where such values begin and end, and their kind.

Must not know bodies, JSON or placeholders. A placeholder is never found again. Every pattern takes time linear in the
text, whatever the text is. Of two values that overlap one is made, so that no end of either stays.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

SECRET, IBAN, CARD, EMAIL, PHONE, IP, NAME = KINDS = ("SECRET", "IBAN", "CARD", "EMAIL", "PHONE", "IP", "NAME")
"""The kinds, surest first: of values that overlap the first kind names what they become."""


@dataclass(frozen=True, slots=True)
class Redaction:
    """`[redaction]`: which personal data is taken out besides secrets, which always are."""

    emails: bool = False
    phones: bool = False
    cards: bool = False
    ibans: bool = False
    ips: bool = False
    names: bool = False
    """Of people; `find` has to be told where they are."""


SECRETS_ONLY = Redaction()


class Span(NamedTuple):
    """One value: `text[start:end]`."""

    start: int
    end: int
    kind: str


Where = tuple[int, int]
Finder = Callable[[str], Iterator[Where]]
# Text may itself be JSON or a URL: the letter of an escape before a value is not a part of it.
_ESCAPES = (r"\\[nrtbf]", r"%[0-9A-Fa-f][0-9A-Fa-f]", r"\\u[0-9A-Fa-f]{4}")


def _free(first: str, no: str = "A-Za-z0-9") -> str:
    """A pattern for `first`, of fixed width, where none of the characters `no` is before it.

    What is before is looked at second: with what a value begins with in front the search is many times faster.
    """
    return first + _before(first, no)


def _before(first: str, no: str) -> str:
    return f"(?:(?<![{no}]{first})|{'|'.join(f'(?<={escape}{first})' for escape in _ESCAPES)})"


_TOKENS = tuple(
    re.compile(pattern)
    for pattern in (
        _free("gh[pousr]_") + r"[A-Za-z0-9]{20,}",
        _free("github_pat_") + r"[A-Za-z0-9_]{20,}",
        _free("xox[abprs]-") + r"[A-Za-z0-9-]{10,}",
        _free("A[KS]IA") + r"[A-Z0-9]{16}(?![A-Za-z0-9])",
        _free("AIza") + r"[A-Za-z0-9_-]{30,}",
        _free("sk_live_") + r"[A-Za-z0-9]{10,}",
        _free("rk_live_") + r"[A-Za-z0-9]{10,}",
        # Not in the middle of a run, or each of many beginnings in it would be followed to its end.
        _free("eyJ", no="A-Za-z0-9_-") + r"[A-Za-z0-9_-]{8,}+(?:\.{1,2}[A-Za-z0-9_-]+){1,4}",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
        # A possessive quantifier around a group that can fail half-way matches too much before Python 3.11.5.
        r"(?:(?>[^-]*(?:-(?!----)[^-]*)*)-----END [A-Z ]{0,40}-----"
        r"|(?:\s*+(?:\\[nr]\s*+)*[A-Za-z0-9+/=]{8,})*)",  # Without its end: as many lines as look like a key's.
    )
)
# Long enough, but only a secret where it looks random.
_LIKELY = (
    re.compile(_free("sk-") + r"([A-Za-z0-9_-]{16,})"),
    *(
        re.compile(rf"{word}(?<=[Bb]{word})(?:[ \t]|%20|\+){{1,4}}([A-Za-z0-9._~+/=-]{{16,}})")
        for word in ("earer", "EARER")
    ),
)
_NAMES = (
    r"(?:passw(?:or)?d|passphrase|pwd|api[_ -]?key|secret[_ -]?(?:access[_ -]?)?key"
    r"|(?:(?<=client)|(?<=client[_ -]))secret"
    r"|(?:(?<=access)|(?<=access[_ -])|(?<=auth)|(?<=auth[_ -])|(?<=refresh)|(?<=refresh[_ -]))token)"
)
_BEGINNINGS = (b"passw", b"passphrase", b"pwd", b"api", b"secret", b"token")  # Of the names, as searched for.
_NAME = re.compile(_NAMES, re.IGNORECASE | re.ASCII)
_ALIAS = re.compile(rf"(?:[\w.-]*[_.-])?{_NAMES}", re.IGNORECASE | re.ASCII)
_ASSIGNED = re.compile(
    _NAMES + r"(?:\\{0,3}[\"']|[*`]{1,2})?"
    r"(?:\s{0,5}(=>|:=|==?|:)[\s*]{0,5}|\s{1,5}(?=[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/])))"
    r"(?:(\\{0,3}[\"'`])((?:(?!\2)(?:\\.|[^\n\\]))+)|([^\s\"'`&\\]{4,}))",
    re.IGNORECASE | re.ASCII,
)
PLACEHOLDERS = re.compile(rf"(?:\[(?:{'|'.join(KINDS)})_\d+\])+")
# What a program writes instead of a secret: a variable, a call, a type, nothing.
_NO_VALUE = re.compile(
    r"\$[{(]|\$(?-i:[A-Z_]+)$|[<{(\[]|%\(|\*{3}|[A-Za-z_][\w.]*[(\[]|(?:self|this|os|process|config|settings|args|env)\."
    r"|(?:none|null|nil|true|false|undefined|string|secretstr|optional|required|your)\b",
    re.IGNORECASE | re.ASCII,
)


def is_secret_name(name: str) -> bool:
    """Whether what is stored under this name is a secret: `password`, `DB_PASSWORD`, `apiKey`."""
    return any(match.end() == len(name) for match in _NAME.finditer(name))


def _tokens(text: str) -> Iterator[Where]:
    for pattern in _TOKENS:
        yield from (match.span() for match in pattern.finditer(text))
    for pattern in _LIKELY:
        for match in pattern.finditer(text):
            if any(c.isdigit() for c in match[1]) or not (match[1].islower() or match[1].isupper()):
                # The prefix of a key is a part of it, the word before a token is not.
                yield match.span() if match[0].startswith("sk-") else match.span(1)


def _assignments(text: str) -> Iterator[re.Match[str]]:
    """As `_ASSIGNED.finditer`, but many times faster: where a name may begin is found without regard to case first."""
    lower = text.encode("ascii", "replace").lower()  # A byte a character.
    starts: list[int] = []
    for word in _BEGINNINGS:
        at = lower.find(word)
        while at >= 0:
            starts.append(at)
            at = lower.find(word, at + 1)
    done = 0
    for at in sorted(starts):
        if at >= done and (match := _ASSIGNED.match(text, at)):
            done = match.end()
            yield match


def _assigned(text: str) -> Iterator[Where]:
    for match in _assignments(text):
        sign, quote, quoted, bare = match.groups()
        value = quoted if quote else bare.rstrip(".,;:!?)]}>")
        start = match.start(3 if quote else 4)
        end = start + len(value)
        if not value or PLACEHOLDERS.fullmatch(value) or _ALIAS.fullmatch(value):
            continue
        if quote or (not _NO_VALUE.match(bare) and _no_prose(sign, value, text[end : end + 40])):
            yield start, end


def _no_prose(sign: str | None, value: str, after: str) -> bool:
    """A word after a colon is only a value where the line ends with it: not so in "Password: must be long"."""
    return sign != ":" or not value.isalpha() or not after.split("\n", 1)[0].strip(" \t\r.,;")


_DOMAIN = re.compile(r"[@%](?:(?<=@)|40)(?:[\w-]{1,63}\.){1,8}(?:xn--[A-Za-z0-9-]{2,59}|[^\W\d_]{2,63})")
_LOCAL_BACKWARDS = re.compile(r"[\w.+'-]{1,64}")
_ESCAPED = re.compile(r"[nrtbf]|u[0-9A-Fa-f]{4}")


def _emails(text: str) -> Iterator[Where]:
    for match in _DOMAIN.finditer(text):
        at = match.start()
        local = _LOCAL_BACKWARDS.match(text[max(0, at - 64) : at][::-1])
        if local is None:
            continue
        start = at - local.end()
        if text[start - 1 : start] == "\\" and (escape := _ESCAPED.match(text, start, at)):
            start = escape.end()
        start = at - len(text[start:at].lstrip(".'-"))
        if start < at:
            yield start, match.end()


_PHONE = re.compile(
    _free("[+(0-9]") + r"(?:"
    r"(?<=\+)\d(?:[ ().-]{0,3}\d){7,14}(?!\d)"  # international
    r"|(?:(?<=\()\d{2,5}\)[ -]?\d{2,4}(?:[ .-]?\d{2,4}){1,3}"  # (030) 123-4567
    r"|(?<![-.]\d)(?:(?<=\d)\d\d([-. ])\d{3}\1\d{4}"  # 555-123-4567
    r"|(?<=0)\d{2,4}[ /-]\d{2,8}(?:[ -]\d{2,8}){0,4}"  # 030 1234567
    r"|(?<=0)\d(?:[ .-]\d\d){4}))"  # 01 23 45 67 89
    r"(?![\w-]|\.\d))"
)


def _phones(text: str) -> Iterator[Where]:
    for match in _PHONE.finditer(text):
        if 8 <= sum(c.isdigit() for c in match[0]) <= 15:
            yield match.span()


# Neither a fraction, nor a phone number, nor the later groups of a UUID.
_DIGITS = re.compile(_free("[0-9]") + r"(?<![0-9]\.[0-9])(?<!\+[0-9])(?<![0-9A-Fa-f]{4}-[0-9])(?:[ -]?[0-9]){12,}")
_GOES_ON = re.compile(r"[^\W\d]|-[0-9A-Fa-f]{4}")
_GROUPS = re.compile(r"[0-9]{3,19}")
_DOUBLED = dict(zip("0123456789", (0, 2, 4, 6, 8, 1, 3, 5, 7, 9), strict=True))


def _cards(text: str) -> Iterator[Where]:
    """A run of digits that is a card, or the groups in a longer run that are one."""
    for run in _DIGITS.finditer(text):
        if _GOES_ON.match(text, run.end()):
            continue
        if _is_card(run[0]):
            yield run.span()
            continue
        groups = [group.span() for group in _GROUPS.finditer(text, *run.span())]
        taken = 0
        for i, (start, _) in enumerate(groups):
            ends = [end for _, end in groups[i : i + 7] if end - start <= 25 and _is_card(text[start:end])]
            if start >= taken and ends:
                taken = ends[-1]
                yield start, taken


def _is_card(text: str) -> bool:
    """13 to 19 digits, the first one of a card network's, with the check digit of ISO/IEC 7812-1 (Luhn)."""
    if len(text) > 40 or text[0] not in "23456":
        return False
    digits = text.replace(" ", "").replace("-", "")
    if not 13 <= len(digits) <= 19:
        return False
    return (sum(map(int, digits[-1::-2])) + sum(_DOUBLED[digit] for digit in digits[-2::-2])) % 10 == 0


# Country and length, from the SWIFT IBAN registry.
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"(\w\w)(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 "
        "SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}
_IBAN = re.compile(
    "[0-9]" + _before("[A-Za-z]{2}[0-9]", "A-Za-z0-9") + "(?<=[A-Za-z]{2}[0-9])[0-9](?=[ -]?[A-Za-z0-9])"
)


def _ibans(text: str) -> Iterator[Where]:
    for match in _IBAN.finditer(text):
        start = match.start() - 2
        length = _IBAN_LENGTHS.get(text[start : start + 2].upper())
        if length is None:
            continue
        rest = re.compile(rf"(?:[ -]?[A-Za-z0-9]){{{length - 4}}}(?![A-Za-z0-9])").match(text, match.end())
        if rest is not None:
            moved = re.sub("[ -]", "", rest[0] + text[start : match.end()])
            if int("".join(str(int(c, 36)) for c in moved)) % 97 == 1:  # ISO 13616
                yield start, rest.end()


_IPV4 = re.compile(_free("[0-9]") + r"(?<!\.[0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|\.\d)")
_IPV6_FROM_COLON = re.compile(r":[0-9A-Fa-f:.]{1,41}(?!\w)")
_HEX_BACKWARDS = re.compile("[0-9A-Fa-f]{0,4}")
_STARTS = re.compile(_free("", no="A-Za-z0-9:."))


def _ips(text: str) -> Iterator[Where]:
    for match in _IPV4.finditer(text):
        if _is_ip(match[0]):
            yield match.span()
    for match in _IPV6_FROM_COLON.finditer(text):
        at = match.start()
        head = _HEX_BACKWARDS.match(text[max(0, at - 4) : at][::-1])
        start = at - (head.end() if head else 0)
        whole = text[start : match.end()]
        # A sentence may go on after it; and `::` alone is no one's address, but an operator in many languages.
        for value in dict.fromkeys((whole, whole.rstrip("."), whole.rstrip(".:"))):
            if value != "::" and _STARTS.match(text, start) and _is_ip(value):
                yield start, start + len(value)
                break


def _is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def find(text: str, options: Redaction, people: Finder | None = None) -> list[Span]:
    """The values in a text, in order; none overlaps another. `people` says where people are named."""
    finders: tuple[tuple[bool, str, Finder], ...] = (
        (True, SECRET, _tokens),
        (True, SECRET, _assigned),
        (options.ibans, IBAN, _ibans),
        (options.cards, CARD, _cards),
        (options.emails, EMAIL, _emails),
        (options.phones, PHONE, _phones),
        (options.ips, IP, _ips),
    )
    if people is not None:
        finders = (*finders, (True, NAME, people))
    spans = [Span(start, end, kind) for wanted, kind, finder in finders if wanted for start, end in finder(text)]
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start < merged[-1].end:
            last = merged.pop()
            span = Span(last.start, max(last.end, span.end), min(last.kind, span.kind, key=KINDS.index))
        merged.append(span)
    return merged


# Wherever a secret may be, one of these is: in any case of letters, then as written.
_SECRETS = (
    rb"(?i)bearer|passw|passphrase|pwd|secret",
    rb"(?i)sk-|[sr]k_live_|api[ _-]?k|private k|[sh][ _-]?token|xox|gh[pousr]_|github_",
    rb"A[KS]IA|AIza|eyJ",
)


def suspects(options: Redaction) -> tuple[bytes, ...]:
    """Patterns for a Glance: where it sees none of them in bytes, `find` finds nothing in what these spell in ASCII."""
    if options.phones or options.cards or options.ibans or options.ips or options.names:
        return (rb"(?s).",)  # Digits and names are everywhere.
    return (*_SECRETS, rb"@|%40") if options.emails else _SECRETS
