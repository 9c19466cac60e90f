"""Owns whose an exchange is: the tenant, and the end users a request names as OpenAI has them named.

Those are `user`, `safety_identifier` and `metadata.user_id` of the request's body. People are compared by the SHA-256
of their id, so that what is still to be erased can be kept without saying who. A name that occurs in a prompt is none,
and an id that redaction took out before the exchange was kept cannot be found any more.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from proxy.bodies import decoded
from proxy.feedback import FEEDBACK, named

# What of the spool holds records, whole or not, for longer than a moment.
_KEPT = ("ingested/*.ndjson", "quarantine/*.ndjson", "sifted/*.ndjson")
_FRESH = ".fresh"
_IDS = re.compile("[0-7][0-9A-HJKMNP-TV-Z]{25}")  # ULIDs
# An id as it stands in a piece of a record: the body is JSON inside JSON, so its quotes are escaped.
_FRAGMENT = re.compile(r'\\*"(?:user|safety_identifier|user_id|tenant)\\*"\s*:\s*\\*"((?:[^"\\]|\\(?!"))*)')


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What was taken out of a spool: records, and how many torn pieces name nobody and were left."""

    records: int
    unclear: int


def digest(person: str) -> str:
    """What a person is compared by."""
    return hashlib.sha256(person.encode("utf-8", "surrogatepass")).hexdigest()


def people(tenant: str | None, request: str, encoding: str, headers: str) -> frozenset[str]:
    """Digests of all whom an exchange is of; the arguments are its columns."""
    named = [tenant]
    with contextlib.suppress(ValueError, RecursionError):
        body = json.loads(decoded(request, encoding, headers))
        if isinstance(body, dict):
            metadata = body.get("metadata")
            named += [body.get("user"), body.get("safety_identifier")]
            named += [metadata.get("user_id")] if isinstance(metadata, dict) else []
    return frozenset(digest(str(one)) for one in named if isinstance(one, str | int) and one != "")


def scrub(spool: Path, person: str, before: datetime, exchanges: frozenset[str] = frozenset()) -> Scrubbed:
    """Take the records of a person, given by digest, that began before `before` out of what the spool keeps.

    Feedback about `exchanges` goes too, whenever it came. Segments not yet ingested are left. A file is replaced whole
    and keeps its age; one with no record left is removed.
    """
    records = unclear = 0
    for scratch in spool.glob(f"*/*{_FRESH}"):
        scratch.unlink(missing_ok=True)  # Left by a run that was killed.
    for path in sorted(path for pattern in _KEPT for path in spool.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):  # Ingest forgets old segments meanwhile.
            removed, unknown = _scrub(path, person, before, exchanges)
            records, unclear = records + removed, unclear + unknown
    return Scrubbed(records, unclear)


def _scrub(path: Path, person: str, before: datetime, exchanges: frozenset[str]) -> tuple[int, int]:
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    owners = [frozenset({person}) if _about(line) & exchanges else _owners(line, before) for line in lines]
    kept = [line for line, owner in zip(lines, owners, strict=True) if owner is None or person not in owner]
    if not kept:
        path.unlink()
    elif len(kept) < len(lines):
        _replace(path, b"".join(line + b"\n" for line in kept))
    return len(lines) - len(kept), owners.count(None)


def _about(line: bytes) -> frozenset[str]:
    """The exchanges that a line names where it is feedback; of a torn one, all it holds that may be an exchange."""
    text = _record(line)
    if FEEDBACK not in text:
        return frozenset()
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        record = json.loads(text)
        about = named(decoded(record["request"], record["request_encoding"], json.dumps(record["request_headers"])))
        return frozenset({about} if about and record["path"] == FEEDBACK else ())
    return frozenset(_IDS.findall(text) if f'"path":"{FEEDBACK}"' in text else ())


def _record(line: bytes) -> str:
    """A line as the worker wrote it: in quarantine it is kept inside another, with the reason."""
    text = line.decode("utf-8", "replace")
    if '"raw":' in text:  # In a record itself its bodies are JSON in JSON, with their quotes escaped.
        with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
            return _raw(json.loads(text))
    return text


def _owners(line: bytes, before: datetime) -> frozenset[str] | None:
    """Digests of whom a line is of, nobody for a later one; None where it is torn and names nobody."""
    text = _record(line)
    if not text:
        return frozenset()
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        record = json.loads(text)
        if datetime.fromisoformat(record["ts"]) >= before:
            return frozenset()
        headers = json.dumps(record["request_headers"])
        return people(record.get("tenant"), record["request"], record["request_encoding"], headers)
    return frozenset(digest(_plain(found)) for found in _FRAGMENT.findall(text)) or None


def _raw(entry: Mapping[str, str]) -> str:
    raw = entry["raw"]
    return raw if entry["encoding"] == "utf-8" else base64.b64decode(raw).decode("utf-8", "replace")


def _plain(escaped: str) -> str:
    """The text that a fragment spells: its escapes are those of JSON inside JSON, or of JSON alone."""
    for _ in range(2):
        with contextlib.suppress(ValueError):
            escaped = str(json.loads(f'"{escaped}"'))
    return escaped


def _replace(path: Path, content: bytes) -> None:
    """Put a file's new content in its place in one step; its mode and times stay, for it is forgotten by its age."""
    old, scratch = path.stat(), path.with_name(path.name + _FRESH)
    scratch.touch(0o600)
    with scratch.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    scratch.chmod(old.st_mode & 0o777)
    os.utime(scratch, ns=(old.st_atime_ns, old.st_mtime_ns))
    scratch.replace(path)
