import json
from pathlib import Path

import pytest

from stillroom import main


def test_a_set_up_that_cannot_start_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", str(tmp_path / "missing.toml"), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["what"] == "settings"
