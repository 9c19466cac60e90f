"""Owns the settings as people may see them: every one by its name, none with a secret in it.

Settings name the variables that hold secrets; of those, only whether they are set is told. What somebody wrote into an
address all the same - a password, a key, a webhook's path - is left out.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from distiller.settings import Settings

HIDDEN = "(hidden)"
_ASSIGNED = re.compile(
    r"(?i)\b([\w-]*(?:password|passwd|secret|token|key)[\w-]*)(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s&;,]+)"
)
_FLAG = re.compile(r"(?i)^--?[\w-]*(password|secret|token|key)[\w-]*$")
_CALLED_SECRET = re.compile(r"(?i)(webhook|password|secret)$")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting; `changed` where it is not the default."""

    name: str
    value: str
    changed: bool


def shown(settings: Settings) -> dict[str, list[Setting]]:
    """All settings in effect by their table, in the order of the file."""
    found: dict[str, list[Setting]] = {}
    usual = dict(_leaves(dataclasses.asdict(Settings())))
    for name, value in _leaves(dataclasses.asdict(settings)):
        table = name.partition(".")[0] if "." in name else "general"
        found.setdefault(table, []).append(Setting(name, written(name, value), usual.get(name) != value))
    return found


def written(name: str, value: Any) -> str:
    """One value, as TOML writes it or nearly so."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        parts = [HIDDEN if _follows_a_flag(value, at) else written(name, one) for at, one in enumerate(value)]
        return f"[{', '.join(parts)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {written(f'{name}.{key}', one)}" for key, one in value.items()) + "}"
    if not isinstance(value, str):
        return "" if value is None else str(value)
    if name.endswith("_env"):
        return value and f"{value} ({'set' if os.environ.get(value) else 'not set'})"
    return _plain(name, value)


def _leaves(table: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = f"{where}.{key}" if where else key
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name)
        else:
            yield name, value


def _plain(name: str, text: str) -> str:
    """A text without what should not have been in it."""
    text = re.sub(r"\w[\w+.-]*://[^\s'\"]+", lambda found: _address(name, found.group()), text)
    return _ASSIGNED.sub(lambda found: f"{found[1]}{found[2]}{HIDDEN}", text)


def _address(name: str, text: str) -> str:
    """An address without the user it names and without its query; of a webhook the host alone."""
    scheme = text.partition("://")[0]
    try:
        parts = urlsplit(text)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return f"{scheme}://{HIDDEN}"
    hidden = f"{HIDDEN}@" if "@" in parts.netloc else ""
    if _CALLED_SECRET.search(name):
        return f"{scheme}://{hidden}{host}/{HIDDEN}"
    path = parts.path if "@" not in parts.path else f"/{HIDDEN}"  # A password with a slash in it.
    return f"{scheme}://{hidden}{host}{path}" + (f"?{HIDDEN}" if parts.query or parts.fragment else "")


def _follows_a_flag(values: Any, at: int) -> bool:
    return at > 0 and isinstance(values[at - 1], str) and _FLAG.match(values[at - 1]) is not None
