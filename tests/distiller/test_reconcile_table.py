import json
from datetime import date
from decimal import Decimal

import pytest

from distiller.reconcile_table import as_data, reconcile_table
from distiller.usage_export import Export
from router.reconciling import Line, Pair, Reconciled

DAY = date(2026, 11, 1)
EXPORT = Export((), {"day": "date", "prompt": "input_tokens"})


def found(gap: int, share: float) -> Reconciled:
    pair = Pair(Decimal(1000 + gap), Decimal(1000), Decimal(gap))
    usd = Pair(Decimal("1.5"), Decimal("1.25"), Decimal("0.25"))
    line, same = (
        Line(DAY, "gpt-4o", None, pair, None, usd),
        Line(DAY, "m", None, Pair(pair.logged, pair.logged, Decimal(0)), None, None),
    )
    return Reconciled(DAY, DAY, (line, same), line, share, ("[red]because\x1b[2J",))


def test_people_see_the_gap_what_was_found_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    reconcile_table(EXPORT, found(77, 0.077))
    shown = capsys.readouterr().out
    for words in ("1,077", "77", "0.2500", "1 of 2 days and models agree", "found day in date, prompt in input_tokens",
                  "the largest gap is 7.70% of what was billed", "* [red]because?[2J"):  # fmt: skip
        assert words in shown
    reconcile_table(EXPORT, found(0, float("inf")))
    assert "infinite: nothing was billed" in capsys.readouterr().out


def test_scripts_get_numbers() -> None:
    data = json.loads(json.dumps(as_data(EXPORT, found(77, float("inf")))))
    assert data["share"] is None
    assert data["lines"][0] == {
        "day": "2026-11-01", "model": "gpt-4o", "requests": None, "prompt": {"billed": 1077, "log": 1000, "gap": 77},
        "completion": None, "usd": {"billed": 1.5, "log": 1.25, "gap": 0.25},
    }  # fmt: skip
