"""Owns reading a provider's account of what was used: a CSV of its usage page, or the JSON of its usage or cost API.

Lenient about columns, as providers rename them: each is known by several names, and what was found is told. Days are
UTC's, as OpenAI's are. Must not know the log.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Any

from proxy.errors import BadInput
from router.reconciling import Used

# OpenAI's names first: its page exports usage and costs, each by itself; then those of its older exports, and others'.
_NAMES: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "day": ("start_time_iso", "start_time", "date", "day", "usage_date", "usage_date_utc", "timestamp", "created"),
        "model": ("model", "model_name", "snapshot_id", "snapshot", "line_item"),
        "requests": ("num_model_requests", "num_requests", "n_requests", "requests", "request_count"),
        "prompt": ("input_tokens", "prompt_tokens", "n_context_tokens_total", "context_tokens"),
        "completion": ("output_tokens", "completion_tokens", "n_generated_tokens_total", "generated_tokens"),
        "usd": ("amount_value", "cost_usd", "cost_in_usd", "usd", "cost", "amount"),
    }
)
_CURRENCY = ("amount_currency", "currency")
_EPOCH = re.compile(r"\d{9,10}(\.0*)?")


@dataclass(frozen=True, slots=True)
class Export:
    """What the file says was used, by day and model, and which of its columns said what."""

    used: tuple[Used, ...]
    columns: Mapping[str, str]


def read_export(file: Path) -> Export:
    """The file's rows; BadInput where it is none that can be understood, with what was looked for."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from None
    rows = _from_json(file, text) if text.lstrip()[:1] in ("{", "[") else _from_csv(text)
    if not rows:
        raise BadInput(f"{file} has no rows: export usage or costs by day, best grouped by model")
    columns = _columns({name for row in rows for name in row})
    if "day" not in columns:
        raise BadInput(f"{file} has no column for the day: one of {', '.join(_NAMES['day'])}")
    if not columns.keys() & {"requests", "prompt", "completion", "usd"}:
        raise BadInput(f"{file} has no column to compare: requests, tokens or an amount")
    found = [_used(row, columns) for row in rows]
    return Export(tuple(one for one in found if one is not None), columns)


def _from_json(file: Path, text: str) -> list[dict[str, Any]]:
    try:
        return list(_results(json.loads(text), None))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not JSON: {error}") from None


def _results(value: Any, day: Any) -> Iterator[dict[str, Any]]:
    """Rows out of pages, buckets and lists of them; a bucket says the day of its results."""
    if isinstance(value, list):
        for one in value:
            yield from _results(one, day)
    elif isinstance(value, dict):
        inner = next((value[name] for name in ("data", "results", "result") if isinstance(value.get(name), list)), None)
        day = value.get("start_time", day)
        if inner is not None:
            yield from _results(inner, day)
        else:
            amount = value.get("amount")
            spread = (
                {"amount_value": amount.get("value"), "amount_currency": amount.get("currency")}
                if isinstance(amount, dict)
                else {}
            )
            yield {**({} if day is None else {"start_time": day}), **value, **spread}


def _from_csv(text: str) -> list[dict[str, Any]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    return [
        {_name(name): value for name, value in row.items() if isinstance(name, str)}
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    ]


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _columns(there: set[str]) -> dict[str, str]:
    found = {what: next((name for name in known if name in there), None) for what, known in _NAMES.items()}
    return {what: name for what, name in found.items() if name is not None}


def _used(row: Mapping[str, Any], columns: Mapping[str, str]) -> Used | None:
    """One row; None for a day on which nothing was. BadInput for another currency."""
    said = {what: row.get(name) for what, name in columns.items()}
    numbers = {what: _number(said.get(what), columns.get(what)) for what in ("requests", "prompt", "completion", "usd")}
    if all(number is None for number in numbers.values()):
        return None
    currency = next((str(row[name]) for name in _CURRENCY if row.get(name)), "usd")
    if numbers["usd"] is not None and currency.lower() not in ("usd", "$"):
        raise BadInput(f"amounts are in {currency}: export them in US dollars")
    model = said.get("model") or None
    if columns.get("model") == "line_item" and model:  # Such as "gpt-4o-2024-08-06, cached input".
        model = str(model).partition(",")[0]
    counts = {what: None if numbers[what] is None else int(numbers[what] or 0) for what in numbers if what != "usd"}
    day = _day(said["day"])
    return Used(day, None if model is None else str(model), **counts, usd=numbers["usd"])


def _number(value: Any, column: str | None) -> Decimal | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = Decimal(str(value).strip().lstrip("$").replace(",", ""))
    except InvalidOperation:
        raise BadInput(f"column {column} holds {value!r}, which is no number") from None
    if not number.is_finite():
        raise BadInput(f"column {column} holds {value!r}, which is no number")
    return number


def _day(value: Any) -> date:
    """Of an epoch in seconds, a day, or a moment; one without a zone is UTC's."""
    text = str(value).strip()
    try:
        if _EPOCH.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC).date()
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"{text!r} is no day: one such as 2026-11-01, or a time in seconds") from None
    return moment.astimezone(UTC).date() if moment.tzinfo else moment.date()
