import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from distiller.usage_export import Export, read_export
from proxy.errors import BadInput
from router.reconciling import Used

DAY = 1793491200  # 2026-11-01, in seconds


def read(tmp_path: Path, text: str) -> Export:
    file = tmp_path / "export"
    file.write_text(text, encoding="utf-8")
    return read_export(file)


USAGE = (
    "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,"
    "service_tier,input_tokens,output_tokens,input_cached_tokens\n"
    f"{DAY},{DAY + 86400},2026-11-01T00:00:00+00:00,2026-11-02T00:00:00+00:00,,5,,,gpt-4o-2024-08-06,,,1000,50,800\n"
    f"{DAY + 86400},{DAY + 172800},2026-11-02T00:00:00+00:00,2026-11-03T00:00:00+00:00,,,,,,,,,,\n"
)


def test_the_usage_page_as_csv(tmp_path: Path) -> None:
    found = read(tmp_path, USAGE)
    assert found.used == (Used(date(2026, 11, 1), "gpt-4o-2024-08-06", 5, 1000, 50, None),)
    assert found.columns == {
        "day": "start_time_iso", "model": "model", "requests": "num_model_requests", "prompt": "input_tokens",
        "completion": "output_tokens",
    }  # fmt: skip


def test_the_costs_page_with_tabs_and_a_mark_at_its_begin(tmp_path: Path) -> None:
    text = (
        "\ufeffstart_time\tend_time\tstart_time_iso\tamount_value\tamount_currency\tline_item\n"
        f"{DAY}\t{DAY}\t2026-11-01T00:00:00+00:00\t0.8958740000000000\tusd\tgpt-4o-2024-08-06, cached input\n"
        f"{DAY}\t{DAY}\t2026-11-01T00:00:00+00:00\t\t\t\n"
    )
    found = read(tmp_path, text)
    assert found.used == (Used(date(2026, 11, 1), "gpt-4o-2024-08-06", usd=Decimal("0.895874")),)


def page(*results: dict[str, Any]) -> dict[str, Any]:
    bucket = {"object": "bucket", "start_time": DAY, "end_time": DAY + 86400, "results": list(results)}
    return {"object": "page", "data": [bucket, {**bucket, "results": []}], "has_more": False}


@pytest.mark.parametrize("wrapped", [lambda one: one, lambda one: [one], lambda one: one["data"]])
def test_the_json_of_the_apis(tmp_path: Path, wrapped: Any) -> None:
    usage = {
        "object": "organization.usage.completions.result", "input_tokens": 1000, "output_tokens": 500,
        "input_cached_tokens": 800, "num_model_requests": 5, "model": None,
    }  # fmt: skip
    assert read(tmp_path, json.dumps(wrapped(page(usage)))).used == (Used(date(2026, 11, 1), None, 5, 1000, 500),)
    costs = {"object": "organization.costs.result", "amount": {"value": 0.06, "currency": "usd"}, "line_item": None}
    found = read(tmp_path, json.dumps(wrapped(page(costs))))
    assert found.used == (Used(date(2026, 11, 1), None, usd=Decimal("0.06")),)


def test_other_names_separators_and_spellings(tmp_path: Path) -> None:
    found = read(tmp_path, 'Date;Model;Requests;Prompt tokens;Cost (USD)\n2026-11-01;m;"1,234";7;$1.50\n')
    assert found.used == (Used(date(2026, 11, 1), "m", 1234, 7, None, Decimal("1.50")),)


def test_a_list_of_rows_with_days_of_their_own(tmp_path: Path) -> None:
    found = read(tmp_path, '[{"date": "2026-11-01", "requests": 3}, {"date": "2026-11-02", "requests": 4}]')
    assert [(one.day.day, one.requests) for one in found.used] == [(1, 3), (2, 4)]


def test_a_moment_is_of_the_day_it_is_in_utc(tmp_path: Path) -> None:
    assert read(tmp_path, "date,requests\n2026-11-01T23:30:00-05:00,1\n").used[0].day == date(2026, 11, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("{", "is not JSON"),
        ("model,requests\nm,1\n", "no column for the day: one of start_time_iso"),
        ("date,model\n2026-11-01,m\n", "no column to compare"),
        ("date,requests\nyesterday,1\n", "'yesterday' is no day"),
        ("date,requests\n2026-11-01,many\n", "column requests holds 'many'"),
        ("date,requests\n2026-11-01,nan\n", "column requests holds 'nan'"),
        ("date,cost,currency\n2026-11-01,1,eur\n", "amounts are in eur"),
    ],
)
def test_what_cannot_be_understood_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_export(tmp_path / "none")
