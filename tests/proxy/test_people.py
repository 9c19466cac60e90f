import base64
import gzip
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange import Exchange
from proxy.ids import ulid
from proxy.patterns import SECRETS_ONLY
from proxy.people import Scrubbed, digest, people, scrub
from proxy.redact import Redactor

THEN = 1_800_000_000.0
LATER = datetime.fromtimestamp(THEN, UTC) + timedelta(days=1)
ANN = digest("ann")


def line(body: Any, tenant: str | None = None, ts: float = THEN) -> bytes:
    request = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = [(b"content-encoding", b"gzip")] if request[:2] == b"\x1f\x8b" else []
    one = Exchange(ulid(), ts, "POST", "/v1/x", request=request, request_headers=headers, response=b"{}")
    record = json.loads(one.line(Redactor(SECRETS_ONLY)))
    return json.dumps(record | ({"tenant": tenant} if tenant else {})).encode()


@pytest.mark.parametrize("body", [{"user": "ann"}, {"safety_identifier": "ann"}, {"metadata": {"user_id": "ann"}}])
def test_the_three_names_of_a_request(body: dict[str, Any]) -> None:
    assert people(None, json.dumps(body), "utf-8", "[]") == {ANN}


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"5", b'{"user": {"user": "ann"}}', b'{"metadata": "ann"}', b'{"user": ""}', b"[" * 100_000]
)
def test_a_body_that_names_nobody_is_nobodys(body: bytes) -> None:
    assert people(None, body.decode(), "utf-8", "[]") == frozenset()


def test_tenant_numbers_and_packed_bodies_count() -> None:
    packed = base64.b64encode(gzip.compress(b'{"user": 17, "safety_identifier": "ann"}')).decode()
    headers = '[["Content-Encoding", "gzip"]]'
    assert people("team", packed, "base64", headers) == {digest("team"), digest("17"), ANN}


@given(st.text(min_size=1))
def test_whoever_is_named_is_found(name: str) -> None:
    assert digest(name) in people(None, json.dumps({"user": name}), "utf-8", "[]")


def test_only_the_persons_records_leave_the_spool(tmp_path: Path) -> None:
    ingested = tmp_path / "ingested"
    ingested.mkdir()
    bob, later = line({"user": "bob", "messages": "about ann"}), line({"user": "ann"}, ts=THEN + 2 * 86400)
    mixed, only, waiting = ingested / "1.ndjson", ingested / "2.ndjson", tmp_path / "3.ndjson"
    packed = line(gzip.compress(b'{"user": "ann"}'))
    mixed.write_bytes(b"\n".join([line({"user": "ann"}), bob, packed, later, line({}, "ann")]) + b"\n")
    os.utime(mixed, (1000, 1000))
    only.write_bytes(line({"metadata": {"user_id": "ann"}}) + b"\n")
    waiting.write_bytes(line({"user": "ann"}) + b"\n")
    (ingested / "0.ndjson.fresh").write_bytes(line({"user": "ann"}))
    assert scrub(tmp_path, ANN, LATER) == Scrubbed(4, 0)
    assert mixed.read_bytes() == bob + b"\n" + later + b"\n"
    assert (mixed.stat().st_mtime, only.exists()) == (1000, False)
    assert {path.name for path in tmp_path.rglob("*.*")} == {"1.ndjson", "3.ndjson"}
    assert scrub(tmp_path, ANN, LATER) == Scrubbed(0, 0)


def test_what_is_in_quarantine_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    torn = line({"metadata": {"user_id": "ann"}, "messages": "x" * 50})[:-400]
    unclear = line({"user": 'an"n\u00e9', "messages": "x" * 50})[:40]
    broken = line({"user": "ann"})[:-300] + b"\xff"
    aside = tmp_path / "quarantine" / "1.ndjson"
    aside.parent.mkdir()
    entries = [entry(text) for text in (torn, line({"user": "ann"}), line({"user": "bob"}), unclear, broken)]
    aside.write_bytes(b"".join(one + b"\n" for one in entries))
    assert scrub(tmp_path, ANN, LATER) == Scrubbed(3, 1)
    assert aside.read_bytes() == entries[2] + b"\n" + entries[3] + b"\n"


def entry(raw: bytes) -> bytes:
    try:
        text, encoding = raw.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(raw).decode(), "base64"
    return json.dumps({"reason": "x", "segment": "1.ndjson", "line": 1, "encoding": encoding, "raw": text}).encode()
