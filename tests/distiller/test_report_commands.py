import json
from datetime import date
from pathlib import Path

import pytest

import stillroom
from distiller.report_commands import period
from proxy.errors import BadInput
from tests.distiller.statements import booked
from tests.logs import migrated


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("", "", ""), (None, None)),
        (("2026-12", "", ""), (date(2026, 12, 1), date(2027, 1, 1))),
        (("2028-02", "", ""), (date(2028, 2, 1), date(2028, 3, 1))),
        (("", "2026-11-02", "2026-11-02"), (date(2026, 11, 2), date(2026, 11, 3))),
        (("", "", "2026-11-30"), (None, date(2026, 12, 1))),
    ],
)
def test_periods(asked: tuple[str, str, str], expected: tuple[date | None, date | None]) -> None:
    assert period(*asked) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("2026-13", "", ""), "--month is one such as 2026-11, not '2026-13'"),
        (("2026-11", "2026-11-01", ""), "leave --from and --to out"),
        (("", "yesterday", ""), "--from is a day such as"),
        (("", "2026-11-02", "2026-11-01"), "--to 2026-11-01 is before --from"),
    ],
)
def test_what_is_no_period_is_refused(asked: tuple[str, str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        period(*asked)


def test_the_command_writes_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "stillroom-data"
    home.mkdir()
    log = migrated(home)
    booked(log)
    log.close()
    config = tmp_path / "stillroom.toml"
    config.write_text("")
    asked = ["report", "--config", str(config), "--month", "2026-06"]
    assert stillroom.main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (round(said["net_usd"], 9), said["since"], len(said["days"])) == (0.68, "2026-06-01", 2)
    for name, start in (("csv", b"from,to,task"), ("html", b"<!doctype html>"), ("pdf", b"%PDF"), ("json", b"{")):
        file = tmp_path / f"ledger.{name}"
        assert stillroom.main([*asked, "--format", name, "--output", str(file)]) == 0
        assert file.read_bytes().startswith(start)
    assert stillroom.main(asked) == 0
    assert "net saving $0.6800" in capsys.readouterr().out
    for wrong, why in (
        (["--format", "pdf"], "--output ledger.pdf"),
        (["--output", str(tmp_path / "x")], "a table is for the terminal"),
        (["--format", "csv", "--output", str(tmp_path)], "cannot be written"),
    ):
        assert stillroom.main([*asked, *wrong]) == 1
        assert why in capsys.readouterr().err


def test_a_bill_is_reconciled_with_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "stillroom-data"
    home.mkdir()
    log = migrated(home)
    booked(log)
    log.close()
    (tmp_path / "stillroom.toml").write_text("")
    bill, asked = tmp_path / "bill.csv", ["reconcile", "--config", str(tmp_path / "stillroom.toml")]
    bill.write_text("date,model,requests\n2026-06-18,gpt-4o,2\n2026-06-19,gpt-4o,2\n")
    assert stillroom.main([*asked, str(bill)]) == 0
    bill.write_text("date,model,requests\n2026-06-18,gpt-4o,2\n2026-06-19,gpt-4o,3\n")
    capsys.readouterr()
    assert stillroom.main([*asked, str(bill), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["total"]["requests"] == {"billed": 5, "log": 4, "gap": 1}
    assert stillroom.main([*asked, str(bill), "--tolerance", "0.2"]) == 0
    assert stillroom.main([*asked, str(bill), "--tolerance", "nan"]) == 1
    bill.write_text("date,requests\n2026-06-18,\n")
    assert stillroom.main([*asked, str(bill)]) == 1
