import re

import pytest

from distiller.export import Exported
from distiller.export_table import exports_table


def test_exports_show_what_was_proved_and_what_cannot_be_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    proof = {"score": 0.87, "student": 0.9, "kept": 0.9667, "rows": 198, "gone": 2, "speed": 41.4, "peak_bytes": None}
    merged = Exported("merged", "exports/student-1/merged", 269_000_000, 269_000_000, True, False, 1e-5)
    refused = Exported("q4_0", None, 91_000_000, 269_000_000, False, True, None, proof)
    exports_table([merged, refused])
    shown = capsys.readouterr().out
    assert re.search(r"merged .* 269\.0 .* 100% .* was there", shown)
    assert re.search(
        r"q4_0 .* 91\.0 .* 34% .* 0\.8700 .* 0\.9000 .* 96\.67% .* 198 \(2 gone\) .* 41 .* \? .* refused", shown
    )
    assert "merged: exports/student-1/merged" in shown
    assert "q4_0: " not in shown
